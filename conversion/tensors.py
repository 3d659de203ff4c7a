"""Tensor files of PyTorch and Hugging Face: read memory-mapped, one tensor at a time, and written likewise.

The containers themselves are their libraries' business: torch unpickles (``weights_only``) and lays out
``.pth`` and ``.bin`` files, safetensors checks ``.safetensors`` files. What is ours is that no file is ever
in memory as a whole.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import ml_dtypes
import numpy as np

from wmtp_jax.errors import UserError

SAFETENSORS, TORCH_BIN = "model.safetensors", "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
_SAFETENSORS_DTYPES = {
    **{"F32": DTYPES["float32"], "BF16": DTYPES["bfloat16"], "F16": DTYPES["float16"], "F64": np.dtype(np.float64)},
    **{"I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8)},
    **{"U8": np.dtype(np.uint8), "BOOL": np.dtype(bool)},
}
_UNREAD = np.dtype(np.void)  # the type of a tensor whose own numpy has not
_EXPORT_NOTE = "wmtp_jax_export.json"
_JOBS_AHEAD = 2  # tensors, or parts of them, that are read and turned while one is written
T = TypeVar("T")
_TORCH_NEEDED = "install it with `pip install 'wmtp-jax[convert]'`"


class Tensor(NamedTuple):
    """A tensor in a file, not read yet.

    Attributes:
      shape, dtype: as numpy has them.
      path, offset: the file, and the byte where the first element lies.
      strides: bytes from element to element on each axis.
      loaded: the values, where the file could not be mapped (PyTorch's format before 1.6).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    path: Path
    offset: int
    strides: tuple[int, ...]
    loaded: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The values, mapped from the file: memory is taken while they are used, and given back with them."""
        if self.loaded is not None:
            return self.loaded
        if not self.nbytes:
            return np.zeros(self.shape, self.dtype)
        span = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        raw = np.memmap(self.path, np.uint8, mode="r", offset=self.offset, shape=(span + self.dtype.itemsize,))
        flat = np.asarray(raw).view(self.dtype)
        return np.lib.stride_tricks.as_strided(flat, self.shape, self.strides, writeable=False)


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def open_files(paths: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of some files, by name.

    Raises:
      UserError: a file is damaged, holds something else, or two files hold the same name.
    """
    result: dict[str, Tensor] = {}
    for path in paths:
        tensors = _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)
        if twice := sorted(result.keys() & tensors.keys()):
            raise UserError(f"{path}: {twice[0]!r} stands in {result[twice[0]].path} already; the shards do not fit")
        result |= tensors
    return result


