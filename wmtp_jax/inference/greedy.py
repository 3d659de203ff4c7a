"""Greedy next-token decoding with head 1, for a first look at a model.

Every new token costs a forward pass over the whole row: there is no cache of keys and values.
"""

import jax
import jax.numpy as jnp
from jax import Array

from wmtp_jax.models.mtp import MTPTransformer


def greedy_decode(model: MTPTransformer, prompts_BS: Array, lengths_B: Array, eos: int) -> Array:
    """Continues each prompt with its most likely tokens.

    Args:
      model: head 1 predicts the next token.
      prompts_BS: int token ids; each row holds a prompt from its start, then anything.
      lengths_B: tokens of each prompt, at least 1.
      eos: a row stops after this token.

    Returns:
      (B, S) int32: prompts and continuations, ``eos`` in every place after the end.
    """
    S = prompts_BS.shape[1]
    index_S = jnp.arange(S)

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        _, ends_B, done_B = carry
        return jnp.any(~done_B & (ends_B < S))

    def extend(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tokens_BS, ends_B, done_B = carry
        # What stands after a row's end cannot be seen from before it: attention is causal.
        logits_BSV = model(tokens_BS, n_heads=1)[:, :, 0]
        last_BV = jnp.take_along_axis(logits_BSV, (ends_B - 1)[:, None, None], axis=1)[:, 0]
        next_B = jnp.where(done_B, eos, jnp.argmax(last_BV, axis=-1)).astype(jnp.int32)
        tokens_BS = jnp.where(index_S == ends_B[:, None], next_B[:, None], tokens_BS)
        return tokens_BS, jnp.minimum(ends_B + 1, S), done_B | (next_B == eos) | (ends_B >= S)

    start_BS = jnp.where(index_S < lengths_B[:, None], prompts_BS, eos).astype(jnp.int32)
    state = start_BS, lengths_B, lengths_B >= S
    return jax.lax.while_loop(unfinished, extend, state)[0]
