"""The parameters of a model on disk, in whatever form it is, one block at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from conversion.layout import places, to_ours
from conversion.source import Source
from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource, check_base, holds_params, joins_trunk
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import LoRAConfig, merged


class StoredArray(NamedTuple):
    """A parameter that is not read yet.

    Attributes:
      shape, dtype: as it is stored.
      read: gives the block of that number of a stack (None: the whole), float32 where an adapter is worked in.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]


def stored_arrays(source: ModelSource) -> dict[str, StoredArray]:
    """The parameters of a model by their dotted names, its adapter worked in; only a base is read, to compare it.

    Raises:
      UserError: they are damaged, or a base has changed.
    """
    if source.foreign:
        return _foreign_arrays(source.foreign)
    check_base(source)
    arrays = _opened(source, store.PARAMS_FOLDER) if holds_params(source) else {}
    if source.base is not None:
        arrays = {**_backbone_arrays(source.base, source.config), **arrays}
    if source.adapter is not None:
        adapter = adapter_arrays(source)
        for name in {matrix.rpartition(".")[0] for matrix in adapter}:
            kernel = arrays[f"{name}.kernel"]
            pair = adapter[f"{name}.lora_a"], adapter[f"{name}.lora_b"]
            arrays[f"{name}.kernel"] = kernel._replace(read=_merging(kernel, *pair, source.adapter))
    return arrays


def adapter_arrays(source: ModelSource) -> dict[str, StoredArray]:
    """The matrices of a model's own adapter by their dotted names. Raises UserError where they are damaged."""
    return _opened(source, store.ADAPTER_FOLDER)


def _opened(source: ModelSource, folder: str) -> dict[str, StoredArray]:
    try:
        opened = store.open_arrays(source.directory, folder)
    except ValueError as error:
        raise UserError(str(error)) from error

    def reading(name: str) -> Callable[[int | None], np.ndarray]:
        array = opened[name]
        return lambda block: np.asarray((array if block is None else array[block]).read().result())

    return {name: StoredArray(tuple(a.shape), a.dtype.numpy_dtype, reading(name)) for name, a in opened.items()}


def _merging(
    kernel: StoredArray, a: StoredArray, b: StoredArray, config: LoRAConfig
) -> Callable[[int | None], np.ndarray]:
    return lambda block: merged(kernel.read(block).astype(np.float32), a.read(block), b.read(block), config)


def _backbone_arrays(base: ModelSource, config: ModelConfig) -> dict[str, StoredArray]:
    """The arrays of a base by the names they have in a model made from it, as `wmtp_jax.load.load_backbone`."""
    arrays = stored_arrays(base)
    if not joins_trunk(base, config):
        return arrays
    result = {name: array for name, array in arrays.items() if not name.startswith((*store.STACKS, "output."))}
    for name, head in arrays.items():
        if name.startswith("heads."):
            name = f"trunk.{name.removeprefix('heads.')}"
            result[name] = _longer(arrays[name], head) if name in arrays else head
    return result


def _longer(trunk: StoredArray, head: StoredArray) -> StoredArray:
    """A stack with another one behind it."""
    n_trunk = trunk.shape[0]

    def read(block: int | None) -> np.ndarray:
        if block is None:
            return np.concatenate([trunk.read(None), head.read(None)])
        return trunk.read(block) if block < n_trunk else head.read(block - n_trunk)

    return StoredArray((n_trunk + head.shape[0], *head.shape[1:]), head.dtype, read)


def _foreign_arrays(source: Source) -> dict[str, StoredArray]:
    """What the layout has no tensor for (the value head's bias) is zero."""
    layout, config = source.layout, source.config
    there = {(place.leaf, place.block): (name, place) for name, place in places(layout, config).items()}

    def stored(leaf: str, shape: tuple[int, ...]) -> StoredArray:
        stacked = leaf.startswith(store.STACKS)
        first = there.get((leaf, 0 if stacked else None))
        if first is None:
            return StoredArray(shape, np.dtype(np.float32), lambda _: np.zeros(shape, np.float32))

        def read(block: int | None) -> np.ndarray:
            if stacked and block is None:
                return np.stack([read(number) for number in range(shape[0])])
            name, place = there[leaf, block]
            return to_ours(source.tensors[name].read(), place, layout, config)

        return StoredArray(shape, source.tensors[first[0]].dtype, read)

    return {leaf: stored(leaf, like.shape) for leaf, like in flatten_dict(store.build(config)[1], sep=".").items()}
