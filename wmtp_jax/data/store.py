"""A processed data set on disk: texts and tokens in Arrow files that are mapped into memory, not read.

```
DIR/
  dataset.json                         where it comes from, counts, what was left out and why, files, fingerprint
  parts/00000/<split>.prompts.arrow    task_id, key, instruction, input, metadata, difficulty, tokens
  parts/00000/<split>.solutions.arrow  prompt, is_correct, output, key, tokens
  <split>.index.npz                    for each solution and prompt what sampling needs, so that it reads nothing else
  tests.jsonl.gz                       test cases of the problems, for the judge alone
  lengths.png                          histogram of token lengths
  tokenizer/                           what made the tokens
```
A prompt stands once for the solutions that come with it in the source, as text and as tokens; a solution's tokens
follow those of its prompt.
Splits are train, valid and test. `wmtp_jax.data.writer` writes the folder.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wmtp_jax.data.schema import Example
from wmtp_jax.data.tokenize import TokenizedExample
from wmtp_jax.errors import UserError
from wmtp_jax.files import reading

FORMAT_VERSION = 2
SPLITS = ("train", "valid", "test")
MANIFEST, PARTS, TESTS, TOKENIZER = "dataset.json", "parts", "tests.jsonl.gz", "tokenizer"


class Index(NamedTuple):
    """What is known of a split without reading it: N solutions, P prompts, M problems, K parts.

    Attributes:
      place: (N,) int64, where a solution stands when all parts' solutions are counted through.
      prompt: (N,) int32, its prompt, counted through all parts.
      is_correct: (N,) bool.
      n_response: (N,) int32, tokens of the response, end-of-sequence included; 0 without a tokenizer.
      problem: (P,) int32, the problem of a prompt, in the order in which they first come.
      difficulty: (P,) int64, as in the source; 0 is unknown.
      n_prompt: (P,) int32, tokens of the prompt, beginning-of-sequence included.
      first_prompt: (M,) int32, the prompt that names a problem.
      parts: (K,) int32, numbers of the parts that hold some of the split.
    """

    place: np.ndarray
    prompt: np.ndarray
    is_correct: np.ndarray
    n_response: np.ndarray
    problem: np.ndarray
    difficulty: np.ndarray
    n_prompt: np.ndarray
    first_prompt: np.ndarray
    parts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int32, tokens of each example: beginning-of-sequence, prompt, response, end-of-sequence."""
        return self.n_prompt[self.prompt] + self.n_response


class Split:
    """One split of a data set: its index in memory, its texts and tokens on disk.

    Attributes:
      name, path: of the split; the path is for messages.
      problem: (N,) int32, number of the problem of each solution.
      is_correct: (N,) bool.
      difficulty: (N,) int64, as in the source; 0 is unknown.
      n_prompt: (N,) int32, tokens of the prompt.
      lengths: (N,) int32, tokens of the whole example: beginning-of-sequence, prompt, response, end-of-sequence.
      n_problems: M.
    """

    def __init__(self, directory: Path, name: str, index: Index):
        self.path, self.name = directory / name, name
        self._index = index
        self.is_correct = index.is_correct
        self.problem, self.difficulty = index.problem[index.prompt], index.difficulty[index.prompt]
        self.n_prompt = index.n_prompt[index.prompt]
        self.lengths = index.lengths
        self.n_problems = len(index.first_prompt)
        self._solutions, self._prompts = (
            _Table([read_arrow(part_file(directory, part, name, kind)) for part in index.parts])
            for kind in ("solutions", "prompts")
        )

    def __len__(self) -> int:
        return len(self._index.place)

    def task_id(self, problem: int) -> str:
        """The name of a problem."""
        return str(self._prompts.value("task_id", self._index.first_prompt[problem]))

    @property
    def task_ids(self) -> list[str]:
        """Names of all problems, by number."""
        return [self.task_id(number) for number in range(self.n_problems)]

    def read(self, rows: Iterable[int]) -> list[Example]:
        """Texts of solutions by number, in the order asked for."""
        return [self._example(int(row)) for row in rows]

    def tokens(self, row: int) -> TokenizedExample:
        """Tokens of a solution: its prompt and its response."""
        index = self._index
        prompt = self._prompts.tokens[index.prompt[row]]
        response = self._solutions.tokens[index.place[row]]
        tokens = np.empty(len(prompt) + len(response), np.int32)
        tokens[: len(prompt)], tokens[len(prompt) :] = prompt, response
        return TokenizedExample(tokens, len(prompt), float(index.is_correct[row]))

    def _example(self, row: int) -> Example:
        prompt, place = self._index.prompt[row], self._index.place[row]
        return Example(
            **{name: self._prompts.value(name, prompt) for name in ("task_id", "instruction", "input")},
            output=self._solutions.value("output", place),
            is_correct=bool(self._index.is_correct[row]),
            metadata=json.loads(self._prompts.value("metadata", prompt)),
        )


