"""AdamW with gradient clipping and a cosine learning rate with warm-up."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from wmtp_jax.config import TrainingSettings
from wmtp_jax.parallel.sharding import parameter_name


def learning_rate_schedule(settings: TrainingSettings, total_steps: int) -> optax.Schedule:
    """Learning rate of update i (from 0).

    Rises linearly over the first ``warmup_ratio`` of ``total_steps``, from one part of it (the first
    update is not wasted on a rate of zero), then falls as a cosine to ``min_lr_ratio`` of the peak.
    """
    peak = settings.learning_rate
    warmup = round(settings.warmup_ratio * total_steps)
    decay = optax.cosine_decay_schedule(peak, max(total_steps - warmup, 1), alpha=settings.min_lr_ratio)
    if not warmup:
        return decay
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(
    settings: TrainingSettings, schedule: optax.Schedule, head_rate: float | None = None
) -> optax.GradientTransformation:
    """Clipping to a global norm, then AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

    Args:
      settings: of the run.
      schedule: learning rate by update.
      head_rate: peak learning rate of the value head, whose schedule has the same form; None: as all else.
    """
    ratio = 1.0 if head_rate is None else head_rate / settings.learning_rate

    def head_scaled(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        """AdamW's update is proportional to the rate, weight decay included: scaling it is another rate."""
        del params

        def scaled(path: tuple[object, ...], update: jax.Array) -> jax.Array:
            return update * ratio if parameter_name(path).startswith("value_head.") else update

        return jax.tree_util.tree_map_with_path(scaled, updates)

    def decayed(params: optax.Params) -> optax.Params:
        """Weight decay shrinks matrices; the scale of a norm or a bias has no direction to shrink to."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not parameter_name(path).endswith(("scale", "bias")), params
        )

    adam = optax.scale_by_adam(b1=settings.adam_b1, b2=settings.adam_b2, eps=settings.adam_eps)
    adamw = optax.chain(
        _kept_in(adam, settings.moments_dtype),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.chain(  # checkpoints hold a state of this form: a change of it makes runs begun before unreadable
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.identity(),
        adamw,
        optax.stateless(head_scaled) if ratio != 1.0 else optax.identity(),
    )


def _kept_in(adam: optax.GradientTransformation, dtype: DTypeLike) -> optax.GradientTransformation:
    """Adam that computes in float32 and keeps its moments in ``dtype``, whatever the type of the parameters."""

    def cast(state: optax.ScaleByAdamState, to: DTypeLike) -> optax.ScaleByAdamState:
        return state._replace(mu=optax.tree.cast(state.mu, to), nu=optax.tree.cast(state.nu, to))

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        return cast(adam.init(params), dtype)

    def update(grads: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        updates, state = adam.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)
