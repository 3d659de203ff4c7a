"""Meta's multi-token-prediction checkpoints: ``consolidated.pth`` + ``params.json``.

The layout, as `facebook/multi-token-prediction` publishes it: ``layers`` holds the trunk blocks and,
last, the block of head 1; ``extra_heads`` the blocks of heads 2 to n.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from conversion.layout import Layout
from conversion.tensors import read_json
from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig

CHECKPOINT, PARAMS = "consolidated.pth", "params.json"


def _prefixes(config: ModelConfig) -> dict[str, list[str]]:
    trunk = config.n_trunk_layers
    extra = [f"extra_heads.{i}" for i in range(config.n_future_tokens - 1)]
    return {"trunk": [f"layers.{i}" for i in range(trunk)], "heads": [f"layers.{trunk}", *extra]}


LAYOUT = Layout(
    name="meta-mtp",
    shared={
        "tok_embeddings.embedding": "tok_embeddings.weight",
        "output.kernel": "output.weight",
        "norm.scale": "norm.weight",
    },
    block={
        "attention.wq.kernel": "attention.wq.weight",
        "attention.wk.kernel": "attention.wk.weight",
        "attention.wv.kernel": "attention.wv.weight",
        "attention.wo.kernel": "attention.wo.weight",
        "feed_forward.w1.kernel": "feed_forward.w1.weight",
        "feed_forward.w2.kernel": "feed_forward.w2.weight",
        "feed_forward.w3.kernel": "feed_forward.w3.weight",
        "attention_norm.scale": "attention_norm.weight",
        "ffn_norm.scale": "ffn_norm.weight",
    },
    prefixes=_prefixes,
    neighbours=True,
    ignored=re.compile(r"rope\.freqs"),
)


def read_params(directory: Path) -> dict[str, Any]:
    """``params.json`` as it stands there. Raises UserError where it is absent or broken."""
    return read_json(directory / PARAMS)


def read_config(directory: Path) -> ModelConfig:
    """The architecture in ``params.json``; defaults are those of Meta's reference code.

    Raises:
      UserError: broken JSON, a missing field, or sizes that do not fit together.
    """
    path, params = directory / PARAMS, read_params(directory)
    if params.get("use_scaled_rope"):
        raise UserError(f"{path}: use_scaled_rope is no part of the multi-token-prediction layout")
    for name in ("dim", "multiple_of"):
        value = params.get(name, 256)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise UserError(f"{path}: {name} is {value!r:.40}; it must be a whole number above 0")
    multiplier = params.get("ffn_dim_multiplier", 1.0)
    if multiplier is not None and not (isinstance(multiplier, int | float) and 0 < multiplier < 2**16):
        raise UserError(f"{path}: ffn_dim_multiplier is {multiplier!r:.40}; it must be a number above 0")
    try:
        heads = params["n_heads"]
        return ModelConfig(
            dim=params["dim"],
            n_layers=params["n_layers"],
            n_heads=heads,
            n_kv_heads=params.get("n_kv_heads") or heads,
            vocab_size=params["vocab_size"],
            ffn_dim=ffn_dim(params["dim"], params.get("multiple_of", 256), params.get("ffn_dim_multiplier")),
            n_future_tokens=params.get("n_future_tokens", 1),
            norm_eps=params.get("norm_eps", 1e-5),
            rope_theta=params.get("rope_theta", 10000.0),
        )
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; it describes the architecture") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def params_of(config: ModelConfig) -> dict[str, Any]:
    """``params.json`` of an architecture, for `read_config` to read back.

    Raises:
      UserError: the layout cannot express it (scaled positions, a head width of its own, no heads).
    """
    if not config.n_future_tokens:
        raise UserError("a model that gives values only has no output matrix; Meta's layout cannot hold it")
    if config.rope_scaling or config.head_width * config.n_heads != config.dim:
        raise UserError("Meta's layout has no rope_scaling and no head_dim of its own; use --format huggingface")
    width = ffn_dim(config.dim, 1, None)
    # The rule rounds up: a multiple as large as the width itself gives that width, from any width below it.
    multiplier = None if width <= config.ffn_dim else config.ffn_dim / width
    params = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "multiple_of": config.ffn_dim,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "n_future_tokens": config.n_future_tokens,
    }
    return params | ({} if multiplier is None else {"ffn_dim_multiplier": multiplier})


def ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward by LLaMA's rule: two thirds of 4 D, scaled, rounded up."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)