class Lists:
    """Columns of lists, one after another, of which each list is a view of the files' own memory."""

    def __init__(self, columns: Sequence[pa.ListArray]):
        self._starts = np.cumsum([0, *map(len, columns)])
        self._columns = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]

    def __getitem__(self, number: int) -> np.ndarray:
        part, at = self.find(number)
        offsets, values = self._columns[part]
        return values[offsets[at] : offsets[at + 1]]

    def find(self, number: int) -> tuple[int, int]:
        """The column that holds a list, and its number there."""
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return part, int(number - self._starts[part])


class _Table:
    """Rows of one kind, over all parts."""

    def __init__(self, parts: Sequence[pa.RecordBatch]):
        self._parts = parts
        self.tokens = Lists([part["tokens"] for part in parts])

    def value(self, name: str, number: int) -> Any:
        part, at = self.tokens.find(number)
        return self._parts[part][name][at].as_py()


def read_arrow(path: Path) -> pa.RecordBatch:
    """The one batch of a file, mapped into memory."""
    with reading(path):
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except pa.ArrowException as error:
            raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); prepare the data set again") from error


def part_name(part: int) -> str:
    """Folder of a part, below `PARTS`."""
    return f"{part:05}"


def part_file(directory: Path, part: int, split: str, kind: str) -> Path:
    """File of the ``prompts`` or ``solutions`` of a split in a part."""
    return directory / PARTS / part_name(part) / f"{split}.{kind}.arrow"


def index_file(directory: Path, split: str) -> Path:
    """File of the `Index` of a split."""
    return directory / f"{split}.index.npz"


def is_dataset(directory: Path) -> bool:
    """Whether a folder holds a data set."""
    return (directory / MANIFEST).is_file()


def read_manifest(directory: Path) -> dict[str, Any]:
    """``dataset.json``.

    Raises:
      UserError: there is no data set, or it is damaged, or of another version.
    """
    if not is_dataset(directory):
        raise UserError(
            f"{directory}: no such data set; make it with `python -m wmtp_jax.prepare --dataset mini "
            f"--output {directory}` (--help lists other data sets), or name another "
            "(setting dataset.path, option --data)"
        )
    path = directory / MANIFEST
    try:
        with reading(path):
            manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        if version == FORMAT_VERSION and not {"splits", "files", "tokenizer", "fingerprint"} <= set(manifest):
            raise ValueError("entries are missing")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data set again") from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{directory}: a data set of format {version}, made by another version of wmtp_jax (this one reads "
            f"{FORMAT_VERSION}); prepare it again"
        )
    return dict(manifest)


def open_split(directory: Path, name: str) -> Split:
    """Opens a split, and checks its files against the manifest: by size and time, else by SHA-256.

    Raises:
      UserError: no data set there, no such split, or a file of it that is absent or damaged.
    """
    manifest = read_manifest(directory)
    if name not in manifest["splits"]:
        raise UserError(
            f"{directory}: the data set has no split {name!r} (it has: {', '.join(manifest['splits']) or 'none'}); "
            "prepare it again, with a larger --validation-fraction where its files do not say their splits"
        )
    for file, facts in manifest["files"].items():
        if Path(file).name.startswith(f"{name}."):
            _check_file(directory / file, facts)
    path = index_file(directory, name)
    try:
        with np.load(path) as stored:
            index = Index(**stored)
    except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data set again") from error
    return Split(directory, name, index)


def data_fingerprint(directory: Path) -> str:
    """SHA-256 over the files of texts and tokens of all splits, as `open_split` checks them."""
    return str(read_manifest(directory)["fingerprint"])


def file_facts(path: Path) -> dict[str, Any]:
    """What the manifest keeps of a file."""
    state = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": digest}


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is missing; copy the data set again, or prepare it again")
    with reading(path):
        state = path.stat()
        if (state.st_size, state.st_mtime_ns) == (facts["bytes"], facts["mtime_ns"]):
            return
        # A copy has another time, and is read through once at every start.
        if state.st_size != facts["bytes"] or file_facts(path)["sha256"] != facts["sha256"]:
            raise UserError(
                f"{path}: damaged or changed: it is not what was written (then {facts['bytes']:,} bytes, now "
                f"{state.st_size:,}); copy it again, or prepare the data set again"
            )