def read_index(path: Path) -> dict[str, Path]:
    """Tensor -> file, of a ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json``.

    Raises:
      UserError: the index is broken, or shards are missing.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(name): path.parent / str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an index of shards ({error}); copy or download it again") from error
    files = sorted(set(wanted.values()))
    if outside := [file for file in files if file.parent != path.parent or not file.name]:
        raise UserError(f"{path}: names files outside its folder: {', '.join(map(str, outside))}")
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{path}: these shards are missing: {', '.join(absent)}; copy or download them")
    return wanted


def open_index(path: Path) -> dict[str, Tensor]:
    """All tensors of the shards that an index names.

    Raises:
      UserError: as `read_index` and `open_files`, or it names tensors that no shard holds (all are listed).
    """
    wanted = read_index(path)
    tensors = open_files(sorted(set(wanted.values())))
    wrong = [f"{name} in {file.name}" for name, file in wanted.items() if getattr(tensors.get(name), "path", 0) != file]
    if wrong:
        listing = "\n  ".join(wrong)
        raise UserError(f"{path}: names tensors that the shards do not hold:\n  {listing}\nDownload the model again")
    return tensors


def write_export_note(directory: Path, facts: dict[str, Any]) -> None:
    """Marks a folder as an export of ours, which ``--overwrite`` may replace, and says what it is."""
    (directory / _EXPORT_NOTE).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def is_export(directory: Path) -> bool:
    """Whether a folder was written by an export of ours."""
    return (directory / _EXPORT_NOTE).is_file()


def write_torch(path: Path, entries: Sequence[Entry], arrays: Iterable[np.ndarray]) -> None:
    """Writes ``torch.save``'s format: torch lays the file out, the values are put into their places after.

    The file's checksums stay unset, as torch leaves them where values come later; torch does not read them.

    Raises:
      UserError: torch is not installed.
    """
    torch = _torch(path)
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.serialization import skip_data

    with FakeTensorMode():
        empty = {e.name: torch.empty(e.shape, dtype=getattr(torch, e.dtype.name)) for e in entries}
        # Into an open file: torch passes over the values' places then, instead of filling them with zeros.
        with skip_data(materialize_fake_tensors=True), path.open("wb") as file:
            torch.save(empty, file)
    places = _open_torch(path)
    with path.open("r+b") as file:
        for entry, array in zip(entries, arrays, strict=True):
            file.seek(places[entry.name].offset)
            _write_values(file, entry, array)


def write_safetensors(
    directory: Path, entries: Sequence[Entry], arrays: Iterator[np.ndarray], shards: int, stem: str = "model"
) -> None:
    """Writes ``<stem>.safetensors``, or ``shards`` files of about equal size with an index.

    The layout: eight bytes with the header's length, the header in JSON, the values one after another.
    """
    weight_map = {}
    parts = _divide(entries, shards)
    for number, part in enumerate(parts, start=1):
        name = f"{stem}.safetensors" if len(parts) == 1 else f"{stem}-{number:05}-of-{len(parts):05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        codes = {dtype: code for code, dtype in _SAFETENSORS_DTYPES.items()}
        for entry in part:
            weight_map[entry.name] = name
            end = offset + entry.nbytes
            header[entry.name] = {
                "dtype": codes[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # values begin at a multiple of eight
        with (directory / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in part:
                _write_values(file, entry, next(arrays))
    if len(parts) > 1:
        index = {"metadata": {"total_size": sum(e.nbytes for e in entries)}, "weight_map": weight_map}
        (directory / f"{stem}.safetensors{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it describes the architecture and stands beside the weights") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error}); copy or download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with the architecture, found {type(content).__name__}")
    return content


def count_not_finite(values: np.ndarray) -> int:
    """How many values are NaN or infinite: those alone have every bit of the exponent set."""
    infinity = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[values.dtype.name]
    bits = np.ascontiguousarray(values).reshape(-1).view(f"u{values.itemsize}")
    without_sign = 2 ** (8 * values.itemsize - 1) - 1
    count, step = 0, 2**18  # a piece that stays in the cache
    for start in range(0, bits.size, step):
        magnitude = bits[start : start + step] & without_sign
        if magnitude.max() >= infinity:  # the rule is that none is, and looking for the largest is fastest
            count += int(np.count_nonzero(magnitude >= infinity))
    return count


def in_order_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of ``jobs`` in order; the next few are worked on in threads while one is used."""
    with ThreadPoolExecutor(_JOBS_AHEAD) as workers:
        waiting: deque[Future[T]] = deque()
        for job in jobs:
            waiting.append(workers.submit(job))
            if len(waiting) > _JOBS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_values(file: Any, entry: Entry, array: np.ndarray) -> None:
    assert array.shape == entry.shape, f"{entry.name}: {array.shape} is not {entry.shape}"
    assert array.dtype == entry.dtype, f"{entry.name}: {array.dtype} is not {entry.dtype}"
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _divide(entries: Sequence[Entry], shards: int) -> list[list[Entry]]:
    """Entries in order, in ``shards`` runs of about equal size (fewer where there are fewer entries)."""
    total = sum(entry.nbytes for entry in entries)
    parts: list[list[Entry]] = [[] for _ in range(shards)]
    done = 0
    for entry in entries:
        middle = done + entry.nbytes / 2
        parts[min(int(middle * shards / max(total, 1)), shards - 1)].append(entry)
        done += entry.nbytes
    return [part for part in parts if part]


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # checks the header against the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error}); copy or download it again") from error
    result = {}
    for name, item in header.items():
        if name == "__metadata__":
            continue
        dtype = _SAFETENSORS_DTYPES.get(item["dtype"], _UNREAD)
        shape = tuple(item["shape"])
        result[name] = Tensor(shape, dtype, path, 8 + length + item["data_offsets"][0], _row_major(shape, dtype))
    return result


def _open_torch(path: Path) -> dict[str, Tensor]:
    torch = _torch(path)
    from torch._subclasses.fake_tensor import FakeTensorMode

    mapped = zipfile.is_zipfile(path)
    try:
        # weights_only: a pickle that would run code is refused before anything of it runs.
        if mapped:
            with FakeTensorMode():  # shapes and places, no values
                content = torch.load(path, map_location="cpu", weights_only=True)
        else:  # the format before PyTorch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; the remedy is the same for all
        if isinstance(error, pickle.UnpicklingError):
            # Not torch's own words: they go on to say how to run the code all the same.
            raise UserError(
                f"{path}: torch refuses it as a weights-only checkpoint: it is damaged, or it would run code of its "
                "own (none was run); copy or download the file again, as safetensors if its publisher has that"
            ) from error
        raise UserError(
            f"{path}: torch cannot read it as a weights-only checkpoint ({type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0][:200]}); copy or download the file again"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    ):
        raise UserError(f"{path}: expected a dictionary of tensors by name, as its publisher saves it")
    size = path.stat().st_size
    result = {}
    for name, tensor in content.items():
        dtype = _torch_dtypes(torch).get(tensor.dtype)
        if dtype is None or tensor.layout != torch.strided:
            result[name] = Tensor(tuple(tensor.shape), _UNREAD, path, 0, ())  # an error only if it is wanted
            continue
        strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
        if mapped:
            storage = tensor.untyped_storage()
            if storage._checkpoint_offset is None:
                raise UserError(f"{path}: {name} has no values (it was saved from the device `meta`)")
            offset = storage._checkpoint_offset + tensor.storage_offset() * dtype.itemsize
            if storage._checkpoint_offset + storage.nbytes() > size:
                raise UserError(f"{path}: {name} ends behind the end of the file; copy or download it again")
            result[name] = Tensor(tuple(tensor.shape), dtype, path, offset, strides)
        else:
            # numpy has no bfloat16 of its own: the bits are passed.
            bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
            values = bits.numpy().view(dtype)
            result[name] = Tensor(tuple(tensor.shape), dtype, path, 0, strides, values)
    return result


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} is a PyTorch file and needs torch; {_TORCH_NEEDED}") from error
    return torch


def _torch_dtypes(torch: Any) -> dict[Any, np.dtype]:
    return {getattr(torch, dtype.name): dtype for dtype in _SAFETENSORS_DTYPES.values()}


def _row_major(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    strides = [dtype.itemsize]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides)) if shape else ()
