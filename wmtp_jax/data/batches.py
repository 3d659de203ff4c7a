"""Examples of a split -> rows of tokens -> the batch of every training step.

The batch of step i is a function of the settings and i alone, so a resumed run needs no saved
position: it asks for the batches from its step on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import grain
import numpy as np

from wmtp_jax.console import Steps
from wmtp_jax.data.pack import Rows, assign_rows, fill_rows
from wmtp_jax.data.store import Split
from wmtp_jax.data.tokenize import TokenizedExample, encode_examples
from wmtp_jax.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZE_AT_ONCE = 1000


class RowReport(NamedTuple):
    """What became of the sampled examples: figures for the summary."""

    examples: int
    left_out_too_long: int
    rows: int
    tokens: int
    fill: float


class RowSet(NamedTuple):
    """The examples of a split as rows of tokens.

    Attributes:
      rows: what is trained on.
      documents: for each row, the numbers (in the split) of its documents.
      rows_per_unit: rows that are read together: 2 where a pair's sides stand one below the other, else 1.
      bins: number of the difficulty bin of each unit; None where nothing asks for it.
      report: figures for the summary.
    """

    rows: Rows
    documents: list[list[int]]
    rows_per_unit: int
    bins: np.ndarray | None
    report: RowReport

    @property
    def documents_per_row(self) -> int:
        """Documents in the fullest row."""
        return max(len(numbers) for numbers in self.documents)


def build_rows(
    split: Split,
    chosen: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    packing: bool,
    vocab_size: int,
    outcomes: bool = False,
    scores: Callable[[np.ndarray, list[int]], list[np.ndarray]] | None = None,
    bins: np.ndarray | None = None,
) -> RowSet:
    """Tokenises the chosen examples and lays them into rows.

    An example longer than ``max_length`` is left out and counted; of a pair, both.

    Args:
      split: where the examples are.
      chosen: their numbers: (N,), or (N, 2) for pairs, whose sides are laid one below the other: document j of row
        2i and document j of row 2i + 1.
      tokenizer: of the model.
      max_length: tokens of a row.
      packing: several documents a row.
      vocab_size: of the model.
      outcomes: keep each document's outcome.
      scores: ``(numbers, lengths) -> scores of the tokens`` of documents; None: there are none.
      bins: difficulty bin of each of ``chosen``; a row holds documents of one bin.

    Raises:
      UserError: a token id does not exist in the model's vocabulary, or every example is too long.
    """
    numbers = chosen.reshape(-1)
    n_sides = chosen.shape[1] if chosen.ndim == 2 else 1
    documents: list[TokenizedExample] = []
    with Steps(f"tokenising {split.name}", len(numbers)) as progress:
        for start in range(0, len(numbers), _TOKENIZE_AT_ONCE):
            part = numbers[start : start + _TOKENIZE_AT_ONCE]
            documents += encode_examples(tokenizer, split.read(part))
            progress.advance(len(part))
    lengths = np.array([len(document.tokens) for document in documents]).reshape(-1, n_sides)
    units = np.flatnonzero((lengths <= max_length).all(axis=1))  # a document, or a pair
    if not len(units):
        raise UserError(
            f"all {len(documents):,} examples of {split.path} are longer than dataset.max_length {max_length} "
            f"(the shortest has {lengths.min()} tokens); raise it"
        )
    kept = [int(unit) * n_sides + side for unit in units for side in range(n_sides)]
    largest = max(int(documents[i].tokens.max()) for i in kept)
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model's vocabulary is {vocab_size} (ids below it); "
            "use the model's own tokenizer (model.tokenizer) or set model.architecture.vocab_size to at least "
            f"{len(tokenizer)}"
        )
    placed, unit_bins = _place(units, lengths.max(axis=1), None if bins is None else bins[units], max_length, packing)
    placement = [[unit * n_sides + side for unit in row] for row in placed for side in range(n_sides)]
    in_rows = [[int(numbers[i]) for i in row] for row in placement]
    rows = fill_rows(
        documents,
        placement,
        max_length,
        outcomes=outcomes,
        scores=None if scores is None else scores(numbers, [len(document.tokens) for document in documents]),
    )
    report = RowReport(
        examples=len(kept),
        left_out_too_long=len(documents) - len(kept),
        rows=len(placement),
        tokens=rows.n_tokens,
        fill=rows.n_tokens / rows.tokens.size,
    )
    return RowSet(rows, in_rows, n_sides, unit_bins, report)


def _place(
    units: np.ndarray, lengths: np.ndarray, bins: np.ndarray | None, max_length: int, packing: bool
) -> tuple[list[list[int]], np.ndarray | None]:
    """Which units stand together in a row (pairs: in two rows), and the bin of each row."""
    placed: list[list[int]] = []
    row_bins: list[Any] = []
    for number in [None] if bins is None else np.unique(bins):
        members = units if number is None else units[bins == number]
        rows = assign_rows([int(lengths[unit]) for unit in members], max_length) if packing else None
        placed += [[int(members[i]) for i in row] for row in rows] if rows else [[int(unit)] for unit in members]
        row_bins += [number] * (len(placed) - len(row_bins))
    return placed, None if bins is None else np.array(row_bins)


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


def training_batches(
    n_rows: int,
    *,
    rows_per_step: int,
    accumulation: int,
    seed: int,
    first_step: int,
    last_step: int,
    rows_per_unit: int = 1,
    order: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The rows of steps ``first_step`` (from 0) up to, not including, ``last_step``.

    Rows come in a new random order every epoch, each once an epoch.

    Args:
      n_rows: how many there are.
      rows_per_step, accumulation: sizes of a batch.
      seed: of the order.
      first_step, last_step: which batches.
      rows_per_unit: rows that stay together, one below the other.
      order: numbers of units in the order in which they are read, instead of the random one.

    Yields:
      Numbers of rows (accumulation, rows_per_step / accumulation).
    """
    if order is None:
        units = grain.MapDataset.range(n_rows // rows_per_unit).seed(seed).shuffle().repeat()
    else:
        units = grain.MapDataset.source(order)
    batches = units.batch(rows_per_step // rows_per_unit)
    for step in range(first_step, last_step):
        yield (batches[step][:, None] * rows_per_unit + np.arange(rows_per_unit)).reshape(accumulation, -1)


def validation_batches(n_rows: int, batch_size: int) -> Iterator[np.ndarray]:
    """Numbers of all rows in order, ``batch_size`` at a time; the last batch is filled up with -1."""
    for start in range(0, n_rows, batch_size):
        numbers = np.arange(start, start + batch_size)
        yield np.where(numbers < n_rows, numbers, -1)
