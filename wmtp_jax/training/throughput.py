"""Model FLOPs of a step and what the device can do: the figures behind ``perf/*``."""

from __future__ import annotations

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from wmtp_jax.models.config import ModelConfig


def forward_flops(config: ModelConfig, lengths: np.ndarray, n_heads: int) -> dict[str, float]:
    """Floating-point operations of a forward pass over documents of these lengths, by part.

    2 for each weight that a token meets (``trunk``, ``heads``, ``logits``), and ``attention`` inside documents, of
    which causal attention counts its half (PaLM, arXiv 2204.02311, appendix B), by trunk and head blocks.
    """
    q_dim, kv_dim = config.n_heads * config.head_width, config.n_kv_heads * config.head_width
    block = config.dim * (2 * q_dim + 2 * kv_dim + 3 * config.ffn_dim)
    tokens, squares = float(lengths.sum()), float(np.sum(lengths.astype(float) ** 2))
    return {
        "trunk": 2.0 * config.n_trunk_layers * block * tokens,
        "heads": 2.0 * n_heads * block * tokens,
        "logits": 2.0 * n_heads * config.dim * config.vocab_size * tokens,
        "trunk attention": 2.0 * config.n_trunk_layers * q_dim * squares,
        "head attention": 2.0 * n_heads * q_dim * squares,
    }


def update_flops(forward: dict[str, float], *, backward: bool = True, frozen: bool = False) -> float:
    """Operations that one update needs, from those of its forward pass (`forward_flops`).

    The backward pass through the blocks needs twice as many; where the weights are ``frozen`` (beside adapters, which
    do not count), as many for them. Padding and recomputation do not count, so the share of the peak that is reached
    says what is left to win.
    """
    of_attention = forward["trunk attention"] + forward["head attention"]
    of_weights = sum(forward.values()) - of_attention
    if not backward:
        return of_weights + of_attention
    return (2.0 if frozen else 3.0) * of_weights + 3.0 * of_attention


def matmul_peak(dtype: DTypeLike) -> float:
    """Measured FLOP/s of a large square matrix product on one device: the ceiling for utilisation."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def device_memory_gb() -> float:
    """Peak memory of the fullest device in 10^9 bytes; on a CPU, of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks:
        return max(peaks) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
