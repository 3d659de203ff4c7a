"""A file of scores: what a frozen model says of every token, made once and read beside the tokens.

It is an Arrow IPC file: a row a solution with ``split``, ``row`` (its number in the split) and ``scores`` (float32,
one a token); its metadata says what they were made from. Parts of it are files of the same form without metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wmtp_jax.errors import UserError

FORMAT_VERSION = 1
_METADATA = "wmtp_jax"


class ScoreFacts(NamedTuple):
    """What a file of scores was made from.

    Attributes:
      kind: ``critic`` (values) or ``reference`` (cross-entropy).
      model: fingerprint of the frozen model.
      data: fingerprint of the data set.
      tokenizer: fingerprint of the tokenizer.
      max_length: longer solutions were left out.
      job: fingerprint of what else was asked for: which solutions, and number types.
    """

    kind: str
    model: str
    data: str
    tokenizer: str
    max_length: int
    job: str


class ScoreFile:
    """Reads a file of scores, which stays on the disk: in memory is where each solution stands.

    Args:
      path: the file.

    Raises:
      UserError: there is none, or it is something else.
    """

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.compute as pc

        from wmtp_jax.data.store import Lists

        if not path.is_file():
            raise UserError(f"{path}: no such file of scores; make it with `python -m wmtp_jax.score`")
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            metadata = json.loads((self._table.schema.metadata or {})[_METADATA.encode()])
            if metadata.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format version")
            digest = metadata.pop("scores_sha256")
            self.facts = ScoreFacts(**metadata)
            splits, rows = self._table["split"], self._table["row"].to_numpy()
            scores = self._table["scores"]
            of_split = {name: pc.equal(splits, name).to_numpy() for name in pc.unique(splits).to_pylist()}
            self._lengths = pc.list_value_length(scores).to_numpy()
            self._scores = Lists(scores.chunks)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not a file of scores ({str(error).splitlines()[0]}); make it with `python -m wmtp_jax.score`"
            ) from error
        self.path = path
        self._places: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of each split: rows, ascending, and their places
        for name, mask in of_split.items():
            places = np.flatnonzero(mask)
            places = places[np.argsort(rows[places], kind="stable")]
            self._places[name] = rows[places], places
        if _digest([self._table]) != digest:
            raise UserError(f"{path}: damaged: the scores are not those that were written; make or copy the file again")

    def figures(self) -> dict[str, Any]:
        """Numbers of solutions and tokens, and the mean score."""
        values = [chunk.flatten().to_numpy() for chunk in self._table["scores"].chunks]
        tokens = sum(len(part) for part in values)
        total = sum(float(part.sum(dtype=float)) for part in values)
        return {"solutions": len(self._lengths), "tokens": tokens, "mean": total / max(tokens, 1)}

    def check(self, **expected: str | int) -> None:
        """Compares what the scores were made from. Raises UserError naming each difference."""
        remedies = {
            "kind": "they are of another kind of model",
            "model": "they were made by another model",
            "data": "they were made from other data (or it was changed since)",
            "tokenizer": "they were made with another tokenizer",
        }
        wrong = [remedies[name] for name, value in expected.items() if getattr(self.facts, name) != value]
        if wrong:
            raise UserError(
                f"weighting.scores: {self.path} does not fit: {'; '.join(wrong)}. Make them again with "
                "`python -m wmtp_jax.score`"
            )

    def check_solutions(self, split: str, numbers: np.ndarray, lengths: np.ndarray) -> None:
        """Raises UserError where some solutions are not in the file, or have another number of tokens."""
        places, there = self._find(split, numbers)
        if not there.all():
            first = int(np.argmin(there))
            raise UserError(
                f"weighting.scores: {self.path} holds {len(self._lengths):,} solutions up to {self.facts.max_length} "
                f"tokens, but {np.count_nonzero(~there):,} of the {len(numbers):,} solutions of {split} that are drawn "
                f"are not among them (solution {int(numbers[first]) + 1}, {int(lengths[first])} tokens): it was made "
                "for another draw; make it again with the --stage, --config and --override of this run"
            )
        wrong = self._lengths[places] != lengths
        if wrong.any():
            first = int(np.argmax(wrong))
            raise UserError(
                f"weighting.scores: {self.path} has {self._lengths[places[first]]} scores for solution "
                f"{int(numbers[first]) + 1} of {split}, which has {int(lengths[first])} tokens; make them again"
            )

    def of(self, split: str, number: int) -> np.ndarray:
        """Scores of the tokens of a solution that is in the file, float32; a view of the file."""
        places, there = self._find(split, np.array([number]))
        assert there.all()  # `check_solutions` has looked
        return self._scores[places[0]]

    def _find(self, split: str, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where solutions stand, and which are there at all."""
        rows, places = self._places.get(split, (np.zeros(0, int), np.zeros(0, int)))
        if not len(rows):
            return np.zeros(len(numbers), int), np.zeros(len(numbers), bool)
        at = np.minimum(np.searchsorted(rows, numbers), len(rows) - 1)
        return places[at], rows[at] == numbers


def write_part(path: Path, split: str, numbers: np.ndarray, scores: Sequence[np.ndarray]) -> None:
    """Writes the scores of some solutions; the file appears whole."""
    import pyarrow as pa

    temporary = path.with_suffix(".writing")
    columns = [pa.array([split] * len(numbers), pa.string()), pa.array(numbers, pa.int64())]
    columns.append(pa.array(scores, pa.list_(pa.float32())))
    with pa.ipc.new_file(str(temporary), _schema()) as file:
        file.write(pa.record_batch(columns, schema=_schema()))
    temporary.replace(path)


def join_parts(parts: Iterable[Path], output: Path, facts: ScoreFacts) -> None:
    """Writes the parts into one file, in their order."""
    import pyarrow as pa

    tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in parts]  # mapped, not read
    schema = _schema(facts, _digest(tables))
    with pa.ipc.new_file(str(output), schema) as file:
        for table in tables:
            for batch in table.to_batches():
                file.write(pa.record_batch(batch.columns, schema=schema))


def _digest(tables: Iterable[Any]) -> str:
    """SHA-256 over all scores, in order."""
    digest = hashlib.sha256()
    for table in tables:
        for chunk in table["scores"].chunks:
            digest.update(np.ascontiguousarray(chunk.flatten().to_numpy()).data)
    return digest.hexdigest()


def _schema(facts: ScoreFacts | None = None, digest: str = "") -> Any:
    import pyarrow as pa

    fields = [("split", pa.string()), ("row", pa.int64()), ("scores", pa.list_(pa.float32()))]
    if facts is None:
        return pa.schema(fields)
    metadata = {"format_version": FORMAT_VERSION, **facts._asdict(), "scores_sha256": digest}
    return pa.schema(fields, {_METADATA: json.dumps(metadata)})
