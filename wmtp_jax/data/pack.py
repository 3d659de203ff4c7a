"""Documents into rows of a fixed length: tokens, document numbers, and what is trained on."""

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


def assign_rows(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Best-fit decreasing bin packing: each document goes to the fullest row that still has room.

    Args:
      lengths: tokens of each document, each at most ``max_length``.
      max_length: tokens of a row.

    Returns:
      For each row the numbers of its documents. Deterministic; every document in exactly one row.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []  # sorted; the rooms that some row has
    rows_with_room: dict[int, list[int]] = {}
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(rooms, lengths[document])
        if place == len(rooms):
            row, room = len(rows), max_length
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room], rooms[place]
        rows[row].append(document)
        left = room - lengths[document]
        if left not in rows_with_room:
            rows_with_room[left] = []
            bisect.insort(rooms, left)
        rows_with_room[left].append(row)
    return rows


def fill_rows(
    examples: Sequence[TokenizedExample],
    rows: Sequence[Sequence[int]],
    max_length: int,
    *,
    outcomes: bool = False,
    scores: Sequence[np.ndarray] | None = None,
) -> Rows:
    """Lays the documents of each row one after another; what is left of a row is padding.

    Args:
      examples: the documents.
      rows: numbers of the documents of each row.
      max_length: S.
      outcomes: keep the outcome of each document.
      scores: of the tokens of each document, if there are any.
    """
    shape = (len(rows), max_length)
    result = Rows(
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.float32) if outcomes else None,
        np.zeros(shape, np.float32) if scores is not None else None,
    )
    for r, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents, start=1):
            tokens, n_prompt, outcome = examples[document]
            end = start + len(tokens)
            result.tokens[r, start:end] = tokens
            result.segment_ids[r, start:end] = number
            result.loss_mask[r, start + n_prompt : end] = True
            if outcomes:
                result.outcomes[r, start:end] = outcome
            if scores is not None:
                result.scores[r, start:end] = scores[document]
            start = end
    return result
