"""Examples of a split -> rows of tokens, made when they are asked for -> the batch of every training step.

Nothing but numbers of documents is held in memory. The batch of step i is a function of the settings and i alone, so
a resumed run needs no saved position: it asks for the batches from its step on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import grain
import numpy as np
from jax.sharding import Sharding

from wmtp_jax.data.pack import Placement, Rows, fill_rows, place_documents
from wmtp_jax.data.store import Split
from wmtp_jax.errors import UserError
from wmtp_jax.parallel.sharding import place_rows

# Reading waits for the disk, so several threads; a few batches are enough to bridge a slow one.
_READ = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)


_MOST_EPOCHS = 2**20  # the settings allow a million


class RowSource:
    """The examples of a split as rows of tokens, which are read from the disk when they are asked for.

    Args:
      split: where the examples are.
      chosen: their numbers: (N,), or (N, 2) for pairs, whose sides are laid one below the other: document j of row
        2i and document j of row 2i + 1.
      max_length: tokens of a row; no example is longer.
      packing: several documents a row.
      seed: of the placement, see `place_documents`.
      outcomes: keep each document's outcome.
      bins: difficulty bin of each of ``chosen``; a row holds documents of one bin.

    Attributes:
      split, max_length, outcomes: as given.
      scores: gives the scores of the tokens of a document, by its number in the split; None (at first): rows have none.
      rows_per_unit: rows that are read together: 2 where a pair's sides stand one below the other, else 1.
      bins: number of the difficulty bin of each unit (`rows_per_unit` rows); None where nothing asks for it.
    """

    def __init__(
        self,
        split: Split,
        chosen: np.ndarray,
        max_length: int,
        *,
        packing: bool,
        seed: int,
        outcomes: bool = False,
        bins: np.ndarray | None = None,
    ):
        self.split, self.max_length = split, max_length
        self.outcomes = outcomes
        self.scores: Callable[[int], np.ndarray] | None = None
        self._chosen = chosen if chosen.ndim == 2 else chosen[:, None]
        self.rows_per_unit = self._chosen.shape[1]
        lengths = split.lengths[self._chosen].max(axis=1)
        place = partial(place_documents, max_length=max_length, seed=seed, packing=packing)
        self.bins = None
        if bins is None:
            self._placement = place(lengths)
        else:
            self._placement, self.bins = _place_by_bin(lengths, bins, place)

    def __len__(self) -> int:
        return len(self._placement) * self.rows_per_unit

    def __getitem__(self, numbers: int | np.ndarray) -> Rows:
        """Rows by number, of the shape of ``numbers`` and their tokens; -1 stands for one of padding."""
        shape = np.shape(numbers)
        documents = [self.documents(row) if row >= 0 else () for row in np.ravel(numbers)]
        rows = fill_rows(documents, self.max_length, self.split.tokens, outcomes=self.outcomes, scores=self.scores)
        return rows.map(lambda field: field.reshape(*shape, self.max_length))

    def documents(self, row: int) -> np.ndarray:
        """Numbers (in the split) of the documents of a row, in their order."""
        unit, side = divmod(int(row), self.rows_per_unit)
        return self._chosen[self._placement.row(unit), side]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of all documents of some rows."""
        return np.concatenate([self.split.lengths[self.documents(row)] for row in np.ravel(numbers)])

    @property
    def documents_per_row(self) -> int:
        """Documents in the fullest row."""
        return int(np.diff(self._placement.starts).max())

    @property
    def chosen(self) -> np.ndarray:
        """Numbers (in the split) of all documents, in the order in which they were drawn."""
        return self._chosen.reshape(-1)

    @property
    def n_tokens(self) -> int:
        """Tokens in all rows, padding not counted."""
        return int(self.split.lengths[self._chosen].sum(dtype=np.int64))

    @property
    def fill(self) -> float:
        """Share of the rows that is no padding."""
        return self.n_tokens / (len(self) * self.max_length)

    def digest(self) -> str:
        """SHA-256 over which examples there are and where each stands."""
        digest = hashlib.sha256(f"{self.max_length} {self._chosen.shape}".encode())
        for array in (self._chosen, *self._placement):
            digest.update(np.ascontiguousarray(array, np.int64).data)
        return digest.hexdigest()


