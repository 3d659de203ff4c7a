"""A frozen model's scores of tokens: the critic's values, or the reference's cross-entropy.

They are the same in every epoch. ``python -m wmtp_jax.score`` computes them once and keeps them in a file
(`wmtp_jax.data.scores`), which training reads beside the tokens; without a file the frozen model scores every batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource
from wmtp_jax.losses.cross_entropy import token_cross_entropy
from wmtp_jax.losses.documents import before
from wmtp_jax.losses.mtp import mtp_targets
from wmtp_jax.models.mtp import MTPTransformer


def score_tokens(model: MTPTransformer, kind: str, tokens_BS: Array, segment_ids_BS: Array) -> Array:
    """Scores (B, S) float32: at token u the value after reading it, or the reference's cross-entropy of it.

    The first token of a document has no cross-entropy: 0.
    """
    if kind == "critic":
        return model.values(tokens_BS, segment_ids_BS)
    targets_BS1, valid_BS1 = mtp_targets(tokens_BS, segment_ids_BS, segment_ids_BS > 0, 1)
    hidden_1BSD = model.head_hidden(tokens_BS, segment_ids_BS, 1)
    ce_BS = token_cross_entropy(hidden_1BSD, model.output_kernel, targets_BS1)[..., 0]
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
