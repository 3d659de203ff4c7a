"""One update of the parameters, and one batch of validation: pure functions, jitted by the loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.cross_entropy import token_cross_entropy
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.training.stages import Stage

Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """All that changes from update to update.

    Attributes:
      step: int32 (), updates done.
      params: nested dict of parameters.
      opt_state: state of the optimizer.
    """

    step: Any  # Array; also a shape or a placement in a tree of those
    params: Any
    opt_state: Any


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_train_step(
    graphdef: nnx.GraphDef[MTPTransformer],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    stage: Stage,
    n_heads: int,
) -> Callable[[TrainState, Rows], tuple[TrainState, Metrics]]:
    """The update of a stage: ``(state, rows) -> (state, metrics)``.

    The rows' arrays are (A, B, S): A micro-batches whose numerators and gradients are summed. The
    denominators are those of the whole batch, known before the first micro-batch, so the result
    equals that of one batch of A x B rows even where micro-batches hold different numbers of targets.
    """

    def targets(rows: Rows) -> tuple[Array, Array]:
        return mtp_targets(rows.tokens, rows.segment_ids, rows.loss_mask, n_heads)

    def micro_loss(params: Any, rows: Rows, counts_n: Array) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, params)
        targets_BSn, valid_BSn = targets(rows)
        hidden_BSnD = model.head_hidden(rows.tokens, rows.segment_ids)
        ce_BSn = token_cross_entropy(hidden_BSnD, model.output_kernel, targets_BSn)
        weights_BSn = jax.lax.stop_gradient(stage.weights(ce_BSn, valid_BSn))
        loss = mean_over_heads(head_sums(ce_BSn, weights_BSn, valid_BSn), counts_n)
        return loss, head_sums(ce_BSn, jnp.ones_like(ce_BSn), valid_BSn)

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        _, valid_ABSn = jax.vmap(targets)(rows)
        counts_n = head_counts(valid_ABSn.reshape(-1, *valid_ABSn.shape[2:]))

        def accumulate(total: Any, micro: Rows) -> tuple[Any, None]:
            (loss, sums_n), grads = jax.value_and_grad(micro_loss, has_aux=True)(state.params, micro, counts_n)
            return jax.tree.map(jnp.add, total, (loss, sums_n, grads)), None

        if rows.tokens.shape[0] == 1:  # nothing to sum: no second copy of the gradients
            (loss, sums_n), grads = jax.value_and_grad(micro_loss, has_aux=True)(
                state.params, Rows(*(field[0] for field in rows)), counts_n
            )
        else:
            zero_grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
            (loss, sums_n, grads), _ = jax.lax.scan(accumulate, (jnp.zeros(()), jnp.zeros(n_heads), zero_grads), rows)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)  # norms and sums are float32
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "train/loss": loss,
            "train/unweighted_ce_loss": mean_over_heads(sums_n, counts_n),
            "train/grad_norm": optax.tree.norm(grads),
            "train/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "train/target_tokens": counts_n[0],
            "train/tokens": jnp.sum(rows.segment_ids > 0, dtype=jnp.float32),
        } | _per_head("train", sums_n, counts_n)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def make_eval_step(graphdef: nnx.GraphDef[MTPTransformer], n_heads: int) -> Callable[[Any, Rows], tuple[Array, Array]]:
    """Validation of one batch: ``(params, rows (B, S)) -> (sums_n, counts_n)`` of unweighted losses."""

    def step(params: Any, rows: Rows) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, params)
        targets_BSn, valid_BSn = mtp_targets(*rows, n_heads)
        hidden_BSnD = model.head_hidden(rows.tokens, rows.segment_ids)
        ce_BSn = token_cross_entropy(hidden_BSnD, model.output_kernel, targets_BSn)
        return head_sums(ce_BSn, jnp.ones_like(ce_BSn), valid_BSn), head_counts(valid_BSn)

    return step


def validation_metrics(sums_n: Array, counts_n: Array) -> dict[str, float]:
    """``val/loss`` (unweighted, so that runs with different weightings compare) and each head's loss."""
    metrics = {"val/loss": mean_over_heads(sums_n, counts_n)} | _per_head("val", sums_n, counts_n)
    return {name: float(value) for name, value in metrics.items()}


def _per_head(prefix: str, sums_n: Array, counts_n: Array) -> Metrics:
    means_n = sums_n / jnp.maximum(counts_n, 1.0)
    return {f"{prefix}/head_{k + 1}_ce_loss": means_n[k] for k in range(means_n.shape[0])}
