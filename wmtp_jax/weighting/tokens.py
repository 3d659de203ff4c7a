"""What a weighting sees and what it gives: `Tokens` in; weights, state and metrics out.

A scheme is a function ``(Tokens, Whitening) -> (weights_BSn, Whitening, metrics)`` over the whole batch of an update.
Shapes in names: B rows, S positions, n heads.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


class Tokens(NamedTuple):
    """The batch of an update, all micro-batches of it.

    Attributes:
      ce_BSn: token losses of each head; None for a scheme that does not look at them.
      valid_BSn: bool, the places that have a target.
      scores_BS: values V[t], or the reference's cross-entropy of the token at t; None where there are none.
      outcomes_BS: R of the document, at each of its positions; None where nothing asks for it.
      response_BS: bool, tokens that are trained on.
      segment_ids_BS: document numbers, 0 for padding.
      noise_BSn: uniform in [0, 1), what controls draw from; None for a scheme that draws nothing.
    """

    ce_BSn: Any
    valid_BSn: Any
    scores_BS: Any
    outcomes_BS: Any
    response_BS: Any
    segment_ids_BS: Any
    noise_BSn: Any


class Whitening(NamedTuple):
    """Moving averages of the mean and the standard deviation of TD errors, part of the training state.

    Attributes:
      mean, std: float32 ().
      count: int32 (), updates that went into them.
    """

    mean: Any
    std: Any
    count: Any


Metrics = dict[str, Array]
Scheme = Callable[[Tokens, Whitening], tuple[Array, Whitening, Metrics]]


def weight_metrics(weights: Array, mask: Array) -> Metrics:
    """Mean of the weights over the mask, and their entropy as a share of its largest value: ``-sum p ln p / ln N``."""
    count = jnp.sum(mask, dtype=jnp.float32)
    total = jnp.sum(jnp.where(mask, weights, 0.0), dtype=jnp.float32)
    shares = jnp.where(mask, weights, 0.0) / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
    entropy = -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1.0)), 0.0))
    return {
        "train/weight_mean": total / jnp.maximum(count, 1.0),
        "train/weight_entropy": entropy / jnp.log(jnp.maximum(count, 2.0)),
    }


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean over the mask, float32 (); 0 where it is empty."""
    return jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32) / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
