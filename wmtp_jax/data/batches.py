"""Examples of a split -> rows of tokens -> the batch of every training step.

The batch of step i is a function of the settings and i alone, so a resumed run needs no saved
position: it asks for the batches from its step on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

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


def build_rows(
    split: Split,
    chosen: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    packing: bool,
    vocab_size: int,
) -> tuple[Rows, RowReport]:
    """Tokenises the chosen examples and lays them into rows.

    An example longer than ``max_length`` is left out and counted.

    Raises:
      UserError: a token id does not exist in the model's vocabulary, or every example is too long.
    """
    documents: list[TokenizedExample] = []
    with Steps(f"tokenising {split.name}", len(chosen)) as progress:
        for start in range(0, len(chosen), _TOKENIZE_AT_ONCE):
            part = chosen[start : start + _TOKENIZE_AT_ONCE]
            documents += encode_examples(tokenizer, split.read(part))
            progress.advance(len(part))
    short = [document for document in documents if len(document.tokens) <= max_length]
    if not short:
        shortest = min(len(document.tokens) for document in documents)
        raise UserError(
            f"all {len(documents):,} examples of {split.path} are longer than dataset.max_length {max_length} "
            f"(the shortest has {shortest} tokens); raise it"
        )
    largest = max(int(document.tokens.max()) for document in short)
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer gives token {largest}, but the model's vocabulary is {vocab_size} (ids below it); "
            "use the model's own tokenizer (model.tokenizer) or set model.architecture.vocab_size to at least "
            f"{len(tokenizer)}"
        )
    lengths = [len(document.tokens) for document in short]
    placement = assign_rows(lengths, max_length) if packing else [[i] for i in range(len(short))]
    rows = fill_rows(short, placement, max_length)
    report = RowReport(
        examples=len(short),
        left_out_too_long=len(documents) - len(short),
        rows=len(placement),
        tokens=rows.n_tokens,
        fill=rows.n_tokens / rows.tokens.size,
    )
    return rows, report


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
    rows: Rows, *, rows_per_step: int, accumulation: int, seed: int, first_step: int, last_step: int
) -> Iterator[Rows]:
    """The batches of steps ``first_step`` (from 0) up to, not including, ``last_step``.

    Rows come in a new random order every epoch, each once an epoch. A thread prepares batches ahead.

    Yields:
      Rows with arrays (accumulation, rows_per_step / accumulation, S).
    """
    indices = grain.MapDataset.range(len(rows.tokens)).seed(seed).shuffle().repeat()

    def gather(chosen: np.ndarray) -> Rows:
        return Rows(*(field[chosen].reshape(accumulation, -1, field.shape[1]) for field in rows))

    batches = indices.batch(rows_per_step).slice(slice(first_step, last_step)).map(gather)
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def validation_batches(rows: Rows, batch_size: int) -> Iterator[Rows]:
    """All rows in order; the last batch is filled up with empty rows."""
    for start in range(0, len(rows.tokens), batch_size):
        part = Rows(*(field[start : start + batch_size] for field in rows))
        missing = batch_size - len(part.tokens)
        yield Rows(*(np.pad(field, ((0, missing), (0, 0))) for field in part))
