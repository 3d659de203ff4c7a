"""A frozen model's scores of tokens: the critic's values, or the reference's cross-entropy.

They are the same in every epoch. ``python -m wmtp_jax.score`` computes them once and keeps them in a file, which
training reads beside the tokens; without a file the frozen model scores every batch.

The file is an Arrow IPC file: a row a solution with ``split``, ``row`` (its number in the split) and ``scores``
(float32, one a token); its metadata says what they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource
from wmtp_jax.losses.cross_entropy import token_cross_entropy
from wmtp_jax.losses.documents import before
from wmtp_jax.losses.mtp import mtp_targets
from wmtp_jax.models import store
from wmtp_jax.models.mtp import MTPTransformer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
_PROBE = "### Response:\nfor i in range(10):\n\tprint(i)  # 안녕 \U0001f600\n"


class ScoreFacts(NamedTuple):
    """What a file of scores was made from.

    Attributes:
      kind: ``critic`` (values) or ``reference`` (cross-entropy).
      model: fingerprint of the frozen model.
      data: fingerprint of the data set.
      tokenizer: fingerprint of the tokenizer.
      max_length: longer solutions were left out.
    """

    kind: str
    model: str
    data: str
    tokenizer: str
    max_length: int


def score_tokens(model: MTPTransformer, kind: str, tokens_BS: Array, segment_ids_BS: Array) -> Array:
    """Scores (B, S) float32: at token u the value after reading it, or the reference's cross-entropy of it.

    The first token of a document has no cross-entropy: 0.
    """
    if kind == "critic":
        return model.values(tokens_BS, segment_ids_BS)
    targets_BS1, valid_BS1 = mtp_targets(tokens_BS, segment_ids_BS, segment_ids_BS > 0, 1)
    hidden_BS1D = model.head_hidden(tokens_BS, segment_ids_BS, 1)
    ce_BS = token_cross_entropy(hidden_BS1D, model.output_kernel, targets_BS1)[..., 0]
    return before(jnp.where(valid_BS1[..., 0], ce_BS, 0.0), segment_ids_BS, 0.0)


def make_scorer(graphdef: nnx.GraphDef[MTPTransformer], kind: str) -> Callable[[Any, Array, Array], Array]:
    """``(params, tokens, segment_ids) -> scores``, arrays (B, S), or (A, B, S) with one micro-batch after another."""

    def score(params: Any, tokens: Array, segment_ids: Array) -> Array:
        model = nnx.merge(graphdef, params)
        if tokens.ndim == 2:
            return score_tokens(model, kind, tokens, segment_ids)
        return jax.lax.map(lambda micro: score_tokens(model, kind, *micro), (tokens, segment_ids))

    return score


def check_scorer(source: ModelSource, kind: str, setting: str) -> None:
    """Raises UserError where a model cannot score: a critic needs a value head, a reference a prediction head."""
    if kind == "critic" and source.config.value_head is None:
        raise UserError(
            f"{setting}: {source.directory} has no value head; a critic is a run of `--stage critic`, or an imported "
            "reward model"
        )
    if kind == "reference" and not source.config.n_future_tokens:
        raise UserError(f"{setting}: {source.directory} gives values, not tokens; a reference predicts tokens")


def model_fingerprint(source: ModelSource) -> str:
    """SHA-256 over a model's description and weights as they are on the disk."""
    digest = hashlib.sha256(repr(source.config).encode())
    folders = [source.directory / name for name in (store.PARAMS_FOLDER, store.ADAPTER_FOLDER)]
    files = [path for folder in folders for path in folder.rglob("*")] if not source.foreign else source.foreign.files
    for path in sorted(path for path in files if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over a tokenizer's vocabulary, its special tokens, and how it cuts a text."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.bos_token_id, tokenizer.eos_token_id]
    content.append(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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
            metadata = json.loads((self._table.schema.metadata or {})[b"wmtp_jax"])
            if metadata.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format version")
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
                    f"weighting.scores: {self.path} has no scores for solution {int(number) + 1} of {split} (made "
                    f"for solutions up to {self.facts.max_length} tokens); make them again with the run's "
                    f"dataset.max_length: `python -m wmtp_jax.score --max-length {limit}`"
                )
            scores = self._scores[place].values.to_numpy()
            if len(scores) != length:
                raise UserError(
                    f"weighting.scores: {self.path} has {len(scores)} scores for solution {int(number) + 1} of "
                    f"{split}, which has {length} tokens; make them again"
                )
            result.append(scores)
        return result
