"""Operations inside the documents of packed rows: nothing crosses from one document into the next.

Shapes in names: B rows, S positions, M documents a row at most. ``segment_ids_BS`` numbers the documents of a
row 1, 2, ...; 0 is padding.
"""

import jax
import jax.numpy as jnp
from jax import Array


def ahead(x_BS: Array, k: int) -> Array:
    """``x[t + k]`` at position t, zeros past the end of the row."""
    return jnp.pad(x_BS[:, k:], ((0, 0), (0, min(k, x_BS.shape[1]))))


def same_document_ahead(segment_ids_BS: Array, k: int) -> Array:
    """Whether the position k places ahead belongs to the same document, (B, S) bool."""
    return (ahead(segment_ids_BS, k) == segment_ids_BS) & (segment_ids_BS > 0)


def before(x_BS: Array, segment_ids_BS: Array, first: float) -> Array:
    """``x[t - 1]`` at position t; ``first`` at the first position of each document (and in padding)."""
    same_BS = jnp.pad(same_document_ahead(segment_ids_BS, 1)[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(same_BS, jnp.pad(x_BS[:, :-1], ((0, 0), (1, 0))), first)


def goes_on(mask_BS: Array, segment_ids_BS: Array) -> Array:
    """Whether the next position is in the mask too, in the same document: False at the last token T, (B, S) bool."""
    return mask_BS & ahead(mask_BS, 1) & same_document_ahead(segment_ids_BS, 1)


def reverse_affine_scan(slope_BS: Array, offset_BS: Array) -> Array:
    """``y[t] = slope[t] * y[t + 1] + offset[t]`` with y = 0 past the end, in O(log S) steps.

    A slope of 0 cuts: what lies behind that position does not reach it.
    """

    def compose(right: tuple[Array, Array], left: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], left[0] * right[1] + left[1]

    return jax.lax.associative_scan(compose, (slope_BS, offset_BS), reverse=True, axis=1)[1]


def document_sums(x_BS: Array, segment_ids_BS: Array, n_documents: int) -> Array:
    """Sum of ``x`` over each document, (B, M) float32; M = ``n_documents``, 0 where a row has fewer."""
    numbers_M = jnp.arange(1, n_documents + 1)
    inside_BSM = segment_ids_BS[..., None] == numbers_M
    # where, not a product: what stands in padding must not leak in, were it not finite.
    return jnp.sum(jnp.where(inside_BSM, x_BS[..., None], 0.0), axis=1, dtype=jnp.float32)


def document_means(x_BS: Array, mask_BS: Array, segment_ids_BS: Array, n_documents: int) -> tuple[Array, Array]:
    """Mean of ``x`` over the masked positions of each document.

    Returns:
      ``means_BM`` float32 (0 where there is nothing to average) and ``there_BM`` bool.
    """
    sums_BM = document_sums(jnp.where(mask_BS, x_BS, 0.0), segment_ids_BS, n_documents)
    counts_BM = document_sums(mask_BS, segment_ids_BS, n_documents)
    return sums_BM / jnp.maximum(counts_BM, 1.0), counts_BM > 0
