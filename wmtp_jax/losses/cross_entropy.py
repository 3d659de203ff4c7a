"""Cross-entropy of every token under every prediction head."""

import jax
import jax.numpy as jnp
from jax import Array


def token_cross_entropy(
    hidden_BSnD: Array, output_DV: Array, targets_BSn: Array, low_rank: tuple[Array, Array] | None = None
) -> Array:
    """``-log p_k(target)`` for each position and head, (B, S, n) float32.

    One head's logits exist at a time, forward and backward: they are made again in the backward
    pass, because n x V floats a token are by far the largest array of a training step.

    Args:
      hidden_BSnD: normed hidden states of the n heads.
      output_DV: the output matrix they share, in the same dtype.
      targets_BSn: int ids in [0, V); where there is no target any id will do.
      low_rank: (B, S, n, r) and (r, V), whose product is added to the logits: an adapter of the output matrix.
    """
    added_BSnr, b_rV = (None, None) if low_rank is None else low_rank

    @jax.checkpoint
    def one_head(_: None, head: tuple[Array, Array | None, Array]) -> tuple[None, Array]:
        hidden_BSD, added_BSr, targets_BS = head
        logits_BSV = jnp.einsum("bsd,dv->bsv", hidden_BSD, output_DV, preferred_element_type=jnp.float32)
        if added_BSr is not None:
            logits_BSV += jnp.einsum("bsr,rv->bsv", added_BSr, b_rV, preferred_element_type=jnp.float32)
        return None, logits_cross_entropy(logits_BSV, targets_BS)

    heads_first = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), (hidden_BSnD, added_BSnr, targets_BSn))
    _, ce_nBS = jax.lax.scan(one_head, None, heads_first)
    return jnp.moveaxis(ce_nBS, 0, -1)


def logits_cross_entropy(logits: Array, targets: Array) -> Array:
    """``logsumexp(logits) - logits[target]`` over the last axis, float32; shapes (..., V) and (...)."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
