"""The reward of a whole sequence, read off a value model (a reward model such as Starling-RM)."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from wmtp_jax.models.mtp import MTPTransformer


def sequence_rewards(
    model: MTPTransformer,
    tokens_BS: Array,
    attention_mask_BS: Array,
    reward_position: Literal["last_token", "official"] = "last_token",
) -> Array:
    """One reward a sequence, (B,) float32.

    Args:
      model: with a value head.
      tokens_BS: int ids, padded on the right.
      attention_mask_BS: 1 on real tokens, 0 on padding.
      reward_position: ``last_token`` reads the value at the last real token. ``official`` reads the last
        position, padding included, as Starling-RM's published script does owing to a detail of its tokenizer;
        the result depends on how far the batch is padded.

    Raises:
      ValueError: the model has no value head, or ``reward_position`` is unknown.
    """
    if reward_position not in ("last_token", "official"):
        raise ValueError(f"reward_position is {reward_position!r}; it must be last_token or official")
    mask_BS = jnp.asarray(attention_mask_BS).astype(bool)
    values_BS = model.values(tokens_BS, attention_mask_BS=mask_BS)
    if reward_position == "official":
        return values_BS[:, -1]
    last_B = jnp.sum(mask_BS, axis=1) - 1
    return jnp.take_along_axis(values_BS, last_B[:, None], axis=1)[:, 0]
