"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): ``x W + alpha / rank * (dropout(x) A) B``.

An adapter is a nested dict beside the parameters, with ``lora_a`` (..., in, rank) and ``lora_b``
(..., rank, out) where the parameters have ``kernel`` (..., in, out); leading axes count stacked blocks.
While it is trained it hangs on the projections of the model (`attach`), so that neither a merged kernel nor
the gradient of one is ever made; where a model is only read, it is worked into the kernels (`merge`).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

ADAPTER = "lora"  # where an adapter stands beside the parameters while it is trained
PROJECTIONS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
_DROPOUT_STREAM = 2**16  # apart from what the value head draws from the same key


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Size and strength of an adapter.

    Attributes:
      rank: inner width r.
      alpha: the product A B is multiplied by ``alpha / rank``.
      dropout: part of an adapter's input that is left out in training.
      targets: regular expressions, searched in the dotted names of the projections (``trunk.attention.wq``).

    Raises:
      ValueError: a value is out of range, or a target is no regular expression.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # a list, as it stands in a JSON file
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA rank {self.rank} and alpha {self.alpha} must be above 0, dropout {self.dropout} in [0, 1)"
            )
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"LoRA target {target!r} is no regular expression ({error})") from error

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / self.rank


class Adapter(nnx.Module):
    """What an adapter adds to the output of one projection.

    Args:
      lora_a, lora_b: (..., in, rank) and (..., rank, out); leading axes as the projection's kernel has them.
      config: its strength.
      key: keys of the dropout, one for each block of a stack; None: nothing is left out.
    """

    def __init__(self, lora_a: Array, lora_b: Array, config: LoRAConfig, key: Array | None):
        self.lora_a, self.lora_b = nnx.Param(lora_a), nnx.Param(lora_b)
        self.scale, self.dropout = config.scale, config.dropout
        self.key = None if key is None else nnx.Variable(key)

    def down(self, x: Array) -> Array:
        """``alpha / rank * dropout(x) A``, (..., rank), in the type of ``x`` (..., in)."""
        if self.key is not None:
            kept = jax.random.bernoulli(self.key[...], 1.0 - self.dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - self.dropout), 0.0).astype(x.dtype)
        return (x @ self.lora_a[...].astype(x.dtype)) * self.scale

    def __call__(self, x: Array) -> Array:
        """What is added to the projection of ``x``, in its type."""
        return self.down(x) @ self.lora_b[...].astype(x.dtype)


def attach(model: Any, adapter: Mapping[str, Any], config: LoRAConfig, key: Array | None = None) -> None:
    """Hangs an adapter on the projections of a model.

    Args:
      model: whose projections are `wmtp_jax.models.layers.Linear`.
      adapter: the nested dict.
      config: its strength.
      key: of the dropout; None: nothing is left out.
    """
    for number, (name, (lora_a, lora_b)) in enumerate(_matrices(adapter).items()):
        own = None
        if key is not None and config.dropout:
            own = jax.random.split(jax.random.fold_in(key, _DROPOUT_STREAM + number), lora_a.shape[:-2])
        functools.reduce(getattr, name.split("."), model).adapter = Adapter(lora_a, lora_b, config, own)


def find_targets(shapes: Mapping[str, Any], config: LoRAConfig) -> list[str]:
    """Names of the projections that are adapted, e.g. ``trunk.attention.wq``; the value head has none.

    Raises:
      ValueError: a pattern matches nothing.
    """
    names = [name.removesuffix(".kernel") for name in sorted(flatten_dict(shapes, sep=".")) if name.endswith(".kernel")]
    names = [name for name in names if not name.startswith("value_head")]
    for pattern in config.targets:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"lora.targets: {pattern!r} matches no projection; there are: {', '.join(names) or 'none'}"
            )
    return [name for name in names if any(re.search(pattern, name) for pattern in config.targets)]


def init_adapter(shapes: Mapping[str, Any], config: LoRAConfig, seed: int) -> dict[str, Any]:
    """A fresh adapter, float32, for parameters of these shapes: A random, B zero, so that it changes nothing yet.

    Raises:
      ValueError: as `find_targets`.
    """
    kernels = flatten_dict(shapes, sep=".")
    result = {}
    for number, name in enumerate(find_targets(shapes, config)):
        *stack, n_in, n_out = kernels[f"{name}.kernel"].shape
        key = jax.random.fold_in(jax.random.key(seed), number)
        result[f"{name}.lora_a"] = jax.random.normal(key, (*stack, n_in, config.rank)) / n_in**0.5
        result[f"{name}.lora_b"] = jnp.zeros((*stack, config.rank, n_out))
    return unflatten_dict(result, sep=".")


def merged(kernel: Any, lora_a: Any, lora_b: Any, config: LoRAConfig) -> Any:
    """``W + alpha / rank * A B`` in float32, in the type of ``kernel``; numpy or jax arrays."""
    if isinstance(kernel, np.ndarray):
        change = np.matmul(lora_a.astype(np.float32), lora_b.astype(np.float32)) * np.float32(config.scale)
        return (kernel.astype(np.float32) + change).astype(kernel.dtype)
    if kernel.ndim > 2:  # block by block: only one product exists at a time
        return jax.lax.map(lambda block: merged(block[0], block[1], block[2], config), (kernel, lora_a, lora_b))
    change = (lora_a.astype(jnp.float32) @ lora_b.astype(jnp.float32)) * config.scale
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)


def merge(params: Mapping[str, Any], adapter: Mapping[str, Any], config: LoRAConfig) -> dict[str, Any]:
    """Parameters with the adapter worked in."""
    result = flatten_dict(params, sep=".")
    for name, (lora_a, lora_b) in _matrices(adapter).items():
        result[f"{name}.kernel"] = merged(result[f"{name}.kernel"], lora_a, lora_b, config)
    return unflatten_dict(result, sep=".")


def _matrices(adapter: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """A and B of each projection, by its dotted name, in order."""
    flat = flatten_dict(adapter, sep=".")
    names = sorted(name.removesuffix(".lora_a") for name in flat if name.endswith(".lora_a"))
    return {name: (flat[f"{name}.lora_a"], flat[f"{name}.lora_b"]) for name in names}
