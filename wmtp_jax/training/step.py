"""One update of the parameters: a pure function, jitted by the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.spikes import SpikeGuard
from wmtp_jax.weighting.td import initial_whitening
from wmtp_jax.weighting.tokens import Tokens, Whitening

Metrics = dict[str, Array]
Trains = Callable[[str], bool]


class TrainState(NamedTuple):
    """All that changes from update to update.

    Attributes:
      step: int32 (), updates done, skipped ones included.
      params: nested dict of parameters.
      opt_state: state of the optimizer, of the parameters that are trained.
      whitening: moving averages of TD errors.
      skipped: int32 (), updates skipped so far because something was not finite, or was a spike.
      skipped_in_a_row: int32 (), of those, the ones since the last update that was not.
      spikes: what the guard against spikes remembers, `Recent`; None without a guard.
    """

    step: Any  # Array; also a shape or a placement in a tree of those
    params: Any
    opt_state: Any
    whitening: Any
    skipped: Any
    skipped_in_a_row: Any
    spikes: Any = None


def init_state(
    params: Any, optimizer: optax.GradientTransformation, trains: Trains, guard: SpikeGuard | None = None
) -> TrainState:
    """The state before the first update; ``trains(dotted name)`` says which parameters are updated."""

    def zero() -> Array:  # not one array for all: each is donated
        return jnp.zeros((), jnp.int32)

    opt_state = optimizer.init(split_params(params, trains)[0])
    spikes = guard.initial() if guard else None
    return TrainState(zero(), params, opt_state, initial_whitening(), zero(), zero(), spikes)


def split_params(params: Any, trains: Trains) -> tuple[Any, Any]:
    """The parameters that are trained, and the others: two nested dicts."""
    flat = flatten_dict(params, sep=".")
    trained = {name: leaf for name, leaf in flat.items() if trains(name)}
    kept = {name: leaf for name, leaf in flat.items() if name not in trained}
    return unflatten_dict(trained, sep="."), unflatten_dict(kept, sep=".")


def join_params(trained: Any, kept: Any) -> Any:
    """The inverse of `split_params`."""
    return unflatten_dict({**flatten_dict(kept, sep="."), **flatten_dict(trained, sep=".")}, sep=".")


def make_train_step(
    graphdef: nnx.GraphDef[MTPTransformer],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    objective: Objective,
    offload: tuple[Any, Any] | None = None,
    guard: SpikeGuard | None = None,
) -> Callable[[TrainState, Rows], tuple[TrainState, Metrics]]:
    """The update under an objective: ``(state, rows) -> (state, metrics)``.

    ``offload``: placements of the optimizer's state while it is worked on, and between updates, where these differ.

    The rows' arrays are (A, B, S): A micro-batches whose numerators and gradients are summed. Denominators and
    weights are those of the whole batch, known before the first gradient, so the result equals that of one batch
    of A x B rows. Where weights depend on what the model says, and A > 1 or adapters have dropout, one more forward
    pass (without dropout) finds them.

    An update whose loss or gradient is not finite changes nothing but the counts of skipped updates; nor does one that
    ``guard`` calls a spike, but for what the guard remembers.
    """

    def weigh(rows: Rows, ce_BSn: Any, values_BS: Any, whitening: Whitening, noise_BSn: Any) -> Any:
        """Weights of all rows at once, arrays (B, S)."""
        assert objective.scheme is not None
        scores_BS = rows.scores if objective.needs_scores else values_BS
        tokens = Tokens(
            *jax.lax.stop_gradient((ce_BSn, objective.targets(rows)[1], scores_BS)),
            rows.outcomes,
            rows.loss_mask.astype(bool),
            rows.segment_ids,
            noise_BSn,
        )
        weights_BSn, whitening, metrics = objective.scheme(tokens, whitening)
        return jax.lax.stop_gradient((weights_BSn, whitening, metrics))

    def micro_loss(
        trained: Any, kept: Any, rows: Rows, weighed: Any, whitening: Whitening, counts: Any, at: Any
    ) -> tuple[Array, Any]:
        """Loss of a micro-batch (its share of the whole), sums for the metrics, and what was weighed."""
        key, gae_lambda, noise_BSn = at
        model = objective.model(graphdef, join_params(trained, kept), key)
        ce_BSn, values_BS, noisy_BS = objective.forward(model, rows, key)
        loss, sums = jnp.zeros(()), {}
        if objective.n_heads:
            _, valid_BSn = objective.targets(rows)
            if weighed is None:
                weighed = weigh(rows, ce_BSn, values_BS, whitening, noise_BSn)
                counts = {**counts, **_weight_counts(weighed[0], valid_BSn)}
            weights_BSn = weighed[0]
            sums["weighted_n"] = head_sums(ce_BSn, weights_BSn, valid_BSn)
            sums["ce_n"] = head_sums(ce_BSn, jnp.ones_like(ce_BSn), valid_BSn)
            loss = loss + _head_mean(objective, sums["weighted_n"], counts)
        if objective.value_loss:
            sums["value"], _ = objective.value_loss.sums(noisy_BS, rows, gae_lambda)
            sums["value_square"] = jnp.sum(jnp.where(rows.loss_mask, jnp.square(values_BS), 0.0))
            loss = loss + objective.value_coef * sums["value"] / jnp.maximum(counts["documents"], 1.0)
        return loss, (sums, weighed, counts)

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        trained, kept = split_params(state.params, objective.trains)
        key = jax.random.fold_in(jax.random.key(objective.seed), state.step)
        gae_lambda = objective.value_loss.gae_lambda(state.step) if objective.value_loss else 1.0
        n_micro = rows.tokens.shape[0]
        counts: dict[str, Array] = {"response": jnp.sum(rows.loss_mask, dtype=jnp.float32)}
        if objective.n_heads:
            counts["targets_n"] = jnp.sum(jax.vmap(lambda r: head_counts(objective.targets(r)[1]))(rows), axis=0)
        if objective.value_loss:
            counts["documents"] = jnp.sum(jax.vmap(objective.value_loss.count)(rows))
        noise = None
        if objective.draws:  # by the place of a row in the whole batch, however that is divided
            shape = (n_micro * rows.tokens.shape[1], rows.tokens.shape[2], objective.n_heads)
            noise = jax.random.uniform(key, shape).reshape(n_micro, -1, *shape[1:])
        weighed = None
        if objective.n_heads and (objective.weighs_first(n_micro) or not objective.reads_model):
            said: tuple[Any, Any] = None, None
            if objective.reads_model:
                said = _all_micro(lambda r: objective.forward(objective.model(graphdef, state.params), r)[:2], rows)
            flat = rows.map(_flatten)
            # Rows are sharded by B: B stays the outer axis, so that nothing moves between devices.
            ce_BSn, values_BS = jax.tree.map(_flatten, said)
            weighed = weigh(flat, ce_BSn, values_BS, state.whitening, jax.tree.map(_flatten, noise))
            counts |= _weight_counts(weighed[0], objective.targets(flat)[1])
            weighed = (_unflatten(weighed[0], n_micro), *weighed[1:])

        def loss_and_grads(micro: Rows, weights_BSn: Array | None, number: Array | int) -> Any:
            # Dropout is drawn for each micro-batch: it alone depends on how a batch is divided.
            first_noise = None if noise is None else noise[0]  # read where there is one micro-batch
            at = jax.random.fold_in(key, number), gae_lambda, first_noise
            inner = None if weighed is None else (weights_BSn, *weighed[1:])
            return jax.value_and_grad(micro_loss, has_aux=True)(
                trained, kept, micro, inner, state.whitening, counts, at
            )

        if n_micro == 1:  # nothing to sum: no second copy of the gradients
            first = rows.map(lambda field: field[0])
            (loss, (sums, weighed, counts)), grads = loss_and_grads(
                first, None if weighed is None else weighed[0][0], 0
            )
        else:

            def accumulate(total: Any, xs: Any) -> tuple[Any, None]:
                (loss, (sums, _, _)), grads = loss_and_grads(*xs)
                return jax.tree.map(jnp.add, total, (loss, sums, grads)), None

            xs = (rows, None if weighed is None else weighed[0], jnp.arange(n_micro))
            (_, (sums, _, _)), _ = jax.eval_shape(loss_and_grads, *jax.tree.map(lambda x: x[0], xs))
            zero_sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
            zero_grads = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
            (loss, sums, grads), _ = jax.lax.scan(accumulate, (jnp.zeros(()), zero_sums, zero_grads), xs)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)  # norms and sums are float32
        norm = optax.tree.norm(grads)
        if offload:  # fetched when the gradient is there, and not before
            near, grads = jax.lax.optimization_barrier((state.opt_state, grads))
            state = state._replace(opt_state=jax.device_put(near, offload[0]))
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        params = optax.apply_updates(trained, updates)
        whitening = state.whitening if weighed is None else weighed[1]
        done = TrainState(state.step, params, opt_state, whitening, state.skipped, jnp.zeros((), jnp.int32))
        skipped = state._replace(
            params=trained, skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1, spikes=None
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # A score or a statistic that is not finite may leave the loss finite: a target is not chosen, a weight clipped.
        finite &= jnp.isfinite(whitening.mean) & jnp.isfinite(whitening.std)
        if objective.needs_scores:
            finite &= jnp.all(jnp.isfinite(rows.scores) | (rows.segment_ids == 0))
        accepted, spikes = finite, None
        of_spikes: Metrics = {}
        if guard:
            spike, spikes, of_spikes = guard.judge(state.spikes, loss, norm, finite)
            accepted = finite & ~spike
        after = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), done, skipped)
        after = after._replace(step=state.step + 1, params=join_params(after.params, kept), spikes=spikes)
        if offload:
            after = after._replace(opt_state=jax.device_put(after.opt_state, offload[1]))
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": jnp.asarray(schedule(state.step - state.skipped), jnp.float32),
            "train/target_tokens": counts["targets_n"][0] if objective.n_heads else counts["response"],
            "train/tokens": jnp.sum(rows.segment_ids > 0, dtype=jnp.float32),
            "train/skipped_steps": after.skipped.astype(jnp.float32),
            "train/skipped_in_a_row": after.skipped_in_a_row.astype(jnp.float32),
            **of_spikes,
            **_metrics(objective, sums, counts),
            **({} if weighed is None else weighed[2]),
        }
        return after, metrics

    return step


def _metrics(objective: Objective, sums: dict[str, Array], counts: dict[str, Array]) -> Metrics:
    metrics: Metrics = {}
    if objective.n_heads:
        metrics["train/unweighted_ce_loss"] = mean_over_heads(sums["ce_n"], counts["targets_n"])
        metrics["train/weighted_ce_loss"] = _head_mean(objective, sums["weighted_n"], counts)
        metrics |= per_head("train", sums["ce_n"], counts["targets_n"])
    if objective.value_loss:
        metrics["train/value_head_loss"] = sums["value"] / jnp.maximum(counts["documents"], 1.0)
        metrics["train/value_norm"] = jnp.sqrt(sums["value_square"] / jnp.maximum(counts["response"], 1.0))
    return metrics


def per_head(prefix: str, sums_n: Array, counts_n: Array) -> Metrics:
    """``<prefix>/head_<k>_ce_loss`` for each head."""
    means_n = sums_n / jnp.maximum(counts_n, 1.0)
    return {f"{prefix}/head_{k + 1}_ce_loss": means_n[k] for k in range(means_n.shape[0])}


def _head_mean(objective: Objective, sums_n: Array, counts: dict[str, Array]) -> Array:
    """The weighted loss: each head's sum over its number of targets, or over the sum of their weights."""
    if objective.normalize == "valid":
        return mean_over_heads(sums_n, counts["targets_n"])
    # A head all of whose weights are zero still counts as a head, with a loss of zero.
    divided_n = sums_n / jnp.maximum(counts["weights_n"], jnp.finfo(jnp.float32).tiny)
    return mean_over_heads(divided_n * counts["targets_n"], counts["targets_n"])


def _weight_counts(weights_BSn: Array, valid_BSn: Array) -> dict[str, Array]:
    return {"weights_n": head_sums(jnp.ones_like(weights_BSn), weights_BSn, valid_BSn)}


def _all_micro(function: Callable[[Rows], Any], rows: Rows) -> Any:
    """``function`` of each micro-batch, one after another; results stacked as (A, B, ...)."""
    return jax.lax.scan(lambda _, micro: (None, function(micro)), None, rows)[1]


def _flatten(x: Array) -> Array:
    """(A, B, ...) as (B * A, ...)."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _unflatten(x: Array, n_micro: int) -> Array:
    return jnp.swapaxes(x.reshape(-1, n_micro, *x.shape[1:]), 0, 1)
