"""Cross-entropy of every token, without ever holding the logits of a batch.

n x V floats a token are by far the largest array of a training step. Here a part of the positions of one head at a
time has logits, forward and backward; between the two, one number a token is kept (the logarithm of the softmax's
denominator), as in Wijmans et al. 2024 (arXiv 2411.09009).

Shapes in names: n heads, B rows, S positions, D width, V vocabulary, c positions at a time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from wmtp_jax.parallel.sharding import BATCH_AXES, FSDP_AXIS, TENSOR_AXIS, axis_size, map_shards

# Logits in flight, elements a device: 64 MiB in float32. Fewer, and the products are too thin for a GPU, and the
# gradient of the output matrix is read and written too often.
LOGITS_IN_FLIGHT = 2**24

_HIDDEN, _TOKENS = P(None, BATCH_AXES), P(BATCH_AXES)
_GATHERED, _OUTPUT = P(None, TENSOR_AXIS), P(FSDP_AXIS, TENSOR_AXIS)


@jax.custom_vjp
def token_cross_entropy(hidden_nBSD: Array, output_DV: Array, targets_BSn: Array) -> Array:
    """``-log p_k(target)`` for each position and head, (B, S, n) float32.

    Any cotangent may come back, so weights may depend on the losses they multiply. Under a mesh the rows lie on the
    devices that read them, V may be split over the axis ``tensor``; the matrix is gathered once forward and once
    backward, and its gradient, a float32 sum over heads and positions, is reduced once.

    Args:
      hidden_nBSD: normed hidden states of the n heads.
      output_DV: the output matrix they share, in the same dtype.
      targets_BSn: int ids in [0, V); where there is no target any id will do.
    """
    return _forward(hidden_nBSD, output_DV, targets_BSn)[0]


def _forward(hidden_nBSD: Array, output_DV: Array, targets_BSn: Array) -> tuple[Array, tuple[Array, ...]]:
    local = map_shards(_local_forward, (_HIDDEN, _GATHERED, _TOKENS), (_TOKENS, _TOKENS))
    ce_BSn, log_normalizer_BSn = local(hidden_nBSD, output_DV, targets_BSn)
    return ce_BSn, (hidden_nBSD, output_DV, targets_BSn, log_normalizer_BSn)


def _backward(residuals: tuple[Array, ...], cotangent_BSn: Array) -> tuple[Array, Array, None]:
    local = map_shards(_local_backward, (_HIDDEN, _GATHERED, _TOKENS, _TOKENS, _TOKENS), (_HIDDEN, _OUTPUT))
    return (*local(*residuals, cotangent_BSn), None)


token_cross_entropy.defvjp(_forward, _backward)


def _local_forward(hidden_nBSD: Array, output_DV: Array, targets_BSn: Array) -> tuple[Array, Array]:
    """Losses and log-normalizers (B, S, n) of the rows of one device."""
    n, _, S, _ = hidden_nBSD.shape
    loop = _Chunks(n, S, targets_BSn[..., 0].size * output_DV.shape[1])
    hidden, targets = loop.padded(hidden_nBSD), loop.padded(jnp.moveaxis(targets_BSn, -1, 0))

    def body(i: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        targets_Bc = loop.read(targets, i)
        logits_BcV = _logits(loop.read(hidden, i), output_DV)
        highest_Bc = _over_tensor(jax.lax.pmax, jnp.max(logits_BcV, axis=-1))
        total_Bc = _over_tensor(jax.lax.psum, jnp.sum(jnp.exp(logits_BcV - highest_Bc[..., None]), axis=-1))
        log_normalizer_Bc = highest_Bc + jnp.log(total_Bc)
        picked_Bc = jnp.sum(jnp.where(_is_target(targets_Bc, logits_BcV), logits_BcV, 0.0), axis=-1)
        ce_Bc = log_normalizer_Bc - _over_tensor(jax.lax.psum, picked_Bc)
        return loop.write(done[0], ce_Bc, i), loop.write(done[1], log_normalizer_Bc, i)

    zeros = jnp.zeros(targets.shape, jnp.float32)
    done = jax.lax.fori_loop(0, loop.count, body, (zeros, zeros))
    ce_BSn, log_normalizer_BSn = (jnp.moveaxis(x_nBS[:, :, :S], 0, -1) for x_nBS in done)
    return ce_BSn, log_normalizer_BSn


def _local_backward(
    hidden_nBSD: Array, output_DV: Array, targets_BSn: Array, log_normalizer_BSn: Array, cotangent_BSn: Array
) -> tuple[Array, Array]:
    """Gradients of the hidden states, and of this device's part of the matrix."""
    n, _, S, _ = hidden_nBSD.shape
    loop = _Chunks(n, S, targets_BSn[..., 0].size * output_DV.shape[1])
    hidden = loop.padded(hidden_nBSD)
    of_tokens = [loop.padded(jnp.moveaxis(x, -1, 0)) for x in (targets_BSn, log_normalizer_BSn, cotangent_BSn)]

    def body(i: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden_BcD = loop.read(hidden, i)
        targets_Bc, log_normalizer_Bc, cotangent_Bc = (loop.read(x, i) for x in of_tokens)
        logits_BcV = _logits(hidden_BcD, output_DV)
        probability_BcV = jnp.exp(logits_BcV - log_normalizer_Bc[..., None])
        error_BcV = jnp.where(_is_target(targets_Bc, logits_BcV), probability_BcV - 1.0, probability_BcV)
        error_BcV = (error_BcV * cotangent_Bc[..., None]).astype(hidden.dtype)
        grad_BcD = jnp.einsum("bcv,dv->bcd", error_BcV, output_DV, preferred_element_type=jnp.float32)
        grad_BcD = _over_tensor(jax.lax.psum, grad_BcD).astype(hidden.dtype)
        change_DV = jnp.einsum("bcd,bcv->dv", hidden_BcD, error_BcV, preferred_element_type=jnp.float32)
        return loop.write(done[0], grad_BcD, i), done[1] + change_DV

    zeros = jnp.zeros(hidden.shape, hidden.dtype), jnp.zeros(output_DV.shape, jnp.float32)
    grad_nBSD, total_DV = jax.lax.fori_loop(0, loop.count, body, zeros)
    if axis_size(FSDP_AXIS) > 1:
        total_DV = jax.lax.psum_scatter(total_DV, FSDP_AXIS, scatter_dimension=0, tiled=True)
    if axis_size("data") > 1:
        total_DV = jax.lax.psum(total_DV, "data")
    return grad_nBSD[:, :, :S], total_DV.astype(output_DV.dtype)


class _Chunks:
    """A loop over the heads, and in each over equal parts of the positions.

    Args:
      n, S: heads and positions.
      n_logits: logits of one head of all positions.
    """

    def __init__(self, n: int, S: int, n_logits: int):
        self.parts = min(-(-n_logits // LOGITS_IN_FLIGHT), S)
        self.size = -(-S // self.parts)
        self.parts = -(-S // self.size)
        self.count = n * self.parts
        self._missing = self.parts * self.size - S

    def padded(self, x_nBS: Array) -> Array:
        """(n, B, S, ...), filled up with zeros where the last part is shorter."""
        return jnp.pad(x_nBS, ((0, 0), (0, 0), (0, self._missing), *((0, 0),) * (x_nBS.ndim - 3)))

    def read(self, x_nBS: Array, i: Array) -> Array:
        """Part i, (B, c, ...)."""
        _, B, _, *features = x_nBS.shape
        return jax.lax.dynamic_slice(x_nBS, self._start(x_nBS, i), (1, B, self.size, *features))[0]

    def write(self, x_nBS: Array, part_Bc: Array, i: Array) -> Array:
        return jax.lax.dynamic_update_slice(x_nBS, part_Bc[None], self._start(x_nBS, i))

    def _start(self, x_nBS: Array, i: Array) -> tuple[Any, ...]:
        return (i // self.parts, 0, i % self.parts * self.size, *(0,) * (x_nBS.ndim - 3))


def _logits(hidden_BcD: Array, output_DV: Array) -> Array:
    return jnp.einsum("bcd,dv->bcv", hidden_BcD, output_DV, preferred_element_type=jnp.float32)


def _is_target(targets_Bc: Array, logits_BcV: Array) -> Array:
    """Where the column is the target's, (B, c, V): a comparison, since a look-up does not split over ``tensor``."""
    n_columns = logits_BcV.shape[-1]
    first = jax.lax.axis_index(TENSOR_AXIS) * n_columns if axis_size(TENSOR_AXIS) > 1 else 0
    return targets_Bc[..., None] == first + jax.lax.iota(jnp.int32, n_columns)


def _over_tensor(combine: Callable[[Array, str], Array], x: Array) -> Array:
    return combine(x, TENSOR_AXIS) if axis_size(TENSOR_AXIS) > 1 else x


def logits_cross_entropy(logits: Array, targets: Array) -> Array:
    """``logsumexp(logits) - logits[target]`` over the last axis, float32; shapes (..., V) and (...)."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked
