"""Model directory or run of ours -> foreign layout: tensor by tensor, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from conversion import huggingface, meta_mtp, peft
from conversion.layout import Place, places, to_theirs
from conversion.tensors import (
    DTYPES,
    Entry,
    count_not_finite,
    in_order_ahead,
    is_export,
    write_export_note,
    write_safetensors,
    write_torch,
)
from wmtp_jax.console import Steps, err
from wmtp_jax.data.tokenize import copy_tokenizer, load_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import new_directory
from wmtp_jax.load import find_model
from wmtp_jax.stored import StoredArray, stored_arrays
from wmtp_jax.volumes import check_free_space

SHARD_BYTES = 5 * 10**9  # of an exported file, about, where --shards is not given: what Hugging Face writes


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
      shards: files the weights are divided into (``huggingface``); None: one for about every 5 GB.
      adapter_only: write the adapter alone, in PEFT's format for the ``huggingface`` export.
      overwrite: replace an earlier export that is there.

    Raises:
      UserError: the model cannot be expressed in that layout, or ``dst`` may not be written.
      Failure: the disk is full.
    """
    found = find_model(src)
    config, base, adapted = found.config, found.base, found.adapter is not None
    while base is not None:
        adapted |= base.adapter is not None
        if dst.resolve() in (base.directory.resolve(), *base.directory.resolve().parents):
            raise UserError(
                f"{dst}: {src} rests on a model in there, which would be replaced; give another destination"
            )
        base = base.base
    if found.foreign:
        raise UserError(f"{src}: is in {found.foreign.layout.name} layout already; `import` it first")
    if not config.n_future_tokens:
        raise UserError(f"{src}: gives values, not tokens: it has no output matrix, which {format} needs")
    if adapter_only:
        if dtype or shards:
            raise UserError("--adapter-only writes the adapter as it is, in one file; leave out --dtype and --shards")
        return peft.export_adapter(found, dst, format=format, overwrite=overwrite)
    if shards is not None and (format != "huggingface" or shards < 1):
        raise UserError(f"--shards {shards}: it must be 1 or more, and goes with --format huggingface")
    # What is known of the model it was imported or trained from: its own params.json, its longest sequence.
    facts = found.description.source
    facts = {**(facts.get("start_source") or {}), **facts}
    if format == "meta-mtp":
        layout, params = meta_mtp.LAYOUT, facts.get("params") or meta_mtp.params_of(config)
        where_config = dataclasses.replace(config, tie_embeddings=False)  # the layout holds a tied matrix twice
    else:
        layout, params, where_config = huggingface.LAYOUT, None, config
    where = places(layout, where_config)
    arrays = stored_arrays(found)
    original = (
        found.description.source.get("dtypes", {}) if found.description.source.get("format") == layout.name else {}
    )
    entries = _entries(arrays, where, original, dtype)
    n_bytes = sum(entry.nbytes for entry in entries)

    def read(entry: Entry) -> np.ndarray:
        place = where[entry.name]
        if place.leaf == "output.kernel" and config.tie_embeddings:
            array = arrays["tok_embeddings.embedding"].read(None).T
        else:
            array = arrays[place.leaf].read(place.block)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is found
            tensor = to_theirs(array, place, layout, config).astype(entry.dtype, copy=False)
        if count := count_not_finite(tensor):
            raise UserError(f"{src}: {entry.name} has {count:,} NaN or infinite values in {entry.dtype.name}")
        return tensor

    def values(progress: Steps) -> Iterator[np.ndarray]:
        for entry, array in zip(entries, in_order_ahead(partial(read, entry) for entry in entries), strict=True):
            progress.advance(entry.nbytes, note=entry.name)
            yield array

    with (
        new_directory(dst, overwrite=overwrite, is_ours=is_export, what="export", source=found.directory) as new,
        Steps("exporting", n_bytes, in_bytes=True) as progress,
    ):
        check_free_space(new, n_bytes)
        write_export_note(new, {"format": format, "from": str(src)})
        has_tokenizer = found.tokenizer is not None and copy_tokenizer(found.tokenizer, new)
        if format == "meta-mtp":
            (new / meta_mtp.PARAMS).write_text(json.dumps(params, indent=2) + "\n")
            write_torch(new / meta_mtp.CHECKPOINT, entries, values(progress))
        else:
            kinds = {entry.dtype.name for entry in entries}
            content = huggingface.config_of(
                config,
                kinds.pop() if len(kinds) == 1 else "float32",
                load_tokenizer(new) if has_tokenizer else None,
                facts,
            )
            (new / huggingface.CONFIG).write_text(json.dumps(content, indent=2) + "\n")
            write_safetensors(new, entries, values(progress), shards or max(1, -(-n_bytes // SHARD_BYTES)))
    if not has_tokenizer:
        err.print("the model has no tokenizer; put one beside the exported weights", highlight=False)
    if format == "huggingface" and config.n_future_tokens > 1:
        err.print(f"exported the trunk and head 1; heads 2 to {config.n_future_tokens} have no place in this layout")
    if config.value_head:
        err.print("the value head has no place in this layout and was left out")
    return {
        "format": format,
        "tensors": len(entries),
        "parameters": sum(entry.nbytes // entry.dtype.itemsize for entry in entries),
        "bytes": n_bytes,
        "adapter_merged": adapted,
        "output": str(dst),
    }


def _entries(
    arrays: Mapping[str, StoredArray], where: Mapping[str, Place], original: Mapping[str, str], dtype: str | None
) -> list[Entry]:
    """What is written: in the type asked for, else the ``original`` it was imported with, else as it is stored."""
    stored = {name: array.dtype.name for name, array in arrays.items()}
    entries = []
    for name, place in where.items():
        kind = dtype or original.get(name) or stored.get(place.leaf) or stored["tok_embeddings.embedding"]
        entries.append(Entry(name, place.shape, DTYPES[kind]))
    return entries
