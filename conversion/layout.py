"""What a foreign checkpoint calls our parameters, and how its tensors differ from ours.

Foreign weights are torch [out, in], ours [in, out] with blocks stacked. In `neighbours` layouts
(Meta's) rotary positions pair elements (2i, 2i+1); ours and Hugging Face's pair i with i + H/2, so the
rows of query and key matrices are permuted on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.sharding import parameter_name


@dataclass(frozen=True)
class Layout:
    """Names in one kind of checkpoint.

    Attributes:
      name: as in ``import --format``.
      shared: our leaf -> its name there, for what is not in blocks.
      block: our leaf inside a block -> its name there, without the block's prefix.
      prefixes: architecture -> prefix of every block of ``trunk`` and of ``heads``, in our order.
      neighbours: rotary positions pair neighbouring elements.
      ignored: tensors that may be there and are passed over.
    """

    name: str
    shared: Mapping[str, str]
    block: Mapping[str, str]
    prefixes: Callable[[ModelConfig], dict[str, list[str]]]
    neighbours: bool
    ignored: re.Pattern[str]


class Place(NamedTuple):
    """Where a foreign tensor belongs.

    Attributes:
      leaf: dotted name of our parameter.
      block: place in the stack; None where there is no stack.
      shape: the foreign tensor's shape.
    """

    leaf: str
    block: int | None
    shape: tuple[int, ...]


def places(layout: Layout, config: ModelConfig) -> dict[str, Place]:
    """Every tensor that a checkpoint of this architecture holds, by its foreign name."""
    prefixes = layout.prefixes(config)
    result = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(store.build(config)[1]):
        name = parameter_name(path)
        stack, _, inner = name.partition(".")
        if stack in prefixes:
            for index, prefix in enumerate(prefixes[stack]):
                result[f"{prefix}.{layout.block[inner]}"] = Place(name, index, _foreign_shape(name, leaf.shape[1:]))
        elif name in layout.shared:
            result[layout.shared[name]] = Place(name, None, _foreign_shape(name, leaf.shape))
    return result


def absent_leaves(layout: Layout, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of our leaves that the layout has no tensor for (the value head's bias): they are zero."""
    there = {place.leaf for place in places(layout, config).values()}
    leaves = jax.tree_util.tree_leaves_with_path(store.build(config)[1])
    return {name: leaf.shape for path, leaf in leaves if (name := parameter_name(path)) not in there}


def to_ours(tensor: np.ndarray, place: Place, layout: Layout, config: ModelConfig) -> np.ndarray:
    """A foreign tensor, or some of its columns, as our parameter (or as its place in the stack)."""
    if layout.neighbours and _is_rotary(place.leaf):  # [(head, pair, 2), in] -> [(head, 2, pair), in]
        n_in = tensor.shape[1]
        tensor = tensor.reshape(-1, config.head_width // 2, 2, n_in).swapaxes(1, 2).reshape(-1, n_in)
    return _transposed(tensor) if place.leaf.endswith("kernel") else tensor


def to_theirs(array: np.ndarray, place: Place, layout: Layout, config: ModelConfig) -> np.ndarray:
    """The inverse of `to_ours`, bit for bit."""
    tensor = _transposed(array) if place.leaf.endswith("kernel") else array
    if layout.neighbours and _is_rotary(place.leaf):
        tensor = tensor.reshape(-1, 2, config.head_width // 2, config.dim).swapaxes(1, 2).reshape(-1, config.dim)
    return tensor


def tree_to_ours(tensors: Mapping[str, np.ndarray], layout: Layout, config: ModelConfig) -> dict[str, Any]:
    """All foreign tensors as our nested dict of parameters, in memory; zeros for what the layout has none of."""
    stacks: dict[str, list[np.ndarray]] = {}
    result: dict[str, Any] = {}
    for name, place in places(layout, config).items():
        array = to_ours(np.asarray(tensors[name]), place, layout, config)
        if place.block is None:
            store.set_leaf(result, place.leaf, array)
        else:
            stacks.setdefault(place.leaf, []).append(array)
    for leaf in list(stacks):
        store.set_leaf(result, leaf, np.stack(stacks.pop(leaf)))
    for leaf, shape in absent_leaves(layout, config).items():
        store.set_leaf(result, leaf, np.zeros(shape, np.float32))
    return result


def tree_to_theirs(params: Mapping[str, Any], layout: Layout, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients) by foreign names: the inverse of `tree_to_ours`."""
    result = {}
    for name, place in places(layout, config).items():
        array = np.asarray(store.get_leaf(params, place.leaf))
        array = array if place.block is None else array[place.block]
        result[name] = to_theirs(array, place, layout, config)
    return result


def differences(found: Mapping[str, tuple[int, ...]], layout: Layout, config: ModelConfig) -> list[str]:
    """All that is missing, unexpected or misshapen in a checkpoint, one line each; empty if it fits.

    Args:
      found: shape of every tensor that is there, without those that are passed over.
      layout: whose names.
      config: the architecture it should hold.
    """
    expected = places(layout, config)
    lines = [f"missing: {name} {place.shape}" for name, place in expected.items() if name not in found]
    lines += [f"unexpected: {name} {shape}" for name, shape in found.items() if name not in expected]
    lines += [
        f"shape: {name} is {found[name]}, expected {place.shape}"
        for name, place in expected.items()
        if name in found and tuple(found[name]) != place.shape
    ]
    return lines


def _transposed(array: np.ndarray) -> np.ndarray:
    """A row-major copy of ``array.T``, several times as fast as numpy's, which walks one side line by line."""
    bits = array.view(f"u{array.itemsize}")  # numpy copies its own types faster than bfloat16
    result = np.empty(array.shape[::-1], bits.dtype)
    n_rows, n_columns = bits.shape
    for column in range(0, n_columns, 1024):  # what is read and written at a time stays in the cache
        columns = slice(column, column + 1024)
        for row in range(0, n_rows, 8):
            result[columns, row : row + 8] = bits[row : row + 8, columns].T
    return result.view(array.dtype)


def _foreign_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if leaf.endswith("kernel") else shape


def _is_rotary(leaf: str) -> bool:
    return leaf.endswith(("wq.kernel", "wk.kernel"))
