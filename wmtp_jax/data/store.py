"""A processed data set on disk, written whole or not at all, read row by row.

```
DIR/
  dataset.json         where it comes from, counts, what was left out and why, fingerprint
  <split>.jsonl        one `Example` a line; splits: train, valid, test
  <split>.index.npz    for each row: offset, problem, is_correct, difficulty; sampling reads only this
  tests.jsonl          test cases of the problems, for the judge alone
  tokenizer/           only where one was trained on the data (mini)
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_jax.data.schema import Example, parse_example
from wmtp_jax.errors import UserError
from wmtp_jax.files import new_directory, reading

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
MANIFEST, TESTS, TOKENIZER = "dataset.json", "tests.jsonl", "tokenizer"


class Split:
    """One split of a data set: its index in memory, its rows on disk.

    Attributes:
      name, path: of the split and its file.
      problem: (N,) int32, number of the problem a row belongs to.
      is_correct: (N,) bool.
      difficulty: (N,) int64, as in the source; 0 is unknown.
      task_ids: name of each problem, by number.
    """

    def __init__(self, path: Path, index: dict[str, np.ndarray]):
        self.path, self.name = path, path.stem
        self._offset = index["offset"]
        self.problem, self.is_correct = index["problem"], index["is_correct"]
        self.difficulty, self.task_ids = index["difficulty"], index["task_ids"]

    def __len__(self) -> int:
        return len(self._offset)

    def read(self, rows: Sequence[int] | np.ndarray) -> list[Example]:
        """Reads rows by number, in the order asked for. Raises UserError naming file and line."""
        examples = []
        with reading(self.path), self.path.open("rb") as file:
            for row in rows:
                file.seek(int(self._offset[row]))
                examples.append(parse_example(file.readline(), f"{self.path} line {int(row) + 1}"))
        return examples


class Writer:
    """Writes a data set, one example after another, in bounded memory. Made by `create_dataset`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.left_out: Counter[str] = Counter()
        self._files: dict[str, Any] = {}
        self._indices: dict[str, _Index] = {}
        self._tests = (directory / TESTS).open("w", encoding="utf-8")

    def add(self, split: str, example: Example) -> None:
        """Appends one example to a split."""
        if split not in self._files:
            self._files[split] = (self.directory / f"{split}.jsonl").open("wb")
            self._indices[split] = _Index()
        line = example.model_dump_json().encode() + b"\n"
        self._files[split].write(line)
        self._indices[split].add(example, len(line))

    def add_tests(self, tests: dict[str, Any]) -> None:
        """Appends one problem's test cases."""
        self._tests.write(json.dumps(tests, ensure_ascii=False) + "\n")

    def counts(self) -> dict[str, dict[str, int]]:
        """Problems, correct and incorrect solutions of each split."""
        return {split: self._indices[split].counts() for split in SPLITS if split in self._indices}

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Writes indices and manifest; returns the manifest."""
        for split, file in self._files.items():
            file.close()
            self._indices[split].save(self.directory / f"{split}.jsonl")
        self._tests.close()
        manifest = {
            "format_version": FORMAT_VERSION,
            **facts,
            "splits": self.counts(),
            "left_out": dict(sorted(self.left_out.items())),
            "fingerprint": data_fingerprint(self.directory),
        }
        (self.directory / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return manifest

    def close(self) -> None:
        for file in (*self._files.values(), self._tests):
            file.close()


@contextlib.contextmanager
def create_dataset(directory: Path, overwrite: bool) -> Iterator[Writer]:
    """A writer whose data set appears at ``directory`` when the context is left without an error.

    Until then it is written beside it and nothing at ``directory`` changes; an error or an interruption
    leaves nothing behind.

    Raises:
      UserError: ``directory`` exists and ``overwrite`` is not set, or it cannot be written.
    """
    with new_directory(directory, overwrite=overwrite, is_ours=_is_dataset, what="data set") as partial:
        writer = Writer(partial)
        try:
            yield writer
        finally:
            writer.close()


def _is_dataset(directory: Path) -> bool:
    return (directory / MANIFEST).exists()


def open_split(directory: Path, name: str) -> Split:
    """Opens a split.

    Where the index is missing or was made for another file (by size and time, else by SHA-256), it is made again
    (and kept, if the folder can be written), which checks every line.

    Raises:
      UserError: no data set there, no such split, no row in it, or a broken row (file and line).
    """
    path = directory / f"{name}.jsonl"
    if not path.is_file():
        if not directory.is_dir():
            raise UserError(
                f"{directory}: no such data set; make it with `python -m wmtp_jax.prepare --dataset mini "
                f"--output {directory}` (--help lists other data sets), or name another "
                "(setting dataset.path, option --data)"
            )
        found = [split for split in SPLITS if (directory / f"{split}.jsonl").is_file()]
        raise UserError(
            f"{path}: the data set has no split {name!r} (it has: {', '.join(found) or 'none'}); prepare it again, "
            "with --validation-fraction above 0 where the source has no validation problems"
        )
    state = path.stat()
    if state.st_size == 0:
        raise UserError(f"{path}: the split is empty; prepare the data set again")
    index_path = _index_path(path)
    if index_path.is_file():
        # What a damaged file raises; it is made again below.
        damaged = ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile
        with contextlib.suppress(*damaged), np.load(index_path) as stored:
            index = dict(stored)
            unchanged = (int(index["size"]), int(index["mtime_ns"])) == (state.st_size, state.st_mtime_ns)
            if unchanged or str(index["sha256"]) == _sha256(path):
                return Split(path, index)
    built = _Index()
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            built.add(parse_example(line, f"{path} line {number}"), len(line))
    with contextlib.suppress(OSError):  # a read-only folder: the index in memory does
        built.save(path)
    return Split(path, built.arrays(path))


def data_fingerprint(directory: Path) -> str:
    """SHA-256 over the splits as they are now: a row mended by hand makes another data set.

    Raises:
      UserError: a split cannot be read.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        path = directory / f"{split}.jsonl"
        if path.is_file():
            digest.update(bytes.fromhex(_sha256(path)))
    return digest.hexdigest()


