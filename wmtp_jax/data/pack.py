"""Documents into rows of a fixed length: which stand together, and the arrays that a model reads."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wmtp_jax.data.tokenize import TokenizedExample


class Rows(NamedTuple):
    """Rows of tokens; R rows of S tokens.

    Attributes:
      tokens: (R, S) int32; 0 where there is none.
      segment_ids: (R, S) int32; 1, 2, ... number the documents of a row, 0 is padding.
      loss_mask: (R, S) bool; True on response tokens.
      outcomes: (R, S) float32; the verified outcome of the document, at each of its tokens. None where nothing
        asks for it.
      scores: (R, S) float32; what a frozen model says of each token: the value after reading it, or the reference's
        cross-entropy of it. None where nothing asks for it, or it is computed in the step.
    """

    # numpy on the host, jax on the devices; a tree of shapes or placements has the same form.
    tokens: Any
    segment_ids: Any
    loss_mask: Any
    outcomes: Any = None
    scores: Any = None

    @property
    def n_tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(np.count_nonzero(self.segment_ids))

    def map(self, change: Callable[[Any], Any]) -> Rows:
        """The same rows with each array changed; what is None stays None."""
        return Rows(*(None if field is None else change(field) for field in self))


class Placement(NamedTuple):
    """Which documents stand in which row: N documents in R rows.

    Attributes:
      documents: (N,) int32, numbers of the documents, row after row.
      starts: (R + 1,) int64, where in ``documents`` each row begins and the last one ends.
    """

    documents: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def row(self, number: int) -> np.ndarray:
        """Numbers of the documents of a row."""
        return self.documents[self.starts[number] : self.starts[number + 1]]


def place_documents(lengths: np.ndarray, max_length: int, seed: int, *, packing: bool = True) -> Placement:
    """Best-fit decreasing bin packing: each document goes to the fullest row that still has room.

    Among documents of one length it is chance who goes where, and so is the order inside a row: the solutions of a
    problem, which come one after another, do not end up side by side.

    Args:
      lengths: (N,) tokens of each document, 1 to ``max_length``.
      max_length: tokens of a row.
      seed: of what is left to chance.
      packing: False: a row for each document, in their order.

    Returns:
      Every document in exactly one row; the same for the same arguments.

    Raises:
      ValueError: a document is longer than a row.
    """
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"a document has {lengths.max()} tokens, a row {max_length}")
    if not packing:
        return Placement(np.arange(len(lengths), dtype=np.int32), np.arange(len(lengths) + 1))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(lengths)).astype(np.int32)
    by_length = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    row_of = np.empty(len(lengths), np.int32)
    row_of[by_length] = _best_fit(lengths[by_length], max_length)
    shuffled = rng.permutation(len(lengths)).astype(np.int32)
    documents = shuffled[np.argsort(row_of[shuffled], kind="stable")]
    return Placement(documents, np.concatenate([[0], np.cumsum(np.bincount(row_of))]))


def _best_fit(lengths: np.ndarray, max_length: int) -> np.ndarray:
    """The row of each document; ``lengths`` come in descending order.

    All documents of a length and all rows with as much room are dealt with at once, which gives the same as one by one:
    a row that has just taken a document is the fullest there is, and takes the next of that length if it can.
    """
    result = np.empty(len(lengths), np.int32)
    rooms: list[int] = []  # sorted; what some rows have left
    rows_with_room: dict[int, list[np.ndarray]] = {}
    n_rows, shortest = 0, lengths[-1] if len(lengths) else 0

    def keep(room: int, rows: np.ndarray) -> None:
        if room < shortest or not len(rows):  # nothing more goes in
            return
        if room not in rows_with_room:
            bisect.insort(rooms, room)
        rows_with_room.setdefault(room, []).append(rows)

    at = 0
    while at < len(lengths):
        length = int(lengths[at])
        end = len(lengths) - int(np.searchsorted(lengths[::-1], length))  # where shorter ones begin
        while at < end:
            fullest = bisect.bisect_left(rooms, length)
            room = rooms.pop(fullest) if fullest < len(rooms) else max_length
            per_row = room // length
            n_needed = -((at - end) // per_row)
            if room in rows_with_room:
                parts = rows_with_room.pop(room)
                rows = np.concatenate(parts) if len(parts) > 1 else parts[0]
                keep(room, rows[n_needed:])
                rows = rows[:n_needed]
            else:
                rows = np.arange(n_rows, n_rows + n_needed, dtype=np.int32)
                n_rows += n_needed
            n_placed = min(len(rows) * per_row, end - at)
            result[at : at + n_placed] = np.repeat(rows, per_row)[:n_placed]
            at += n_placed
            in_last = n_placed - (len(rows) - 1) * per_row
            keep(room - per_row * length, rows[:-1])
            keep(room - in_last * length, rows[-1:])
    return result


def fill_rows(
    rows: Sequence[Sequence[int] | np.ndarray],
    max_length: int,
    document: Callable[[int], TokenizedExample],
    *,
    outcomes: bool = False,
    scores: Callable[[int], np.ndarray] | None = None,
) -> Rows:
    """Lays the documents of each row one after another; what is left of a row is padding.

    Args:
      rows: numbers of the documents of each row.
      max_length: S.
      document: the document of a number.
      outcomes: keep the outcome of each document.
      scores: of the tokens of a document, by number, if there are any.
    """
    shape = (len(rows), max_length)
    result = Rows(
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.float32) if outcomes else None,
        np.zeros(shape, np.float32) if scores is not None else None,
    )
    for r, numbers in enumerate(rows):
        start = 0
        for place, number in enumerate(numbers, start=1):
            tokens, n_prompt, outcome = document(number)
            end = start + len(tokens)
            result.tokens[r, start:end] = tokens
            result.segment_ids[r, start:end] = place
            result.loss_mask[r, start + n_prompt : end] = True
            if outcomes:
                result.outcomes[r, start:end] = outcome
            if scores is not None:
                result.scores[r, start:end] = scores(number)
            start = end
    return result