def _place_by_bin(
    lengths: np.ndarray, bins: np.ndarray, place: Callable[[np.ndarray], Placement]
) -> tuple[Placement, np.ndarray]:
    """Documents of each bin in rows of their own, and the bin of each row."""
    documents, counts, row_bins = [], [np.zeros(1, int)], []
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        placed = place(lengths[members])
        documents.append(members[placed.documents])
        counts.append(np.diff(placed.starts))
        row_bins.append(np.full(len(placed), number))
    return Placement(np.concatenate(documents), np.cumsum(np.concatenate(counts))), np.concatenate(row_bins)


def count_steps(n_rows: int, n_epochs: float, rows_per_step: int) -> int:
    """Updates in a run: whole steps in ``n_epochs`` passes over the rows.

    Raises:
      UserError: the rows do not fill one step.
    """
    steps = math.floor(n_rows * n_epochs / rows_per_step)
    if steps < 1:
        raise UserError(
            f"{n_rows} rows x {n_epochs} epochs do not fill one step of {rows_per_step} rows; raise "
            "data_sampling.n_samples or training.n_epochs, or lower training.batch_size or "
            "training.gradient_accumulation_steps"
        )
    return steps


class Batch(NamedTuple):
    """What a step reads.

    Attributes:
      rows: on the devices, (accumulation, rows of a micro-batch, S).
      lengths: tokens of each of their documents, those of other processes included.
      numbers: of the rows in their source, those of other processes included, (accumulation, rows of a micro-batch).
    """

    rows: Rows
    lengths: np.ndarray
    numbers: np.ndarray


def training_batches(
    source: RowSource,
    sharding: Sharding,
    *,
    rows_per_step: int,
    accumulation: int,
    seed: int,
    first_step: int,
    last_step: int,
    order: np.ndarray | None = None,
) -> grain.DatasetIterator[Batch]:
    """The batches of steps ``first_step`` (from 0) up to, not including, ``last_step``.

    Rows come in a new random order every epoch, each once an epoch, the same for any number of processes; a process
    reads those of its own devices. Threads read them and send them to the devices some steps ahead.

    Args:
      source: what is read.
      sharding: of a batch (accumulation, rows of a micro-batch, S).
      rows_per_step, accumulation: sizes of a batch.
      seed: of the order.
      first_step, last_step: which batches.
      order: numbers of units in the order in which they are read, instead of the random one.

    Returns:
      An iterator with the state of Grain's (``get_state``, ``set_state``); ``close`` ends its threads.
    """
    batches = batch_numbers(
        len(source),
        rows_per_step=rows_per_step,
        accumulation=accumulation,
        seed=seed,
        rows_per_unit=source.rows_per_unit,
        order=order,
    )

    def read(numbers: np.ndarray) -> Batch:
        return Batch(place_rows(source.__getitem__, numbers, sharding), source.lengths(numbers), numbers)

    iterator = iter(batches[:last_step].map(read).to_iter_dataset(_READ))
    grain.experimental.set_next_index(iterator, first_step)
    return iterator


def batch_numbers(
    n_rows: int,
    *,
    rows_per_step: int,
    accumulation: int,
    seed: int,
    rows_per_unit: int = 1,
    order: np.ndarray | None = None,
) -> grain.MapDataset[np.ndarray]:
    """Numbers of the rows of each step, (accumulation, rows_per_step / accumulation); see `training_batches`.

    ``rows_per_unit`` rows stay together, one below the other.
    """
    if order is None:
        # Not without end: where a batch is one unit, its length would be more than Python's len can say.
        units = grain.MapDataset.range(n_rows // rows_per_unit).seed(seed).shuffle().repeat(_MOST_EPOCHS)
    else:
        units = grain.MapDataset.source(order)

    def rows_of(units: np.ndarray) -> np.ndarray:
        return (units[:, None] * rows_per_unit + np.arange(rows_per_unit)).reshape(accumulation, -1)

    return units.batch(rows_per_step // rows_per_unit).map(rows_of)


def validation_batches(n_rows: int, batch_size: int) -> Iterator[np.ndarray]:
    """Numbers of all rows in order, ``batch_size`` at a time; the last batch is filled up with -1."""
    for start in range(0, n_rows, batch_size):
        numbers = np.arange(start, start + batch_size)
        yield np.where(numbers < n_rows, numbers, -1)