class _Index:
    """The index of a split while it is made."""

    def __init__(self) -> None:
        self._problems: dict[str, int] = {}
        self._rows: list[tuple[int, int, bool, int]] = []
        self._size = 0

    def add(self, example: Example, n_bytes: int) -> None:
        problem = self._problems.setdefault(example.task_id, len(self._problems))
        difficulty = example.metadata.get("difficulty")
        if isinstance(difficulty, float) and difficulty.is_integer():  # as pandas writes whole numbers
            difficulty = int(difficulty)
        difficulty = difficulty if isinstance(difficulty, int) and abs(difficulty) < 2**63 else 0
        self._rows.append((self._size, problem, example.is_correct, difficulty))
        self._size += n_bytes

    def arrays(self, path: Path) -> dict[str, np.ndarray]:
        offset, problem, is_correct, difficulty = zip(*self._rows, strict=True)
        return {
            "offset": np.array(offset, np.int64),
            "problem": np.array(problem, np.int32),
            "is_correct": np.array(is_correct, bool),
            "difficulty": np.array(difficulty, np.int64),
            "task_ids": np.array(list(self._problems)),
            "size": np.array(self._size, np.int64),
            "mtime_ns": np.array(path.stat().st_mtime_ns, np.int64),
            "sha256": np.array(_sha256(path)),
        }

    def counts(self) -> dict[str, int]:
        correct = sum(row[2] for row in self._rows)
        return {"problems": len(self._problems), "correct": correct, "incorrect": len(self._rows) - correct}

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".index.partial.npz")
        np.savez(temporary, allow_pickle=False, **self.arrays(path))
        temporary.replace(_index_path(path))


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _index_path(path: Path) -> Path:
    return path.with_suffix(".index.npz")
