"""Attention inside documents, by the kernel that suits the device.

Shapes are written in names: B batch, S sequence, N attention heads, K key/value heads, H width of one head.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from wmtp_jax.parallel.sharding import BATCH_AXES, TENSOR_AXIS, axis_size, map_shards

KERNELS = ("xla", "cudnn", "pallas")
OUTPUT = "attention_output"  # what `jax.checkpoint` may keep of a block

_PALLAS_BLOCK, _PALLAS_LEAST = 128, 16  # positions


class Documents(NamedTuple):
    """Which positions of a row may attend to which: causal, inside one document.

    Attributes:
      segment_ids_BS: numbers of the documents; None where a row is one document, from its first position on.
      mask_B1SS: bool, the same as an array; only where the kernel reads one.
    """

    segment_ids_BS: Array | None
    mask_B1SS: Array | None


def documents(segment_ids_BS: Array | None, kernel: str, keep_BS: Array | None = None) -> Documents:
    """What `attend` needs to know of a batch, made once for all blocks.

    Args:
      segment_ids_BS: numbers of the documents; None where each row is one.
      kernel: one of `KERNELS`.
      keep_BS: bool, for rows of one document: where it is False nothing attends to.
    """
    if segment_ids_BS is None:
        if keep_BS is None:
            return Documents(None, None)
        causal_SS = jnp.tril(jnp.ones((keep_BS.shape[1],) * 2, dtype=bool))
        return Documents(None, causal_SS[None, None] & keep_BS[:, None, None])
    if kernel == "pallas":
        return Documents(segment_ids_BS, None)
    return Documents(None, document_mask(segment_ids_BS))


def document_mask(segment_ids_BS: Array) -> Array:
    """Causal mask inside documents, (B, 1, S, S) bool: position q may attend to position k."""
    same_BSS = segment_ids_BS[:, :, None] == segment_ids_BS[:, None, :]
    causal_SS = jnp.tril(jnp.ones((segment_ids_BS.shape[1],) * 2, dtype=bool))
    return (same_BSS & causal_SS)[:, None]


def attend(q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, where: Documents, kernel: str) -> Array:
    """Softmax attention, scaled by ``1 / sqrt(H)``, (B, S, N, H). Causal, inside documents.

    Args:
      q_BSNH, k_BSKH, v_BSKH: queries, keys, values; K divides N.
      where: of `documents`, for this kernel.
      kernel: ``xla`` holds (B, N, S, S) scores; ``cudnn`` (NVIDIA, 16-bit types) and ``pallas`` (NVIDIA, any type,
        reads document numbers) do not.
    """
    if kernel == "pallas" and where.mask_B1SS is None:
        out_BSNH = _pallas(q_BSNH, k_BSKH, v_BSKH, where.segment_ids_BS)
    else:
        # A row that is one document needs no mask array: the kernel knows "causal".
        mask_B1SS = where.mask_B1SS
        out_BSNH = jax.nn.dot_product_attention(
            q_BSNH,
            k_BSKH,
            v_BSKH,
            mask=mask_B1SS,
            is_causal=mask_B1SS is None,
            implementation="cudnn" if kernel == "cudnn" else "xla",
        )
    return checkpoint_name(out_BSNH, OUTPUT)


def keeps_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy of `jax.checkpoint`: keep what attention gives, so that no kernel runs twice.

    That is its output and, of a fused kernel, the sums its own backward pass starts from.
    """
    if primitive.name == "name":
        return bool(parameters["name"] == OUTPUT)
    # The Triton kernel's forward rule calls the kernel in the wrapping of its derivative; a block has no other.
    return primitive.name == "custom_vjp_call" or primitive.name.startswith("dot_product_attention_fwd")


def choose_kernel(
    wanted: str, platform: str, *, dtype: DTypeLike, head_width: int, length: int, one_document: bool
) -> str:
    """The kernel for a device and a batch; ``auto`` takes the best there is.

    Args:
      wanted: ``auto`` or one of `KERNELS`.
      platform: of the devices: ``cpu``, ``gpu`` or ``cuda``, ...
      dtype: of queries, keys and values.
      head_width: H.
      length: S.
      one_document: each row is one document.

    Raises:
      ValueError: the kernel that is wanted does not do it; the message says why.
    """
    on_gpu = platform in ("gpu", "cuda")
    obstacles: dict[str, str | None] = dict.fromkeys(KERNELS)
    if not on_gpu:
        obstacles |= dict.fromkeys(("cudnn", "pallas"), f"it needs an NVIDIA GPU, and the devices are {platform}")
    elif jnp.dtype(dtype).itemsize != 2:
        obstacles["cudnn"] = f"it computes in 16-bit types, not in {jnp.dtype(dtype).name}"
    if on_gpu and (head_width > 128 or head_width % 8):
        obstacles["cudnn"] = (
            obstacles["cudnn"] or f"its head width is at most 128 and a multiple of 8, not {head_width}"
        )
    power_of_two = length & (length - 1) == 0 and length >= _PALLAS_LEAST
    if on_gpu and length % _PALLAS_BLOCK and not power_of_two:
        obstacles["pallas"] = f"a row must be a multiple of {_PALLAS_BLOCK} tokens (or 16, 32, 64), not {length}"
    if wanted != "auto":
        if obstacles[wanted]:
            raise ValueError(f"attention kernel {wanted}: {obstacles[wanted]}")
        return wanted
    # cuDNN is the fastest where "causal" says it all; it reads several documents a row from an S x S array.
    order = ("cudnn", "pallas", "xla") if one_document else ("pallas", "cudnn", "xla")
    return next(kernel for kernel in order if not obstacles[kernel])


def _pallas(
    q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, segment_ids_BS: Array | None, interpret: bool = False
) -> Array:
    """Flash attention (Dao 2023, arXiv 2307.08691) of `jax.experimental.pallas` for Triton, on each device's part.

    ``interpret`` runs it as ordinary operations, on any device.
    """
    from jax.experimental.pallas.ops.gpu.attention import mha

    if k_BSKH.shape[2] % axis_size(TENSOR_AXIS):  # fewer key/value heads than devices that share them
        k_BSKH, v_BSKH = (jnp.repeat(x, q_BSNH.shape[2] // x.shape[2], axis=2) for x in (k_BSKH, v_BSKH))
    if segment_ids_BS is None:
        segment_ids_BS = jnp.ones(q_BSNH.shape[:2], jnp.int32)

    def local(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        return mha(q, k, v, segment_ids, sm_scale=q.shape[-1] ** -0.5, causal=True, interpret=interpret)

    heads, tokens = P(BATCH_AXES, None, TENSOR_AXIS), P(BATCH_AXES)
    return map_shards(local, (heads, heads, heads, tokens), heads)(q_BSNH, k_BSKH, v_BSKH, segment_ids_BS)
