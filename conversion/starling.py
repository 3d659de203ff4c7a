"""Starling-RM: ``GPTRewardModel``, a LLaMA backbone under ``transformer.`` and a bias-free ``v_head``.

The published file also holds the backbone a second time under ``model.``, which is passed over. Ours is a
value model: no prediction heads, and the value head's bias at zero.
"""

from __future__ import annotations

import re
from pathlib import Path

from conversion import huggingface
from conversion.layout import Layout
from conversion.tensors import Tensor
from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig

LAYOUT = Layout(
    name="starling-rm",
    shared={
        "tok_embeddings.embedding": "transformer.embed_tokens.weight",
        "norm.scale": "transformer.norm.weight",
        "value_head.kernel": "v_head.weight",
    },
    block=huggingface.BLOCK,
    prefixes=lambda config: {"trunk": [f"transformer.layers.{i}" for i in range(config.n_layers)]},
    neighbours=False,
    ignored=re.compile(r"model\..*|lm_head\.weight|.*\.rotary_emb\.inv_freq"),
)


def read_config(directory: Path, tensors: dict[str, Tensor]) -> ModelConfig:
    """The architecture: of ``config.json`` where there is one, else of the tensors' shapes.

    Shapes do not tell the number of heads; it comes from the rotary buffers (half a head wide), or from the
    published model's size (Llama-2-7b, heads of 128).

    Raises:
      UserError: the shapes do not tell.
    """
    if (directory / huggingface.CONFIG).is_file():
        return huggingface.read_config(directory / huggingface.CONFIG, value_model=True)
    try:
        vocab_size, dim = tensors["transformer.embed_tokens.weight"].shape
        block = "transformer.layers.0.self_attn"
        kv_dim = tensors[f"{block}.k_proj.weight"].shape[0]
        ffn_dim = tensors["transformer.layers.0.mlp.gate_proj.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{directory}: the backbone under `transformer.` is not complete ({error})") from error
    buffer = tensors.get(f"{block}.rotary_emb.inv_freq")
    head_dim = 2 * buffer.shape[0] if buffer else 128 if dim == 4096 else None
    if head_dim is None or dim % head_dim or kv_dim % head_dim:
        raise UserError(
            f"{directory}: the number of attention heads does not follow from the tensors; put the "
            f"{huggingface.CONFIG} of the base model beside the weights"
        )
    layers = [re.match(r"transformer\.layers\.(\d+)\.", name) for name in tensors]
    return ModelConfig(
        dim=dim,
        n_layers=1 + max(int(match[1]) for match in layers if match),
        n_heads=dim // head_dim,
        n_kv_heads=kv_dim // head_dim,
        vocab_size=vocab_size,
        ffn_dim=ffn_dim,
        n_future_tokens=0,
        value_head="linear",
    )
