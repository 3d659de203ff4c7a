"""Validation: the unweighted loss of each head, or how well a critic tells right from wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from wmtp_jax.data.batches import RowSource, validation_batches
from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.step import per_head

_AT_ONCE = 100  # documents or rows
_COUNTED = 20_000  # examples


class EvalSums(NamedTuple):
    """What batches of validation rows are summed to.

    Attributes:
      ce_n, targets_n: (n,) summed token losses, unweighted, and numbers of targets.
      value, documents: numerator and denominator of the value loss, with the outcomes as targets.
    """

    ce_n: Array
    targets_n: Array
    value: Array
    documents: Array


def make_eval_step(
    graphdef: nnx.GraphDef[MTPTransformer], objective: Objective
) -> Callable[[Any, Rows], tuple[EvalSums, Array | None]]:
    """Validation of one batch: ``(params, rows (B, S)) -> (sums, values (B, S))``, without values in token stages.

    A critic's loss is that of its training with lambda = 1: the target is the (discounted) outcome, whatever the
    schedule of lambda, so that the losses of all steps compare.
    """

    def step(params: Any, rows: Rows) -> tuple[EvalSums, Array | None]:
        model = objective.model(graphdef, params)
        zero = jnp.zeros(())
        if objective.n_heads:  # the best step of these stages is chosen by the loss of tokens alone
            ce_BSn, _, _ = objective.forward(model, rows)
            _, valid_BSn = objective.targets(rows)
            assert ce_BSn is not None
            return EvalSums(
                head_sums(ce_BSn, jnp.ones_like(ce_BSn), valid_BSn), head_counts(valid_BSn), zero, zero
            ), None
        assert objective.value_loss is not None
        _, values_BS, _ = objective.forward(model, rows)
        assert values_BS is not None
        return EvalSums(jnp.zeros(0), jnp.zeros(0), *objective.value_loss.sums(values_BS, rows, 1.0)), values_BS

    return step


def validation_metrics(sums: EvalSums) -> dict[str, float]:
    """``val/loss``, and each head's loss where heads are trained.

    It is unweighted, so that runs with different weightings compare.
    """
    if len(sums.ce_n):
        metrics = {"val/loss": mean_over_heads(sums.ce_n, sums.targets_n)} | per_head("val", sums.ce_n, sums.targets_n)
    else:
        metrics = {"val/loss": sums.value / jnp.maximum(sums.documents, 1.0)}
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


def critic_metrics(values: np.ndarray, rows: RowSource) -> dict[str, float]:
    """How well values tell correct from incorrect solutions.

    Args:
      values: (R, S), V at each position.
      rows: R rows, with outcomes; read one after another.

    Returns:
      ``val/pairwise_accuracy``: share of pairs (correct, incorrect) of one problem whose mean value over the response
      is in the right order, a tie counting half. ``val/explained_variance``: ``1 - Var(R - V) / Var(R)`` over response
      tokens. ``val/position_correlation``: of V with the place of a token in its response; a critic that has learned
      length alone shows up here. A figure that nothing is known of is left out.
    """
    V, R, position, means = [], [], [], []
    for r in range(len(rows)):
        row = rows[r]
        for number, problem in enumerate(rows.split.problem[rows.documents(r)], start=1):
            at = (row.segment_ids == number) & row.loss_mask
            if not at.any():
                continue
            inside = values[r, at].astype(np.float64)
            outcome = float(row.outcomes[at][0])
            V.append(inside)
            R.append(np.full(len(inside), outcome))
            position.append(np.arange(len(inside), dtype=np.float64))
            means.append((int(problem), outcome, inside.mean()))
    V_N, R_N, position_N = (np.concatenate(parts) for parts in (V, R, position))
    metrics: dict[str, float] = {}
    if not np.isfinite(V_N).all():
        return metrics
    if (variance := R_N.var()) > 0:
        metrics["val/explained_variance"] = 1.0 - (R_N - V_N).var() / variance
    if V_N.std() > 0 and position_N.std() > 0:
        metrics["val/position_correlation"] = float(np.corrcoef(V_N, position_N)[0, 1])
    right = pairs = 0.0
    of_problem: dict[int, tuple[list[float], list[float]]] = {}
    for problem, outcome, mean in means:
        of_problem.setdefault(problem, ([], []))[int(outcome > 0.5)].append(mean)
    for incorrect, correct in of_problem.values():
        difference = np.subtract.outer(np.array(correct), np.array(incorrect))
        right += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    if pairs:
        metrics["val/pairwise_accuracy"] = right / pairs
    return metrics


def unigram_cross_entropy(train: RowSource, validation: RowSource, n_heads: int, vocab_size: int) -> list[float]:
    """Loss of each head's targets in validation under the token frequencies of the training responses.

    The simplest model there is (add-one smoothing): a head that has learned anything is below it. The frequencies are
    those of `_COUNTED` training examples, evenly spaced, where there are more.
    """
    seen = np.ones(vocab_size, int)
    counted = train.chosen[:: -(-len(train.chosen) // _COUNTED)]
    for start in range(0, len(counted), _AT_ONCE):
        examples = map(train.split.tokens, counted[start : start + _AT_ONCE])
        responses = np.concatenate([example.tokens[example.n_prompt :] for example in examples])
        seen += np.bincount(responses, minlength=vocab_size)
    cost = -np.log(seen / seen.sum())
    sums, counts = np.zeros(n_heads), np.zeros(n_heads)
    for numbers in validation_batches(len(validation), _AT_ONCE):
        targets, valid = map(np.asarray, mtp_targets(*validation[numbers][:3], n_heads))
        sums += np.where(valid, cost[targets], 0.0).sum((0, 1))
        counts += valid.sum((0, 1))
    return [float(loss) for loss in sums / counts]
