"""Model directory or run of ours -> foreign layout: tensor by tensor, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion import huggingface, meta_mtp, peft
from conversion.layout import places, to_theirs
from conversion.tensors import DTYPES, Entry, in_order_ahead, write_safetensors, write_torch
from wmtp_jax.console import Steps, err
from wmtp_jax.errors import UserError
from wmtp_jax.files import check_free_space, new_directory
from wmtp_jax.load import ModelSource, find_model
from wmtp_jax.models import store
from wmtp_jax.models.lora import LoRAConfig, merged

SHARD_BYTES = 5 * 10**9  # of an exported file, where --shards is not given: what Hugging Face writes


def export_model(
    src: str | Path,
    dst: Path,
    *,
    format: str,
    dtype: str | None = None,
    shards: int | None = None,
    adapter_only: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model of ours in a foreign layout; an adapter is worked into the weights.

    Args:
      src: a model directory, or a run directory (``@latest``, ``@<step>``).
      dst: folder of the result; appears when it is whole.
      format: ``meta-mtp`` (every head) or ``huggingface`` (trunk and head 1).
      dtype: type of all weights; None keeps each as it is stored, and as it was where it was imported.
      shards: files the weights are divided into (``huggingface``); None: as many as keep each below 5 GB.
      adapter_only: write the adapter alone, in PEFT's format for the ``huggingface`` export.
      overwrite: replace a folder of weights that is there.

    Raises:
      UserError: the model cannot be expressed in that layout, or ``dst`` may not be written.
      Failure: the disk is full.
    """
    found = find_model(src)
    if found.foreign:
        raise UserError(f"{src}: is in {found.foreign.layout.name} layout already; `import` it first")
    if not found.config.n_future_tokens:
        raise UserError(f"{src}: gives values, not tokens: it has no output matrix, which {format} needs")
    if adapter_only:
        return peft.export_adapter(found, dst, format=format, overwrite=overwrite)
    if shards is not None and (format != "huggingface" or shards < 1):
        raise UserError(f"--shards {shards}: it must be 1 or more, and goes with --format huggingface")
    layout = meta_mtp.LAYOUT if format == "meta-mtp" else huggingface.LAYOUT
    config = found.config
    params = _meta_params(found) if layout is meta_mtp.LAYOUT else None
    if layout is meta_mtp.LAYOUT and config.tie_embeddings:
        config = dataclasses.replace(config, tie_embeddings=False)  # the layout holds the matrix twice
    where = places(layout, config)
    arrays = _open(found.directory, store.PARAMS_FOLDER)
    adapter = _open(found.directory, store.ADAPTER_FOLDER) if found.adapter else {}
    same_layout = found.description.source.get("format") == layout.name
    original = found.description.source.get("dtypes", {}) if same_layout else {}
    entries = []
    for name, place in where.items():
        stored = np.dtype(arrays[_stored_leaf(place.leaf, arrays)].dtype.numpy_dtype)
        entries.append(Entry(name, place.shape, DTYPES[dtype or original.get(name, stored.name)]))
    n_bytes = sum(entry.nbytes for entry in entries)

    def values(progress: Steps) -> Iterator[np.ndarray]:
        def read(entry: Entry) -> np.ndarray:
            place = where[entry.name]
            array = _read_block(place.leaf, place.block, arrays, adapter, found.adapter)
            return to_theirs(array, place, layout, config).astype(entry.dtype, copy=False)

        for entry, array in zip(entries, in_order_ahead(partial(read, entry) for entry in entries), strict=True):
            progress.advance(entry.nbytes, note=entry.name)
            yield array

    with (
        new_directory(dst, overwrite=overwrite, is_ours=_is_export, what="folder of weights") as new,
        Steps("exporting", n_bytes, in_bytes=True) as progress,
    ):
        check_free_space(new, n_bytes)
        tokenizer = _export_tokenizer(found, new)
        if layout is meta_mtp.LAYOUT:
            (new / meta_mtp.PARAMS).write_text(json.dumps(params, indent=2) + "\n")
            write_torch(new / meta_mtp.CHECKPOINT, entries, values(progress))
        else:
            kinds = {entry.dtype.name for entry in entries}
            length = found.description.source.get("max_position_embeddings", 2048)
            content = huggingface.config_of(config, kinds.pop() if len(kinds) == 1 else "float32", tokenizer, length)
            (new / huggingface.CONFIG).write_text(json.dumps(content, indent=2) + "\n")
            write_safetensors(new, entries, values(progress), shards or max(1, -(-n_bytes // SHARD_BYTES)))
    if layout is huggingface.LAYOUT and config.n_future_tokens > 1:
        err.print(f"exported the trunk and head 1; heads 2 to {config.n_future_tokens} have no place in this layout")
    return {
        "format": format,
        "tensors": len(entries),
        "parameters": sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
        "bytes": n_bytes,
        "adapter_merged": found.adapter is not None,
        "output": str(dst),
    }


def _is_export(directory: Path) -> bool:
    names = (meta_mtp.CHECKPOINT, huggingface.CONFIG, peft.CONFIG)
    return any((directory / name).is_file() for name in names) and not store.is_model_directory(directory)


def _open(directory: Path, folder: str) -> dict[str, Any]:
    try:
        return store.open_arrays(directory, folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def _stored_leaf(leaf: str, arrays: dict[str, Any]) -> str:
    """The stored array a leaf is read from: the embedding, where the output matrix is tied to it."""
    return leaf if leaf in arrays else "tok_embeddings.embedding"


def _read_block(
    leaf: str, index: int | None, arrays: dict[str, Any], adapter: dict[str, Any], config: LoRAConfig | None
) -> np.ndarray:
    """One block's array, with the adapter worked in."""
    stored = _stored_leaf(leaf, arrays)
    pick = (lambda array: array) if index is None else (lambda array: array[index])
    array = np.asarray(pick(arrays[stored]).read().result())
    array = array.T if stored != leaf else array
    module = leaf.removesuffix(".kernel")
    if config and f"{module}.lora_a" in adapter:
        a, b = (np.asarray(pick(adapter[f"{module}.{name}"]).read().result()) for name in ("lora_a", "lora_b"))
        array = merged(array, a, b, config)
    return array


def _meta_params(found: ModelSource) -> dict[str, Any]:
    """``params.json``: the original one, where the model was imported from that layout."""
    params = found.description.source.get("params")
    return params if isinstance(params, dict) else meta_mtp.params_of(found.config)


def _export_tokenizer(found: ModelSource, folder: Path) -> Any:
    """Copies the tokenizer's files; returns it, or None where the model has none."""
    if found.tokenizer is None:
        err.print("the model has no tokenizer; put one beside the exported weights", highlight=False)
        return None
    from wmtp_jax.data.tokenize import load_tokenizer

    for file in found.tokenizer.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    return load_tokenizer(found.tokenizer)
