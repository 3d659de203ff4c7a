"""Uniform weighting: every target counts the same (stages ``baseline`` and ``reference``, and a control)."""

import jax.numpy as jnp
from jax import Array

from wmtp_jax.weighting.tokens import Metrics, Tokens, Whitening


def weigh(tokens: Tokens, state: Whitening) -> tuple[Array, Whitening, Metrics]:
    """Weight 1 for every target, (B, S, n) float32, 0 where there is none."""
    return tokens.valid_BSn.astype(jnp.float32), state, {}
