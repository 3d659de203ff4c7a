"""Cross-entropy of every token, without ever holding the logits of a batch.

n x V floats a token are by far the largest array of a training step. Here a part of the positions of one head at a
time has logits, forward and backward; between the two, one number a token is kept (the logarithm of the softmax's
denominator), as in Wijmans et al. 2024 (arXiv 2411.09009).

Shapes in names: n heads, B rows, S positions, D width, V vocabulary, c positions at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from wmtp_jax.parallel.sharding import BATCH_AXES, FSDP_AXIS, TENSOR_AXIS, axis_size, map_shards

# Logits in flight, elements a device: 64 MiB in float32. Fewer, and the products are too thin for a GPU, and the
# gradient of the output matrix is read and written too often.
LOGITS_IN_FLIGHT = 2**24

Arrays = tuple[Array, ...]
_HIDDEN, _TOKENS = P(None, BATCH_AXES), P(BATCH_AXES)
_GATHERED, _OUTPUT = P(None, TENSOR_AXIS), P(FSDP_AXIS, TENSOR_AXIS)


def token_cross_entropy(
    hidden_nBSD: Array,
    output_DV: Array,
    targets_BSn: Array,
    low_rank: tuple[Array, Array] | None = None,
    *,
    frozen: bool = False,
) -> Array:
    """``-log p_k(target)`` for each position and head, (B, S, n) float32.

    Any cotangent may come back, so weights may depend on the losses they multiply. Under a mesh the rows lie on the
    devices that read them, V may be split over the axis ``tensor``; the matrix is gathered once forward and once
    backward, and its gradient, a float32 sum over heads and positions, is reduced once.

    Args:
      hidden_nBSD: normed hidden states of the n heads.
      output_DV: the output matrix they share, in the same dtype.
      targets_BSn: int ids in [0, V); where there is no target any id will do.
      low_rank: (n, B, S, r) and (r, V), whose product is added to the logits: an adapter of the output matrix.
      frozen: the output matrix has no gradient: none is made.
    """
    inputs: Arrays = (hidden_nBSD,)
    matrices: Arrays = (output_DV,)
    if low_rank is not None:
        inputs, matrices = (*inputs, low_rank[0]), (*matrices, low_rank[1])
    return _cross_entropy(frozen, inputs, matrices, targets_BSn)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(frozen: bool, inputs: Arrays, matrices: Arrays, targets_BSn: Array) -> Array:
    """Losses (B, S, n) of the logits that are the sum of the products of inputs (n, B, S, .) and matrices (., V)."""
    return _forward(frozen, inputs, matrices, targets_BSn)[0]


def _forward(frozen: bool, inputs: Arrays, matrices: Arrays, targets_BSn: Array) -> tuple[Array, tuple[Any, ...]]:
    del frozen
    local = map_shards(_local_forward, (_HIDDEN, _GATHERED, _TOKENS), (_TOKENS, _TOKENS))
    ce_BSn, log_normalizer_BSn = local(inputs, matrices, targets_BSn)
    return ce_BSn, (inputs, matrices, targets_BSn, log_normalizer_BSn)


def _backward(frozen: bool, residuals: tuple[Any, ...], cotangent_BSn: Array) -> tuple[Arrays, Any, None]:
    placed = ((None if frozen else _OUTPUT), *(_GATHERED for _ in residuals[1][1:]))
    local = map_shards(
        partial(_local_backward, frozen), (_HIDDEN, _GATHERED, _TOKENS, _TOKENS, _TOKENS), (_HIDDEN, placed)
    )
    return (*local(*residuals, cotangent_BSn), None)


_cross_entropy.defvjp(_forward, _backward)


def _local_forward(inputs: Arrays, matrices: Arrays, targets_BSn: Array) -> tuple[Array, Array]:
    """Losses and log-normalizers (B, S, n) of the rows of one device."""
    n, _, S, _ = inputs[0].shape
    loop = _Chunks(n, S, targets_BSn[..., 0].size * matrices[0].shape[1])
    padded, targets = [loop.padded(x_nBS) for x_nBS in inputs], loop.padded(jnp.moveaxis(targets_BSn, -1, 0))

    def body(i: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        targets_Bc = loop.read(targets, i)
        logits_BcV = _logits([loop.read(x_nBS, i) for x_nBS in padded], matrices)
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
    frozen: bool,
    inputs: Arrays,
    matrices: Arrays,
    targets_BSn: Array,
    log_normalizer_BSn: Array,
    cotangent_BSn: Array,
) -> tuple[Arrays, tuple[Array | None, ...]]:
    """Gradients of the inputs, and of this device's part of the matrices (None of the first one, if it is frozen)."""
    n, _, S, _ = inputs[0].shape
    loop = _Chunks(n, S, targets_BSn[..., 0].size * matrices[0].shape[1])
    padded, trained = [loop.padded(x_nBS) for x_nBS in inputs], slice(1, None) if frozen else slice(None)
    of_tokens = [loop.padded(jnp.moveaxis(x, -1, 0)) for x in (targets_BSn, log_normalizer_BSn, cotangent_BSn)]

    def body(i: Array, done: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        parts = [loop.read(x_nBS, i) for x_nBS in padded]
        targets_Bc, log_normalizer_Bc, cotangent_Bc = (loop.read(x, i) for x in of_tokens)
        logits_BcV = _logits(parts, matrices)
        probability_BcV = jnp.exp(logits_BcV - log_normalizer_Bc[..., None])
        error_BcV = jnp.where(_is_target(targets_Bc, logits_BcV), probability_BcV - 1.0, probability_BcV)
        error_BcV = (error_BcV * cotangent_Bc[..., None]).astype(inputs[0].dtype)
        grads, totals = [], []
        for grad_nBS, matrix_DV in zip(done[0], matrices, strict=True):
            grad_BcD = jnp.einsum("bcv,dv->bcd", error_BcV, matrix_DV, preferred_element_type=jnp.float32)
            grad_BcD = _over_tensor(jax.lax.psum, grad_BcD).astype(grad_nBS.dtype)
            grads.append(loop.write(grad_nBS, grad_BcD, i))
        for total_DV, part_BcD in zip(done[1], parts[trained], strict=True):
            change_DV = jnp.einsum("bcd,bcv->dv", part_BcD, error_BcV, preferred_element_type=jnp.float32)
            totals.append(total_DV + change_DV)
        return grads, totals

    zeros = [jnp.zeros_like(x_nBS) for x_nBS in padded], [jnp.zeros(m.shape, jnp.float32) for m in matrices[trained]]
    grads, totals = jax.lax.fori_loop(0, loop.count, body, zeros)
    axes = [axis for axis in BATCH_AXES if axis_size(axis) > 1]
    if not frozen and FSDP_AXIS in axes:  # a matrix of the model is kept in parts, that of an adapter whole
        totals[0] = jax.lax.psum_scatter(totals[0], FSDP_AXIS, scatter_dimension=0, tiled=True)
    reduced: list[Array | None] = [None] if frozen else []
    for total_DV in totals:
        own = [axis for axis in axes if reduced or axis != FSDP_AXIS]
        reduced.append(
            jax.lax.psum(total_DV, own).astype(matrices[0].dtype) if own else total_DV.astype(matrices[0].dtype)
        )
    return tuple(grad_nBS[:, :, :S] for grad_nBS in grads), tuple(reduced)


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


def _logits(parts: Sequence[Array], matrices: Arrays) -> Array:
    products = [
        jnp.einsum("bcd,dv->bcv", part_BcD, matrix_DV, preferred_element_type=jnp.float32)
        for part_BcD, matrix_DV in zip(parts, matrices, strict=True)
    ]
    return sum(products[1:], products[0])


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
