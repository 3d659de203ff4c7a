"""Cross-entropy of every token under every prediction head."""

import jax
import jax.numpy as jnp
from jax import Array


def token_cross_entropy(hidden_BSnD: Array, output_DV: Array, targets_BSn: Array) -> Array:
    """``-log p_k(target)`` for each position and head, (B, S, n) float32.

    One head's logits exist at a time, forward and backward: they are made again in the backward
    pass, because n x V floats a token are by far the largest array of a training step.

    Args:
      hidden_BSnD: normed hidden states of the n heads.
      output_DV: the output matrix they share, in the same dtype.
      targets_BSn: int ids in [0, V); where there is no target any id will do.
    """

    @jax.checkpoint
    def one_head(_: None, head: tuple[Array, Array]) -> tuple[None, Array]:
        hidden_BSD, targets_BS = head
        logits_BSV = jnp.einsum("bsd,dv->bsv", hidden_BSD, output_DV, preferred_element_type=jnp.float32)
        return None, logits_cross_entropy(logits_BSV, targets_BS)

    heads_first = jnp.moveaxis(hidden_BSnD, 2, 0), jnp.moveaxis(targets_BSn, 2, 0)
    _, ce_nBS = jax.lax.scan(one_head, None, heads_first)
    return jnp.moveaxis(ce_nBS, 0, -1)


def logits_cross_entropy(logits: Array, targets: Array) -> Array:
    """``logsumexp(logits) - logits[target]`` over the last axis, float32; shapes (..., V) and (...)."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
