"""The parts of a LLaMA block: rotary positions, grouped-query attention, SwiGLU.

Shapes are written in names: B batch, S sequence, D model width, N attention heads, K key/value
heads, H width of one attention head, F feed-forward width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from wmtp_jax.models.attention import Documents, attend
from wmtp_jax.models.config import ModelConfig, RopeScaling
from wmtp_jax.models.lora import Adapter


def document_positions(segment_ids_BS: Array) -> Array:
    """Position of every token inside its own document, (B, S) int32, from 0.

    Args:
      segment_ids_BS: int, the number of the document a token belongs to; the tokens of one
        document stand together. Packed rows hold several documents.
    """
    index_S = jnp.arange(segment_ids_BS.shape[1], dtype=jnp.int32)
    previous_BS = jnp.pad(segment_ids_BS[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start_BS = jnp.where(segment_ids_BS != previous_BS, index_S, 0)
    return index_S - jax.lax.cummax(start_BS, axis=1)


def rotary_angles(positions_BS: Array, config: ModelConfig) -> tuple[Array, Array]:
    """Cosine and sine of the rotary angles (Su et al. 2021, arXiv 2104.09864), each (B, S, H/2) float32."""
    exponents = jnp.arange(0, config.head_width, 2, dtype=jnp.float32) / config.head_width
    frequency = _scaled(config.rope_theta**-exponents, config.rope_scaling)
    angle = positions_BS[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _scaled(frequency: Array, scaling: RopeScaling | None) -> Array:
    """Frequencies (radians a token) stretched as `RopeScaling` says."""
    if scaling is None:
        return frequency
    if scaling.rope_type == "linear":
        return frequency / scaling.factor
    # How many turns the pre-training length holds: few turns (a long wavelength) are stretched.
    turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def apply_rotary(x_BSNH: Array, cos_BSh: Array, sin_BSh: Array) -> Array:
    """Rotates queries or keys, pairing element i with i + H/2 (the Hugging Face order).

    Meta's checkpoints pair neighbours (2i, 2i+1) instead; `conversion.layout` permutes their
    query and key weights. Contiguous halves vectorise better than a stride of two.
    """
    cos, sin = cos_BSh[:, :, None, :], sin_BSh[:, :, None, :]
    first, second = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BSNH.dtype)


class Attention(nnx.Module):
    """Causal grouped-query self-attention with rotary positions."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, kernel: str, **dtypes: Any):
        self.head_dim, self.kernel = config.head_width, kernel
        q_dim, kv_dim = config.n_heads * config.head_width, config.n_kv_heads * config.head_width
        self.wq = linear(config.dim, q_dim, rngs, **dtypes)
        self.wk = linear(config.dim, kv_dim, rngs, **dtypes)
        self.wv = linear(config.dim, kv_dim, rngs, **dtypes)
        self.wo = linear(q_dim, config.dim, rngs, depth=config.n_layers, **dtypes)

    def __call__(self, x_BSD: Array, rotary: tuple[Array, Array], where: Documents) -> Array:
        B, S, _ = x_BSD.shape
        q_BSNH = apply_rotary(self.wq(x_BSD).reshape(B, S, -1, self.head_dim), *rotary)
        k_BSKH = apply_rotary(self.wk(x_BSD).reshape(B, S, -1, self.head_dim), *rotary)
        v_BSKH = self.wv(x_BSD).reshape(B, S, -1, self.head_dim)
        out_BSNH = attend(q_BSNH, k_BSKH, v_BSKH, where, self.kernel)
        return self.wo(out_BSNH.reshape(B, S, -1))


class FeedForward(nnx.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)`` (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, **dtypes: Any):
        self.w1 = linear(config.dim, config.ffn_dim, rngs, **dtypes)
        self.w2 = linear(config.ffn_dim, config.dim, rngs, depth=config.n_layers, **dtypes)
        self.w3 = linear(config.dim, config.ffn_dim, rngs, **dtypes)

    def __call__(self, x_BSD: Array) -> Array:
        return self.w2(jax.nn.silu(self.w1(x_BSD)) * self.w3(x_BSD))


class Block(nnx.Module):
    """One pre-norm transformer block; the trunk and the prediction heads are made of these."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, kernel: str, **dtypes: Any):
        self.attention_norm = nnx.RMSNorm(config.dim, epsilon=config.norm_eps, rngs=rngs, **dtypes)
        self.attention = Attention(config, rngs=rngs, kernel=kernel, **dtypes)
        self.ffn_norm = nnx.RMSNorm(config.dim, epsilon=config.norm_eps, rngs=rngs, **dtypes)
        self.feed_forward = FeedForward(config, rngs=rngs, **dtypes)

    def __call__(self, x_BSD: Array, rotary: tuple[Array, Array], where: Documents) -> Array:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotary, where)
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))


class Linear(nnx.Linear):
    """A projection ``x W``; where an adapter hangs on it (`wmtp_jax.models.lora.attach`), its output is added."""

    adapter: Adapter | None = None

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        output = super().__call__(inputs, out_sharding)
        return output if self.adapter is None else output + self.adapter(inputs.astype(output.dtype))


def linear(n_in: int, n_out: int, rngs: nnx.Rngs, *, depth: int | None = None, **dtypes: Any) -> Linear:
    """A bias-free projection, kernel (n_in, n_out), normal with deviation 0.02.

    ``depth`` marks a projection that writes to the residual stream: its deviation is divided by
    ``sqrt(2 * depth)``, so that the stream's variance does not grow with depth (GPT-2).
    """
    deviation = 0.02 if depth is None else 0.02 / (2 * depth) ** 0.5
    initializer = nnx.initializers.normal(deviation)
    return Linear(n_in, n_out, use_bias=False, kernel_init=initializer, rngs=rngs, **dtypes)
