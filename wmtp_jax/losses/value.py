"""Losses of the critic: how far the values of prefixes are from the verified outcome.

Token losses are averaged within each document first, then over documents, so that long solutions do not
dominate. Each function gives a numerator and a denominator; they are divided once, over the whole batch.
Shapes in names: B rows, S positions, M documents a row.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from wmtp_jax.losses.documents import ahead, document_means, goes_on, reverse_affine_scan

LAMBDA_SCHEDULES = ("constant", "linear", "cosine")


def lambda_returns(
    values_BS: Array,
    outcomes_BS: Array,
    mask_BS: Array,
    segment_ids_BS: Array,
    *,
    gae_lambda: Array | float,
    gamma: float = 1.0,
) -> Array:
    """TD(lambda) targets (Sutton & Barto 2018, equation 12.2, with the outcome as the only reward).

    ``G[T] = R`` and ``G[t] = gamma * ((1 - lambda) * V[t+1] + lambda * G[t+1])``, T the last position of the mask
    in its document.

    Args:
      values_BS: V[t], the value after reading ``x[..t]``.
      outcomes_BS: R of the document, at each of its positions.
      mask_BS: bool, the positions that have a target.
      segment_ids_BS: document numbers.
      gae_lambda: lambda in [0, 1].
      gamma: discount a token.

    Returns:
      (B, S) float32, 0 outside the mask. No gradient flows through it.
    """
    on_BS = goes_on(mask_BS, segment_ids_BS)
    offset_BS = jnp.where(on_BS, gamma * (1.0 - gae_lambda) * ahead(values_BS, 1), outcomes_BS)
    returns_BS = reverse_affine_scan(jnp.where(on_BS, gamma * gae_lambda, 0.0), jnp.where(mask_BS, offset_BS, 0.0))
    return jax.lax.stop_gradient(jnp.where(mask_BS, returns_BS, 0.0))


def lambda_schedule(kind: str, start: float, end: float, hold: float, total_steps: int) -> optax.Schedule:
    """Lambda of update i (from 0): ``start`` over the first ``hold`` part of the run, then on the way to ``end``.

    Args:
      kind: ``constant`` (``end`` and ``hold`` are not used), ``linear`` or ``cosine``.
      start, end: in [0, 1].
      hold: fraction of ``total_steps``.
      total_steps: updates in the run.

    Raises:
      ValueError: ``kind`` is unknown.
    """
    if kind not in LAMBDA_SCHEDULES:
        raise ValueError(f"lambda schedule {kind!r}; it must be one of {', '.join(LAMBDA_SCHEDULES)}")
    if kind == "constant":
        return optax.constant_schedule(start)
    held = max(round(hold * total_steps) - 1, 0)  # the last update that has `start`
    way = max(total_steps - 1 - held, 1)  # the last update of all has `end`
    decay = optax.linear_schedule(0.0, 1.0, way)

    def schedule(step: Array | int) -> Array:
        part = decay(jnp.maximum(jnp.asarray(step) - held, 0))
        part = part if kind == "linear" else (1.0 - jnp.cos(jnp.pi * part)) / 2.0
        return start + (end - start) * part

    return schedule


def squared_errors(values_BS: Array, targets_BS: Array) -> Array:
    """``(V - G)^2``, (B, S) float32."""
    return jnp.square(values_BS - targets_BS)


def huber_errors(values_BS: Array, targets_BS: Array, delta: float) -> Array:
    """``e^2 / (2 delta)`` up to ``|e| = delta``, then ``|e| - delta / 2``; (B, S) float32.

    Huber 1964 divided by delta, so that large errors have slope 1 (PyTorch's smooth L1), as the PyTorch system does.
    """
    return optax.losses.huber_loss(values_BS, targets_BS, delta=delta) / delta


def document_mean_sums(
    errors_BS: Array, mask_BS: Array, segment_ids_BS: Array, n_documents: int
) -> tuple[Array, Array]:
    """Sum over documents of their mean token loss, and the number of documents with a masked position."""
    means_BM, there_BM = document_means(errors_BS, mask_BS, segment_ids_BS, n_documents)
    return jnp.sum(means_BM), jnp.sum(there_BM, dtype=jnp.float32)


def pairwise_sums(values_BS: Array, mask_BS: Array, segment_ids_BS: Array, n_documents: int) -> tuple[Array, Array]:
    """Bradley-Terry loss of correct beside incorrect solutions of the same problem (as in reward modelling).

    ``-log sigmoid(mean V(correct) - mean V(incorrect))``, means over the masked positions.

    Args:
      values_BS: rows in pairs: document j of row 2i is the correct solution, document j of row 2i + 1 the other.
      mask_BS, segment_ids_BS, n_documents: as elsewhere.

    Returns:
      The sum over pairs, and their number.
    """
    means_BM, there_BM = document_means(values_BS, mask_BS, segment_ids_BS, n_documents)
    both = there_BM[0::2] & there_BM[1::2]
    losses = jax.nn.softplus(means_BM[1::2] - means_BM[0::2])
    return jnp.sum(jnp.where(both, losses, 0.0)), jnp.sum(both, dtype=jnp.float32)
