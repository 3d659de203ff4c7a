"""The multi-token objective: which token each head must predict, and how token losses are averaged.

Gloeckle et al. 2024 (arXiv 2404.19737), equation 2, with a weight for every token. Numerators and
denominators stay apart until all micro-batches and devices are summed, so that splitting a batch
never changes the result.
"""

import jax.numpy as jnp
from jax import Array

from wmtp_jax.losses.documents import ahead, same_document_ahead


def mtp_targets(tokens_BS: Array, segment_ids_BS: Array, loss_mask_BS: Array, n_heads: int) -> tuple[Array, Array]:
    """Targets of head k = 1..n: the token k places ahead.

    Args:
      tokens_BS: int token ids.
      segment_ids_BS: document numbers of packed rows, 0 for padding.
      loss_mask_BS: True on tokens that are trained on (the response).
      n_heads: n.

    Returns:
      ``targets_BSn`` int (0 where there is none) and ``valid_BSn`` bool: the target is a token that
      is trained on, in the same document.
    """

    targets, valid = [], []
    for k in range(1, n_heads + 1):
        valid.append(same_document_ahead(segment_ids_BS, k) & ahead(loss_mask_BS.astype(bool), k))
        targets.append(jnp.where(valid[-1], ahead(tokens_BS, k), 0))
    return jnp.stack(targets, axis=-1), jnp.stack(valid, axis=-1)


def at_targets(x_BS: Array, n_heads: int) -> Array:
    """``x[t + k]`` for every head k, (B, S, n): what belongs to a token, at the places that predict it."""
    return jnp.stack([ahead(x_BS, k) for k in range(1, n_heads + 1)], axis=-1)


def head_sums(ce_BSn: Array, weights_BSn: Array, valid_BSn: Array) -> Array:
    """Numerators of the head means: weighted sum of token losses for each head, (n,) float32."""
    # where, not a product: a non-finite loss at a place without a target must not leak in.
    return jnp.sum(jnp.where(valid_BSn, weights_BSn * ce_BSn, 0.0), axis=(0, 1), dtype=jnp.float32)


def head_counts(valid_BSn: Array) -> Array:
    """Denominators under ``normalize: valid``: targets of each head, (n,) float32."""
    return jnp.sum(valid_BSn, axis=(0, 1), dtype=jnp.float32)


def mean_over_heads(sums_n: Array, counts_n: Array) -> Array:
    """The loss: mean of the head means, over heads that have at least one target; 0 if none has."""
    active_n = counts_n > 0
    means_n = jnp.where(active_n, sums_n / jnp.maximum(counts_n, 1.0), 0.0)
    return jnp.sum(means_n) / jnp.maximum(jnp.sum(active_n), 1)
