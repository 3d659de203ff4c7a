"""The device mesh ``(data, fsdp, tensor)``; the same code runs on one device and on many."""

import math

import jax
from jax.sharding import AxisType, Mesh

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
        shape = tuple(n_devices // rest if size == -1 else size for size in shape)  # type: ignore[assignment]
    if math.prod(shape) != n_devices:
        raise ValueError(
            f"runtime.mesh {dict(zip(AXES, shape, strict=True))} does not fit: its sizes must multiply to the "
            f"number of devices, which is {n_devices} (-1 stands for the rest)"
        )
    return shape


def make_mesh(shape: tuple[int, int, int], n_devices: int | None = None) -> Mesh:
    """The mesh over all devices, or the first ``n_devices``. Raises ValueError as `resolve_shape` does."""
    devices = jax.devices()[:n_devices]
    shape = resolve_shape(shape, n_devices or len(devices))
    # Explicit axes (the default of jax.make_mesh) break an unmodified embedding gather.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
