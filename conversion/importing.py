"""Foreign checkpoint -> model directory of ours: piece by piece, in bounded memory."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from conversion import huggingface, meta_mtp
from conversion.layout import Place, absent_leaves, places, to_ours
from conversion.source import Source, checksums, find_files, open_source
from conversion.tensors import DTYPES, count_not_finite, in_order_ahead
from wmtp_jax.console import Steps, err
from wmtp_jax.data.tokenize import copy_tokenizer
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.files import new_directory
from wmtp_jax.models import store
from wmtp_jax.parallel.sharding import parameter_name
from wmtp_jax.volumes import check_free_space


def import_model(
    src: Path, dst: Path, *, format: str = "auto", dtype: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Makes a model directory of ours from a foreign checkpoint.

    Args:
      src: the checkpoint's directory, or its weight file there.
      dst: the model directory; appears when it is whole.
      format: as in `open_source`.
      dtype: type of all weights; None keeps each as it is.
      overwrite: replace a model directory that is there.

    Returns:
      Figures: format, architecture, parameters, bytes, checksums.

    Raises:
      UserError: the source is damaged, incomplete or holds NaN, or ``dst`` may not be written.
      Failure: the disk is full.
    """
    with (
        checksums(find_files(src).files) as sha256,
        new_directory(dst, overwrite=overwrite, is_ours=store.is_model_directory, what="model", source=src) as new,
    ):
        source = open_source(src, format)
        shapes, original = _stored_shapes(source, dtype)
        n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        check_free_space(new, n_bytes)
        with Steps("importing", n_bytes, in_bytes=True) as progress:
            try:
                store.write_params_streamed(new, shapes, _parts(source, shapes, dtype, progress))
            except ValueError as error:  # tensorstore's own; a full disk among them
                raise _write_failure(dst, error) from error
        tokenizer = copy_tokenizer(source.directory, new / store.TOKENIZER_FOLDER)
        facts: dict[str, Any] = {
            "format": source.layout.name,
            "files": {name: future.result() for name, future in sha256.items()},
            **({"dtypes": original} if original else {}),
        }
        if source.layout is meta_mtp.LAYOUT:
            facts["params"] = meta_mtp.read_params(source.directory)
        elif (source.directory / huggingface.CONFIG).is_file():
            facts |= huggingface.kept_facts(source.directory / huggingface.CONFIG)
        store.write_description(new, source.config, facts)
    if not tokenizer:
        err.print(f"{src}: no tokenizer beside the weights; training needs model.tokenizer then", highlight=False)
    return {
        "format": source.layout.name,
        "architecture": dataclasses.asdict(source.config),
        "parameters": store.count_params(shapes),
        "bytes": n_bytes,
        "sha256": facts["files"],
        "passed_over": len(source.ignored),
        "tokenizer": tokenizer,
        "output": str(dst),
    }


class _Piece(NamedTuple):
    """Part of a foreign tensor, as it is written at ``area`` of its place, and how many values are no numbers."""

    name: str
    place: Place
    area: store.Index
    array: np.ndarray
    not_finite: int


def _parts(
    source: Source, shapes: dict[str, Any], dtype: str | None, progress: Steps
) -> Iterator[tuple[str, store.Index, np.ndarray]]:
    """What `store.write_params_streamed` takes. Raises UserError, at the end, naming every tensor with NaN."""
    bad: Counter[str] = Counter()
    for name, place, area, array, not_finite in in_order_ahead(_pieces(source, shapes)):
        if not_finite:
            bad[name] += not_finite
        if not bad:
            yield place.leaf, area if place.block is None else (place.block, *area), array
        progress.advance(array.nbytes, note=name)
    if bad:
        listing = "\n  ".join(f"{name}: {count:,} values" for name, count in bad.items())
        raise UserError(
            f"{source.directory}: NaN or infinite values{f' in {dtype}' if dtype else ''}:\n  {listing}\n"
            f"The weights are damaged{' or too large for that type' if dtype else ''}."
        )
    for name, shape in absent_leaves(source.layout, source.config).items():
        yield name, (), np.zeros(shape, store.get_leaf(shapes, name).dtype)


def _pieces(source: Source, shapes: dict[str, Any]) -> Iterator[Callable[[], _Piece]]:
    where = places(source.layout, source.config)
    # In the file's order: what the checksum reads is at hand in the page cache.
    for name, tensor in sorted(source.tensors.items(), key=lambda item: (item[1].path, item[1].offset)):
        place, values = where[name], tensor.read()
        leaf = store.get_leaf(shapes, place.leaf)
        for area in store.write_areas(place.leaf, leaf.shape):
            yield partial(_read_piece, name, values, place, area, leaf.dtype, source)


def _read_piece(
    name: str, values: np.ndarray, place: Place, area: store.Index, dtype: np.dtype, source: Source
) -> _Piece:
    values = values[area[::-1] if place.leaf.endswith("kernel") else area]
    with np.errstate(over="ignore"):  # what does not fit into the type becomes infinite, and is found by the caller
        values = values.astype(dtype, copy=False)
    array = to_ours(values, place, source.layout, source.config)
    return _Piece(name, place, area, array, count_not_finite(array))


def _stored_shapes(source: Source, dtype: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Our tree of shapes and types, and the types of tensors that are stored in a wider one.

    The blocks of a stack share one type, the widest among them, which holds the others' values exactly.
    """
    types: dict[str, np.dtype] = {}
    where = places(source.layout, source.config)
    for name, place in where.items():
        one = DTYPES[dtype] if dtype else source.tensors[name].dtype
        known = types.get(place.leaf, one)
        types[place.leaf] = known if known == one else DTYPES["float32"]
    original = {
        name: source.tensors[name].dtype.name
        for name, place in where.items()
        if not dtype and source.tensors[name].dtype != types[place.leaf]
    }
    shapes: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(store.build(source.config)[1]):
        name = parameter_name(path)
        kind = types.get(name) or types[f"{name.removesuffix('bias')}kernel"]  # a bias the layout has none of
        store.set_leaf(shapes, name, jax.ShapeDtypeStruct(leaf.shape, kind))
    return shapes, original


def _write_failure(dst: Path, error: Exception) -> Exception:
    text = str(error)
    if "No space left" in text or "File too large" in text or "Disk quota" in text:
        return Failure(
            f"{dst}: the disk is full; nothing was left there. Free some space or give a destination on another disk"
        )
    return Failure(f"{dst}: cannot be written ({text.splitlines()[0]})")
