"""Import and export: tensor by tensor from the source's files to the destination's, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from conversion import huggingface, meta_mtp, peft
from conversion.layout import Place, absent_leaves, places, to_ours, to_theirs
from conversion.source import Source, open_source, sha256
from conversion.tensors import DTYPES, Entry, Tensor, write_safetensors, write_torch
from wmtp_jax.console import Steps, err
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.files import check_free_space, new_directory
from wmtp_jax.load import ModelSource, find_model
from wmtp_jax.models import store
from wmtp_jax.models.lora import LoRAConfig, merged
from wmtp_jax.parallel.sharding import parameter_name

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
EXPORT_FORMATS = ("meta-mtp", "huggingface")
_JOBS_AHEAD = 2  # tensors, or parts of them, that are read and turned while one is written
T = TypeVar("T")
SHARD_BYTES = 5 * 10**9  # of an exported file, where --shards is not given: what Hugging Face writes


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
    source = open_source(src, format)
    where = places(source.layout, source.config)
    shapes, original = _stored_shapes(source, dtype)
    n_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    with (
        new_directory(dst, overwrite=overwrite, is_ours=store.is_model_directory, what="model directory") as new,
        ThreadPoolExecutor(1) as background,
        Steps("importing", n_bytes, in_bytes=True) as progress,
    ):
        check_free_space(new, n_bytes)
        checksums = [background.submit(sha256, file) for file in source.files]

        def pieces() -> Iterator[Callable[[], _Piece]]:
            # In the file's order: what the checksum reads is at hand in the page cache.
            for name, tensor in sorted(source.tensors.items(), key=lambda item: (item[1].path, item[1].offset)):
                leaf = store.get_leaf(shapes, where[name].leaf)
                for area in store.write_areas(where[name].leaf, leaf.shape):
                    yield partial(_read_piece, name, tensor, where[name], area, leaf.dtype, source)

        def parts() -> Iterator[tuple[str, store.Index, np.ndarray]]:
            bad: Counter[str] = Counter()
            for name, place, area, array in _ahead(pieces()):
                if not _all_finite(array):
                    bad[name] += int(np.count_nonzero(~np.isfinite(array.astype(np.float32))))
                if not bad:
                    yield place.leaf, area if place.block is None else (place.block, *area), array
                progress.advance(array.nbytes, note=name)
            if bad:
                listing = "\n  ".join(f"{name}: {count:,} values" for name, count in bad.items())
                raise UserError(
                    f"{src}: NaN or infinite values{f' in {dtype}' if dtype else ''}:\n  {listing}\n"
                    f"The weights are damaged{' or too large for that type' if dtype else ''}."
                )
            for name, shape in absent_leaves(source.layout, source.config).items():
                yield name, (), np.zeros(shape, store.get_leaf(shapes, name).dtype)

        try:
            store.write_params_streamed(new, shapes, parts())
        except ValueError as error:  # tensorstore's own; a full disk among them
            raise _write_failure(dst, error) from error
        tokenizer = _import_tokenizer(source, new / store.TOKENIZER_FOLDER)
        facts = {
            "format": source.layout.name,
            "files": {file.name: future.result() for file, future in zip(source.files, checksums, strict=True)},
            **({"dtypes": original} if original else {}),
        }
        if source.layout is meta_mtp.LAYOUT:
            facts["params"] = meta_mtp.read_params(source.directory)
        elif (source.directory / huggingface.CONFIG).is_file():
            content = huggingface.read_json(source.directory / huggingface.CONFIG)
            facts["max_position_embeddings"] = content.get("max_position_embeddings", 2048)
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

        for entry, array in zip(entries, _ahead(partial(read, entry) for entry in entries), strict=True):
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


class _Piece(NamedTuple):
    """Part of a foreign tensor, as it is written at ``area`` of its place."""

    name: str
    place: Place
    area: store.Index
    array: np.ndarray


def _read_piece(name: str, tensor: Tensor, place: Place, area: store.Index, dtype: np.dtype, source: Source) -> _Piece:
    theirs = area[::-1] if place.leaf.endswith("kernel") else area
    values = tensor.read()[theirs]
    with np.errstate(over="ignore"):  # what does not fit into the type becomes infinite, and is found by the caller
        values = values.astype(dtype, copy=False)
    return _Piece(name, place, area, to_ours(values, place, source.layout, source.config))


def _ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of ``jobs`` in order; the next few are worked on in threads while one is used."""
    with ThreadPoolExecutor(_JOBS_AHEAD) as workers:
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            waiting.append(workers.submit(job))
            if len(waiting) > _JOBS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_export(directory: Path) -> bool:
    names = (meta_mtp.CHECKPOINT, huggingface.CONFIG, peft.CONFIG)
    return any((directory / name).is_file() for name in names) and not store.is_model_directory(directory)


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
        store.set_leaf(shapes, name, jax.ShapeDtypeStruct(leaf.shape, types.get(name, DTYPES["float32"])))
    return shapes, original


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


def _import_tokenizer(source: Source, folder: Path) -> bool:
    """Copies tokenizer files; a bare ``tokenizer.model`` gets the config that makes it LLaMA's."""
    files = [source.directory / name for name in TOKENIZER_FILES if (source.directory / name).is_file()]
    if not any(file.name in ("tokenizer.model", "tokenizer.json") for file in files):
        return False
    folder.mkdir()
    for file in files:
        shutil.copy(file, folder)
    config = folder / "tokenizer_config.json"
    if not config.exists():
        content = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        config.write_text(json.dumps(content if (folder / "tokenizer.model").exists() else {}, indent=2) + "\n")
    return True


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


def _all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite: those alone have every bit of the exponent set."""
    infinity = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[values.dtype.name]
    if not values.size:
        return True
    pattern = np.ascontiguousarray(values).reshape(-1).view(f"u{values.itemsize}")
    without_sign = 2 ** (8 * values.itemsize - 1) - 1
    step = 2**20  # a piece that stays in the cache
    return all(int((pattern[i : i + step] & without_sign).max()) < infinity for i in range(0, pattern.size, step))


def _write_failure(dst: Path, error: Exception) -> Exception:
    text = str(error)
    if "No space left" in text or "File too large" in text or "Disk quota" in text:
        return Failure(
            f"{dst}: the disk is full; nothing was left there. Free some space or give a destination on another disk"
        )
    return Failure(f"{dst}: cannot be written ({text.splitlines()[0]})")
