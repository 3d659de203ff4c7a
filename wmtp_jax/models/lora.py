"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): ``W + alpha / rank * A B`` for chosen projections.

An adapter is a nested dict beside the parameters, with ``lora_a`` (..., in, rank) and ``lora_b``
(..., rank, out) where the parameters have ``kernel`` (..., in, out); leading axes count stacked blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ADAPTER = "lora"  # where an adapter stands beside the parameters while it is trained
PROJECTIONS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Size and strength of an adapter.

    Attributes:
      rank: inner width r.
      alpha: the product A B is multiplied by ``alpha / rank``.
      targets: projections that are adapted, of `PROJECTIONS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # a list, as it stands in a JSON file
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"LoRA rank {self.rank} and alpha {self.alpha} must be above 0")
        if unknown := set(self.targets) - set(PROJECTIONS):
            raise ValueError(f"LoRA targets {sorted(unknown)} are unknown; there are {', '.join(PROJECTIONS)}")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / self.rank


def init_adapter(shapes: Mapping[str, Any], config: LoRAConfig, seed: int) -> dict[str, Any]:
    """A fresh adapter for parameters of these shapes: A random, B zero, so that it changes nothing yet."""

    def build(tree: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        result = {}
        for number, (name, value) in enumerate(sorted(tree.items())):
            here = jax.random.fold_in(key, number)
            if name in config.targets:
                *stack, n_in, n_out = value["kernel"].shape
                a = jax.random.normal(here, (*stack, n_in, config.rank)) / n_in**0.5
                result[name] = {"lora_a": a, "lora_b": jnp.zeros((*stack, config.rank, n_out))}
            elif isinstance(value, Mapping) and (inner := build(value, here)):
                result[name] = inner
        return result

    return build(shapes, jax.random.key(seed))


def merged(kernel: Any, lora_a: Any, lora_b: Any, config: LoRAConfig) -> Any:
    """``W + alpha / rank * A B`` in float32, in the type of ``kernel``; numpy or jax arrays."""
    product = np.matmul if isinstance(kernel, np.ndarray) else jnp.matmul
    change = product(lora_a.astype(np.float32), lora_b.astype(np.float32)) * np.float32(config.scale)
    return (kernel.astype(np.float32) + change).astype(kernel.dtype)


def merge(params: Mapping[str, Any], adapter: Mapping[str, Any], config: LoRAConfig) -> dict[str, Any]:
    """Parameters with the adapter worked in."""
    result = {}
    for name, value in params.items():
        part = adapter.get(name)
        if part is None:
            result[name] = value
        elif "lora_a" in part:
            result[name] = {**value, "kernel": merged(value["kernel"], part["lora_a"], part["lora_b"], config)}
        else:
            result[name] = merge(value, part, config)
    return result


def worked_in(params: Mapping[str, Any], config: LoRAConfig | None) -> Mapping[str, Any]:
    """The parameters of the model, where an adapter that is trained stands beside them (under `ADAPTER`)."""
    if config is None:
        return params
    return merge({name: part for name, part in params.items() if name != ADAPTER}, params[ADAPTER], config)
