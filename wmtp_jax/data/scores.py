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
    """Reads a file of scores.

    Args:
      path: the file.

    Raises:
      UserError: there is none, or it is something else.
    """

    def __init__(self, path: Path):
        import pyarrow as pa

        if not path.is_file():
            raise UserError(f"{path}: no such file of scores; make it with `python -m wmtp_jax.score`")
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            metadata = json.loads((self._table.schema.metadata or {})[_METADATA.encode()])
            if metadata.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format version")
            digest = metadata.pop("scores_sha256")
            self.facts = ScoreFacts(**metadata)
            splits = self._table["split"].to_pylist()
            rows = self._table["row"].to_pylist()
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: not a file of scores ({str(error).splitlines()[0]}); make it with `python -m wmtp_jax.score`"
            ) from error
        self.path = path
        self._place = {key: place for place, key in enumerate(zip(splits, rows, strict=True))}
        self._scores = self._table["scores"]
        if _digest([self._table]) != digest:
            raise UserError(f"{path}: damaged: the scores are not those that were written; make or copy the file again")

    def figures(self) -> dict[str, Any]:
        """Numbers of solutions and tokens, and the mean score."""
        values = [chunk.flatten().to_numpy() for chunk in self._scores.chunks]
        tokens = sum(len(part) for part in values)
        total = sum(float(part.sum(dtype=float)) for part in values)
        return {"solutions": len(self._place), "tokens": tokens, "mean": total / max(tokens, 1)}

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

    def of(
        self, split: str, numbers: Sequence[int] | np.ndarray, lengths: Sequence[int], limit: int
    ) -> list[np.ndarray]:
        """Scores of solutions, one array each; of one longer than ``limit``, which no row takes, an empty one.

        Raises:
          UserError: some are not in the file, or have another number of tokens.
        """
        result = []
        for number, length in zip(numbers, lengths, strict=True):
            if length > limit:
                result.append(np.zeros(0, np.float32))
                continue
            place = self._place.get((split, int(number)))
            if place is None:
                raise UserError(
                    f"weighting.scores: {self.path} holds {len(self._place):,} solutions up to {self.facts.max_length} "
                    f"tokens, but not solution {int(number) + 1} of {split} ({length} tokens): it was made for another "
                    "draw; make it again with the --stage, --config and --override of this run"
                )
            scores = self._scores[place].values.to_numpy()
            if len(scores) != length:
                raise UserError(
                    f"weighting.scores: {self.path} has {len(scores)} scores for solution {int(number) + 1} of "
                    f"{split}, which has {length} tokens; make them again"
                )
            result.append(scores)
        return result


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
