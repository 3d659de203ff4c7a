"""Raw data: Parquet and JSONL files of a folder or of a data set on the Hugging Face hub, read a little at a time."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from wmtp_jax.data.store import SPLITS
from wmtp_jax.errors import Failure, UserError

_CHUNK_BYTES = 2 * 2**20  # of text; what a worker converts at once
_CHUNK_ROWS = 1024
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB = "hf://"
_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")


class SourceFile(NamedTuple):
    """A file to read.

    Attributes:
      path: for messages.
      files: the file system it lies in.
      name: in that file system.
      split: train, valid or test, where its name begins so; None: not said.
      bytes: its size.
      version: something that changes when the file does.
    """

    path: str
    files: Any
    name: str
    split: str | None
    bytes: int
    version: str


class Chunk(NamedTuple):
    """Some rows that stand one after another in a file.

    Attributes:
      path, split: of the file.
      first_row: number of the first row (line) in the file, from 0.
      rows: lines of JSON, or rows of a Parquet file.
      next_row: (file, row) at which the next chunk begins.
      bytes: their part of the file's size.
    """

    path: str
    split: str | None
    first_row: int
    rows: list[bytes] | pa.RecordBatch
    next_row: tuple[int, int]
    bytes: int

    def where(self, i: int) -> str:
        """Place of row ``i`` of the chunk, for messages."""
        return f"{self.path} {'line' if isinstance(self.rows, list) else 'row'} {self.first_row + i + 1}"


def list_files(source: str) -> list[SourceFile]:
    """The data files of a local file or folder, or of a data set on the hub (``owner/name``), by name.

    Raises:
      UserError: there is nothing to read.
      Failure: the hub cannot be reached.
    """
    if Path(source).exists():
        files, root = fsspec.filesystem("file"), str(source)
    elif _HUB_ID.fullmatch(source):
        files, root = _hub(source)
    else:
        raise UserError(
            f"{source}: no such file or folder, nor the id of a data set on the Hugging Face hub (owner/name); "
            "--source names the raw data"
        )
    if files.isfile(root):
        found = {root: files.info(root)}
        if not root.endswith(_SUFFIXES):
            raise UserError(f"{source}: expected .parquet, .jsonl or .jsonl.gz")
    else:
        every = files.find(root, detail=True)
        shown = {name: info for name, info in sorted(every.items()) if not Path(name).name.startswith(".")}
        found = {name: info for name, info in shown.items() if name.endswith(_SUFFIXES)}
        if not found:
            raise UserError(f"{source}: holds no .parquet, .jsonl or .jsonl.gz file")
    return [
        SourceFile(
            path=f"{_HUB}{name}" if files.protocol == "hf" else name,
            files=files,
            name=name,
            split=next((split for split in SPLITS if Path(name).name.startswith(split)), None),
            bytes=int(info["size"]),
            version=str(info.get("mtime") or info.get("blob_id")),
        )
        for name, info in found.items()
    ]


def read_chunks(
    files: list[SourceFile], columns: list[str], required: list[str], start: tuple[int, int]
) -> Iterator[Chunk]:
    """Rows of the files from ``start`` (file, row) on. Where chunks begin does not depend on ``start``.

    Args:
      files: what to read.
      columns, required: columns of Parquet files that are read, and those that must be there.
      start: ``next_row`` of the last chunk that is not needed again.

    Raises:
      UserError: a file is damaged or lacks a column.
      Failure: a file cannot be read any more.
    """
    for number in range(start[0], len(files)):
        file = files[number]
        first = start[1] if number == start[0] else 0
        try:
            with file.files.open(file.name, "rb") as stream:
                if file.name.endswith(".parquet"):
                    chunks = _read_parquet(file, stream, columns, required, number, first)
                else:
                    chunks = _read_jsonl(file, stream, number, first)
                yield from chunks
        except pa.ArrowException as error:
            raise UserError(
                f"{file.path}: damaged Parquet ({str(error).splitlines()[0]}); download it again"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file.path}: damaged ({error}); copy or download it again") from error
        except _reading_errors() as error:
            if file.path.startswith(_HUB):
                raise Failure(f"{file.path}: cannot be read ({error}); the same command goes on from here") from error
            kind = "damaged Parquet" if file.name.endswith(".parquet") else "cannot be read"
            raise UserError(f"{file.path}: {kind} ({error}); copy or download it again") from error


def _read_jsonl(file: SourceFile, stream: Any, number: int, first: int) -> Iterator[Chunk]:
    lines: list[bytes] = []
    packed = file.name.endswith(".gz")
    text = gzip.GzipFile(fileobj=stream) if packed else stream
    size = row = begun = before = 0
    for row, line in enumerate(text, start=1):
        if row <= first:
            begun, before = row, stream.tell() if packed else before + len(line)
            continue
        lines.append(line.removeprefix(codecs.BOM_UTF8) if row == 1 else line)
        size += len(line)
        if size >= _CHUNK_BYTES or len(lines) >= _CHUNK_ROWS:
            position = stream.tell() if packed else before + size
            yield Chunk(file.path, file.split, begun, lines, (number, row), position - before)
            lines, size, begun, before = [], 0, row, position
    yield Chunk(file.path, file.split, begun, lines, (number + 1, 0), file.bytes - before)


def _read_parquet(
    file: SourceFile, stream: Any, columns: list[str], required: list[str], number: int, first: int
) -> Iterator[Chunk]:
    parquet = pq.ParquetFile(stream)
    there = parquet.schema_arrow.names
    missing = [name for name in required if name not in there]
    if missing:
        raise UserError(
            f"{file.path}: the column {missing[0]!r} is missing; found {', '.join(there)}. "
            f"Expected {', '.join(required)}"
        )
    wanted = [name for name in columns if name in there]
    n_rows, row = parquet.metadata.num_rows, 0
    for group in range(parquet.num_row_groups):
        of_group = parquet.metadata.row_group(group)
        if row + of_group.num_rows <= first:
            row += of_group.num_rows
            continue
        # A row with its solutions and tests can have megabytes, or a hundred bytes.
        at_once = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES * of_group.num_rows // max(of_group.total_byte_size, 1)))
        for batch in parquet.iter_batches(at_once, row_groups=[group], columns=wanted):
            begun, row = row, row + len(batch)
            if row > first:
                share = file.bytes * row // n_rows - file.bytes * begun // n_rows
                after = (number, row) if row < n_rows else (number + 1, 0)
                yield Chunk(file.path, file.split, begun, batch, after, share)


def _hub(source: str) -> tuple[Any, str]:
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import RepositoryNotFoundError

    files, root = HfFileSystem(), f"datasets/{source}"
    try:
        if not files.exists(root):
            raise UserError(
                f"{source}: neither a file or folder here nor a data set on the Hugging Face hub (a private one "
                "needs HF_TOKEN)"
            )
    except RepositoryNotFoundError as error:
        raise UserError(f"{source}: no such data set on the Hugging Face hub (a private one needs HF_TOKEN)") from error
    except _reading_errors() as error:
        raise Failure(
            f"{source}: no such file or folder here, and the Hugging Face hub cannot be reached "
            f"({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    return files, root


def _reading_errors() -> tuple[type[Exception], ...]:
    """What reading raises; imported when it has: errors of the hub's HTTP library are no OSErrors."""
    from huggingface_hub.errors import HTTPError

    return OSError, HTTPError
