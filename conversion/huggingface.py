"""Hugging Face's LLaMA: ``config.json`` + ``model*.safetensors`` or ``pytorch_model*.bin``.

An ordinary next-token model is ours with one prediction head: its last block is head 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.layout import Layout
from conversion.tensors import read_json
from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig, RopeScaling

CONFIG = "config.json"
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

BLOCK = {
    "attention.wq.kernel": "self_attn.q_proj.weight",
    "attention.wk.kernel": "self_attn.k_proj.weight",
    "attention.wv.kernel": "self_attn.v_proj.weight",
    "attention.wo.kernel": "self_attn.o_proj.weight",
    "feed_forward.w1.kernel": "mlp.gate_proj.weight",
    "feed_forward.w2.kernel": "mlp.down_proj.weight",
    "feed_forward.w3.kernel": "mlp.up_proj.weight",
    "attention_norm.scale": "input_layernorm.weight",
    "ffn_norm.scale": "post_attention_layernorm.weight",
}


def _prefixes(config: ModelConfig) -> dict[str, list[str]]:
    """Trunk and head 1; the other heads have no place there."""
    trunk = config.n_trunk_layers
    return {"trunk": [f"model.layers.{i}" for i in range(trunk)], "heads": [f"model.layers.{trunk}"]}


LAYOUT = Layout(
    name="llama",
    shared={
        "tok_embeddings.embedding": "model.embed_tokens.weight",
        "output.kernel": "lm_head.weight",
        "norm.scale": "model.norm.weight",
    },
    block=BLOCK,
    prefixes=_prefixes,
    neighbours=False,
    ignored=re.compile(r".*\.rotary_emb\.inv_freq"),
)


def read_config(path: Path, value_model: bool = False) -> ModelConfig:
    """The architecture in a ``config.json`` of Hugging Face; defaults are those of its LlamaConfig.

    Args:
      path: the file.
      value_model: the weights have a value head and no output matrix.

    Raises:
      UserError: it is no LLaMA, or uses what ours does not have; the field is named.
    """
    content = read_json(path)
    kind = content.get("model_type", "llama")
    if kind != "llama":
        raise UserError(f"{path}: model_type is {kind!r}; only llama is read")
    for field, expected in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if content.get(field, expected) != expected:
            raise UserError(f"{path}: {field} is {content[field]!r}; only {expected!r} is read")
    if content.get("quantization_config"):
        raise UserError(f"{path}: the weights are quantised (quantization_config); give those of the full model")
    if not isinstance(content.get("tie_word_embeddings", False), bool):
        raise UserError(f"{path}: tie_word_embeddings is {content['tie_word_embeddings']!r}; it must be true or false")
    try:
        # Transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
        rope = content.get("rope_parameters") or {
            **(content.get("rope_scaling") or {}),
            "rope_theta": content.get("rope_theta", 10000.0),
        }
        if not isinstance(rope, dict):
            raise ValueError(f"rope_parameters is {rope!r:.40}; expected an object")
        heads = content["num_attention_heads"]
        return ModelConfig(
            dim=content["hidden_size"],
            n_layers=content["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=content.get("num_key_value_heads") or heads,
            vocab_size=content["vocab_size"],
            ffn_dim=content["intermediate_size"],
            n_future_tokens=0 if value_model else 1,
            norm_eps=content.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", 10000.0),
            rope_scaling=_rope_scaling(rope, content),
            head_dim=content.get("head_dim") or 0,
            tie_embeddings=content.get("tie_word_embeddings", False) and not value_model,
            value_head="linear" if value_model else None,
        )
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; it describes the architecture") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _rope_scaling(rope: dict[str, Any], content: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("llama3", "linear"):
        raise ValueError(f"rope scaling {kind!r} is not read; llama3 and linear are")
    names = {field.name for field in dataclasses.fields(RopeScaling)} - {"rope_type"}
    values = {name: rope[name] for name in names if rope.get(name) is not None}
    if "factor" not in values:
        raise ValueError(f"rope scaling {kind!r} has no factor")
    if kind == "llama3" and "original_max_position_embeddings" not in values:
        values["original_max_position_embeddings"] = content["max_position_embeddings"]
    return RopeScaling(rope_type=kind, **values)


def kept_facts(path: Path) -> dict[str, Any]:
    """What a ``config.json`` says that the weights do not, for `config_of` to write again.

    Raises:
      UserError: ``max_position_embeddings`` is no length.
    """
    content = read_json(path)
    length = content.get("max_position_embeddings", 2048)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UserError(f"{path}: max_position_embeddings is {length!r}; it must be a whole number above 0")
    facts = {name: content[name] for name in _TOKEN_IDS if content.get(name) is not None}
    return {"max_position_embeddings": length, **facts}


def config_of(config: ModelConfig, dtype: str, tokenizer: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` of trunk and head 1, in the fields that transformers 4 and 5 read.

    Args:
      config: our architecture.
      dtype: of the weights, e.g. ``"bfloat16"``.
      tokenizer: its special tokens are named where ``facts`` does not; None leaves them out.
      facts: what `kept_facts` has kept, if anything.
    """
    scaling: dict[str, Any] | None = None
    if config.rope_scaling:
        scaling = dataclasses.asdict(config.rope_scaling)
        if config.rope_scaling.rope_type == "linear":
            scaling = {"rope_type": "linear", "factor": config.rope_scaling.factor}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_trunk_layers + 1,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_width,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "max_position_embeddings": facts.get("max_position_embeddings", 2048),
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        **{name: facts.get(name, getattr(tokenizer, name, None)) for name in _TOKEN_IDS},
    }
