"""Meta's multi-token-prediction checkpoints: ``consolidated.pth`` + ``params.json``.

The layout, as `facebook/multi-token-prediction` publishes it: weights are torch [out, in];
``layers`` holds the trunk blocks and, last, the block of head 1; ``extra_heads`` the blocks of heads
2 to n; rotary positions pair neighbouring elements (2i, 2i+1), ours pair i with i + H/2, so the
rows of query and key matrices are permuted on the way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig

CHECKPOINT, PARAMS = "consolidated.pth", "params.json"

# Our name of a block's weight -> Meta's.
BLOCK_NAMES = {
    "attention.wq.kernel": "attention.wq.weight",
    "attention.wk.kernel": "attention.wk.weight",
    "attention.wv.kernel": "attention.wv.weight",
    "attention.wo.kernel": "attention.wo.weight",
    "feed_forward.w1.kernel": "feed_forward.w1.weight",
    "feed_forward.w2.kernel": "feed_forward.w2.weight",
    "feed_forward.w3.kernel": "feed_forward.w3.weight",
    "attention_norm.scale": "attention_norm.weight",
    "ffn_norm.scale": "ffn_norm.weight",
}
SHARED_NAMES = {
    "tok_embeddings.embedding": "tok_embeddings.weight",
    "output.kernel": "output.weight",
    "norm.scale": "norm.weight",
}
IGNORED = {"rope.freqs"}


def is_meta_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a checkpoint in this layout."""
    return (directory / PARAMS).is_file() and (directory / CHECKPOINT).is_file()


def read_config(directory: Path) -> ModelConfig:
    """The architecture in ``params.json``; defaults are those of Meta's reference code.

    Raises:
      UserError: broken JSON, a missing field, or sizes that do not fit together.
    """
    path = directory / PARAMS
    try:
        params = json.loads(path.read_text())
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
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: not JSON ({error.msg})") from error
    except KeyError as error:
        raise UserError(f"{path}: the field {error} is missing; it describes the architecture") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def ffn_dim(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Width of the feed-forward by LLaMA's rule: two thirds of 4 D, scaled, rounded up."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def load(directory: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a checkpoint.

    Returns:
      The architecture and the parameters in our layout, a nested dict of numpy arrays.

    Raises:
      UserError: torch is not installed, the file is damaged, or tensors are missing, unexpected
        or of another shape (all of them are listed).
    """
    config = read_config(directory)
    tensors = _read_tensors(directory / CHECKPOINT)
    _check(tensors, config, directory / CHECKPOINT)
    return config, from_meta(tensors, config)


def from_meta(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Any]:
    """Tensors by Meta's names -> our nested dict of parameters (weights [in, out], blocks stacked)."""
    result: dict[str, Any] = {}
    for ours, meta in SHARED_NAMES.items():
        _set(result, ours, _to_ours(ours, tensors[meta], config))
    for stack, prefixes in _block_prefixes(config).items():
        for ours, meta in BLOCK_NAMES.items():
            blocks = [_to_ours(ours, tensors[f"{prefix}.{meta}"], config) for prefix in prefixes]
            _set(result, f"{stack}.{ours}", np.stack(blocks))
    return result


def to_meta(params: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients) by Meta's names and shapes: the inverse of `from_meta`."""
    result = {}
    for ours, meta in SHARED_NAMES.items():
        result[meta] = _to_meta(ours, _get(params, ours), config)
    for stack, prefixes in _block_prefixes(config).items():
        for ours, meta in BLOCK_NAMES.items():
            stacked = _get(params, f"{stack}.{ours}")
            for i, prefix in enumerate(prefixes):
                result[f"{prefix}.{meta}"] = _to_meta(ours, stacked[i], config)
    return result


def meta_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this architecture holds."""
    D, V, F = config.dim, config.vocab_size, config.ffn_dim
    kv = config.n_kv_heads * config.head_dim
    block = {
        "attention.wq.weight": (D, D),
        "attention.wk.weight": (kv, D),
        "attention.wv.weight": (kv, D),
        "attention.wo.weight": (D, D),
        "feed_forward.w1.weight": (F, D),
        "feed_forward.w2.weight": (D, F),
        "feed_forward.w3.weight": (F, D),
        "attention_norm.weight": (D,),
        "ffn_norm.weight": (D,),
    }
    shapes = {"tok_embeddings.weight": (V, D), "output.weight": (V, D), "norm.weight": (D,)}
    for prefixes in _block_prefixes(config).values():
        shapes |= {f"{prefix}.{name}": shape for prefix in prefixes for name, shape in block.items()}
    return shapes


def _block_prefixes(config: ModelConfig) -> dict[str, list[str]]:
    trunk = config.n_trunk_layers
    extra = [f"extra_heads.{i}" for i in range(config.n_future_tokens - 1)]
    return {"trunk": [f"layers.{i}" for i in range(trunk)], "heads": [f"layers.{trunk}", *extra]}


def _to_ours(name: str, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    if name.endswith(("wq.kernel", "wk.kernel")):  # [(head, pair, 2), in] -> [(head, 2, pair), in]
        weight = weight.reshape(-1, config.head_dim // 2, 2, config.dim).swapaxes(1, 2)
        weight = weight.reshape(-1, config.dim)
    return np.ascontiguousarray(weight.T) if name.endswith("kernel") else weight


def _to_meta(name: str, weight: Any, config: ModelConfig) -> np.ndarray:
    weight = np.asarray(weight)
    weight = weight.T if name.endswith("kernel") else weight
    if name.endswith(("wq.kernel", "wk.kernel")):
        weight = weight.reshape(-1, 2, config.head_dim // 2, config.dim).swapaxes(1, 2)
        weight = weight.reshape(-1, config.dim)
    return np.ascontiguousarray(weight)


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file and reading it needs torch; install it with `pip install 'wmtp-jax[convert]'`"
        ) from error
    try:
        # weights_only: a pickle that would run code is refused before anything of it runs.
        tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds; the remedy is the same for all
        raise UserError(
            f"{path}: torch cannot read it as a weights-only checkpoint ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); copy or download the file again"
        ) from error
    if not isinstance(tensors, dict) or not all(hasattr(t, "shape") for t in tensors.values()):
        raise UserError(f"{path}: expected a dictionary of tensors by name, as Meta publishes it")
    return {name: _to_numpy(tensor) for name, tensor in tensors.items() if name not in IGNORED}


def _to_numpy(tensor: Any) -> np.ndarray:
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16 of its own: pass the bits
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _check(tensors: Mapping[str, np.ndarray], config: ModelConfig, path: Path) -> None:
    expected = meta_shapes(config)
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    problems += [f"unexpected: {name} {tensor.shape}" for name, tensor in tensors.items() if name not in expected]
    problems += [
        f"shape: {name} is {tensors[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(
            f"{path} does not hold the tensors that {PARAMS} beside it describes:\n  {listing}\n"
            "Check that both files belong to the same model."
        )


def _get(tree: Mapping[str, Any], name: str) -> Any:
    for key in name.split("."):
        tree = tree[key]
    return tree


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
