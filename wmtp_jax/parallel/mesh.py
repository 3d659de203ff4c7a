"""The device mesh ``(data, fsdp, tensor)``; the same code runs on one device and on many."""

import math

import jax
from jax.sharding import AxisType, Mesh

from wmtp_jax.models.config import ModelConfig

AXES = ("data", "fsdp", "tensor")


def resolve_shape(shape: tuple[int, int, int], n_devices: int) -> tuple[int, int, int]:
    """Replaces a -1 in ``shape`` by what is left of ``n_devices``.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    rest = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1:
        raise ValueError(f"mesh {dict(zip(AXES, shape, strict=True))}: only one axis may be -1 (the rest)")
    if shape.count(-1) and n_devices % rest == 0:
        data, fsdp, tensor = (n_devices // rest if size == -1 else size for size in shape)
        shape = data, fsdp, tensor
    if math.prod(shape) != n_devices:
        raise ValueError(
            f"runtime.mesh {dict(zip(AXES, shape, strict=True))} does not fit: its sizes must multiply to the "
            f"number of devices, which is {n_devices} (-1 stands for the rest)"
        )
    return shape


def check_shapes(shape: tuple[int, int, int], config: ModelConfig) -> None:
    """Checks that the mesh divides what it splits of a model: `parallel.sharding` has the table.

    Raises:
      ValueError: it does not; the message names the sizes.
    """
    _, fsdp, tensor = shape
    kv_dim = config.n_kv_heads * config.head_width
    for axis, size, name, whole in (
        ("fsdp", fsdp, "dim", config.dim),
        ("tensor", tensor, "n_heads", config.n_heads),
        ("tensor", tensor, "n_kv_heads x head width", kv_dim),
        ("tensor", tensor, "ffn_dim", config.ffn_dim),
        ("tensor", tensor, "vocab_size", config.vocab_size),
    ):
        if whole % size:
            fits = [n for n in range(1, size) if whole % n == 0]
            raise ValueError(
                f"runtime.mesh.{axis} is {size}, which does not divide the model's {name} {whole:,}; give a size that "
                f"does (the next smaller is {fits[-1]})"
            )


def make_mesh(shape: tuple[int, int, int], n_devices: int | None = None) -> Mesh:
    """The mesh over all devices, or the first ``n_devices``. Raises ValueError as `resolve_shape` does."""
    devices = jax.devices()[:n_devices]
    shape = resolve_shape(shape, n_devices or len(devices))
    # Explicit axes (the default of jax.make_mesh) break an unmodified embedding gather.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
