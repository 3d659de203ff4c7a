"""Rho-1 weighting (Lin et al. 2024, arXiv 2404.07965): train on tokens that a reference model finds easier.

Excess loss of a target (equation 3): the policy's cross-entropy minus the reference's. Chosen over the whole batch,
for each head by itself. Shapes in names: B rows, S positions, n heads.
"""

import jax
import jax.numpy as jnp
from jax import Array

from wmtp_jax.losses.mtp import at_targets
from wmtp_jax.weighting.controls import replaced
from wmtp_jax.weighting.tokens import Metrics, Tokens, Whitening, masked_mean, weight_metrics

MODES = ("signed", "absolute", "difficult")


def selection_scores(ce_BSn: Array, reference_ce_BSn: Array, mode: str) -> Array:
    """What targets are chosen by, (B, S, n) float32.

    Args:
      ce_BSn: the policy's token losses.
      reference_ce_BSn: the reference's loss of the same target (the same for every head that predicts it).
      mode: ``signed``: the excess; ``absolute``: its size; ``difficult``: the reference's loss alone.

    Raises:
      ValueError: ``mode`` is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"rho1 mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "difficult":
        return reference_ce_BSn
    excess_BSn = ce_BSn - reference_ce_BSn
    return jnp.abs(excess_BSn) if mode == "absolute" else excess_BSn


def thresholds(scores_BSn: Array, valid_BSn: Array, k_percent: float) -> Array:
    """The ``1 - k_percent`` quantile of each head's scores over valid targets, (n,) float32, linear interpolation."""
    n_heads = scores_BSn.shape[-1]
    scores_Nn = jnp.where(valid_BSn, scores_BSn, jnp.inf).reshape(-1, n_heads)
    sorted_Nn = jnp.sort(scores_Nn, axis=0)  # invalid ones last
    last_n = jnp.maximum(jnp.sum(valid_BSn, axis=(0, 1), dtype=jnp.int32) - 1, 0)
    place_n = (1.0 - k_percent) * last_n.astype(jnp.float32)
    # Rounding must not push a place off the score on which it falls: that target would be lost.
    nearest_n = jnp.round(place_n)
    rounding_n = 4 * jnp.finfo(jnp.float32).eps * place_n
    place_n = jnp.where(jnp.abs(place_n - nearest_n) <= rounding_n, nearest_n, place_n)
    low_n = jnp.clip(jnp.floor(place_n).astype(jnp.int32), 0, last_n)
    high_n = jnp.minimum(low_n + 1, last_n)
    low, high = (jnp.take_along_axis(sorted_Nn, index[None], axis=0)[0] for index in (low_n, high_n))
    return jnp.where(high > low, low + (place_n - low_n) * (high - low), low)


def hard_weights(scores_BSn: Array, valid_BSn: Array, k_percent: float) -> Array:
    """1 for targets at or above their head's threshold, else 0; (B, S, n) float32."""
    return (valid_BSn & (scores_BSn >= thresholds(scores_BSn, valid_BSn, k_percent))).astype(jnp.float32)


def soft_weights(scores_BSn: Array, valid_BSn: Array, temperature: float) -> Array:
    """``softmax(scores / temperature)`` over the valid targets of each head, rescaled to mean 1; (B, S, n) float32."""
    logits_BSn = jnp.where(valid_BSn, scores_BSn / temperature, -jnp.inf)
    counts_n = jnp.sum(valid_BSn, axis=(0, 1), dtype=jnp.float32)
    # A head without a target would be a softmax over nothing.
    shares_BSn = jax.nn.softmax(jnp.where(counts_n > 0, logits_BSn, 0.0), axis=(0, 1))
    return jnp.where(valid_BSn, shares_BSn * counts_n, 0.0)


def weigh(
    tokens: Tokens,
    state: Whitening,
    *,
    control: str | None = None,
    mode: str = "signed",
    selection: str = "hard",
    k_percent: float = 0.6,
    temperature: float = 1.0,
) -> tuple[Array, Whitening, Metrics]:
    """Rho-1 weights of a batch, (B, S, n) float32.

    Args:
      tokens: with token losses, and the reference's losses as scores.
      state: is given back as it is.
      control: `wmtp_jax.weighting.controls.CONTROLS`, or None.
      selection: ``hard`` or ``soft``.
      mode, k_percent, temperature: of the functions above.
    """
    valid_BSn = tokens.valid_BSn
    n_heads = valid_BSn.shape[-1]
    reference_ce_BSn = at_targets(tokens.scores_BS, n_heads)
    scores_BSn = selection_scores(tokens.ce_BSn, reference_ce_BSn, mode)
    if selection == "soft":
        weights_BSn = soft_weights(scores_BSn, valid_BSn, temperature)
    else:
        weights_BSn = hard_weights(scores_BSn, valid_BSn, k_percent)
    by_head = [
        replaced(
            control,
            weights_BSn[..., k],
            valid_BSn[..., k],
            tokens.segment_ids_BS,
            None if tokens.noise_BSn is None else tokens.noise_BSn[..., k],
            0.0,
            jnp.inf,
        )
        for k in range(n_heads)
    ]
    weights_BSn = jnp.stack(by_head, axis=-1)
    metrics = {
        "train/excess_loss": masked_mean(tokens.ce_BSn - reference_ce_BSn, valid_BSn),
        "train/selected_fraction": masked_mean(weights_BSn > 0, valid_BSn),
        **weight_metrics(weights_BSn, valid_BSn),
    }
    return weights_BSn, state, metrics
