"""Model FLOPs of a step and what the device can do: the figures behind ``perf/*``."""

from __future__ import annotations

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from wmtp_jax.data.pack import Rows
from wmtp_jax.models.config import ModelConfig


def model_flops(config: ModelConfig, rows: Rows, *, n_heads: int, backward: bool = True, frozen: bool = False) -> float:
    """Floating-point operations that one update needs: 6 for each weight a real token meets, and attention.

    ``n_heads`` prediction heads are computed; without a backward pass through the blocks a weight costs 2, with one
    but ``frozen`` weights (beside adapters, which do not count) 4. Padding and recomputation do not count, and causal
    attention counts its half, so the share of the peak that is reached says what is left to win (the convention of
    PaLM, arXiv 2204.02311, appendix B, with attention counted inside documents only).
    """
    q_dim, kv_dim = config.n_heads * config.head_width, config.n_kv_heads * config.head_width
    block = config.dim * (2 * q_dim + 2 * kv_dim + 3 * config.ffn_dim)
    n_blocks = config.n_trunk_layers + n_heads
    weights = n_blocks * block + n_heads * config.dim * config.vocab_size
    segment_ids = rows.segment_ids.reshape(-1, rows.segment_ids.shape[-1])
    lengths = np.concatenate([np.bincount(row)[1:] for row in segment_ids])
    attention = n_blocks * q_dim * float(np.sum(lengths.astype(float) ** 2))
    per_weight = 2.0 if not backward else 4.0 if frozen else 6.0
    return per_weight * weights * float(lengths.sum()) + (6.0 if backward else 2.0) * attention


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
