"""A guard against spikes: updates whose loss or gradient leaps far above those before are skipped. Off by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from wmtp_jax.config import TrainingSettings


class Recent(NamedTuple):
    """The losses and gradient norms that a new one is compared with; W of them at most.

    Attributes:
      values: (2, W) float32, losses and gradient norms, one over the other; the oldest gives its place to the newest.
      count: int32 (), how many have entered so far.
      spikes: int32 (), updates skipped so far because they were spikes.
    """

    values: Any  # Array; also a shape or a placement in a tree of those
    count: Any
    spikes: Any


@dataclass(frozen=True)
class SpikeGuard:
    """Calls an update a spike if its loss or its gradient norm is above mean + sigma x standard deviation of the last.

    This is the rule of OLMo-core's ``SkipStepOptimizer`` (https://github.com/allenai/OLMo-core,
    ``olmo_core/optim/skip_step_optimizer.py``), except that a value far below the mean is no spike here.

    A spike enters the window like every other finite value: a lasting new level is accepted after a while.

    Attributes:
      sigma: standard deviations (unbiased) above the mean.
      window: W, the last values that mean and deviation are of. There are no spikes until half of them are there.
    """

    sigma: float
    window: int

    def initial(self) -> Recent:
        """Nothing to compare with."""
        return Recent(jnp.zeros((2, self.window)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def judge(
        self, recent: Recent, loss: Array, grad_norm: Array, finite: Array
    ) -> tuple[Array, Recent, dict[str, Array]]:
        """Compares an update with the ones before it.

        Args:
          recent: those before it.
          loss, grad_norm: of the update, float32 ().
          finite: bool (); where it is false this is no spike, and nothing enters the window.

        Returns:
          Whether it is a spike, what is remembered with it, and metrics: means and limits of loss and gradient norm.
          Without enough to compare with, limits are infinite.
        """
        new_2, place_W = jnp.stack([loss, grad_norm]), jnp.arange(self.window)
        there_W = place_W < recent.count
        n = jnp.minimum(recent.count, self.window)
        mean_2 = jnp.sum(recent.values, axis=1, where=there_W) / jnp.maximum(n, 1)
        squares_2 = jnp.sum(jnp.square(recent.values - mean_2[:, None]), axis=1, where=there_W)
        std_2 = jnp.sqrt(squares_2 / jnp.maximum(n - 1, 1))
        limit_2 = jnp.where(2 * n >= self.window, mean_2 + self.sigma * std_2, jnp.inf)
        spike = finite & jnp.any(new_2 > limit_2)
        entered = jnp.where(place_W == recent.count % self.window, new_2[:, None], recent.values)
        after = Recent(
            jnp.where(finite, entered, recent.values),
            recent.count + finite.astype(jnp.int32),
            recent.spikes + spike.astype(jnp.int32),
        )
        metrics = {
            "train/spikes": after.spikes.astype(jnp.float32),
            "train/is_spike": spike.astype(jnp.float32),
            "train/loss_mean": mean_2[0],
            "train/loss_limit": limit_2[0],
            "train/grad_norm_mean": mean_2[1],
            "train/grad_norm_limit": limit_2[1],
        }
        return spike, after, metrics


def spike_guard(settings: TrainingSettings) -> SpikeGuard | None:
    """The guard that the settings ask for."""
    return None if settings.spike_sigma is None else SpikeGuard(settings.spike_sigma, settings.spike_window)
