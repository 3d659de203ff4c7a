"""Where each array lives on the mesh: one table for parameters, one rule for batches.

The mesh has the axes ``(data, fsdp, tensor)``, see `wmtp_jax.parallel.mesh`. The axes are automatic:
the compiler inserts the collectives that these placements need.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

# First match wins; a pattern is searched in the parameter's dotted name. The trailing entries of the
# specification belong to the trailing axes of the array, so stacked blocks (one more leading axis)
# and single ones share a line.
PARAMETER_TABLE: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"tok_embeddings\.embedding", ("tensor", "fsdp")),
    (r"output\.kernel", ("fsdp", "tensor")),
    (r"attention\.w[qkv]\.kernel", ("fsdp", "tensor")),
    (r"attention\.wo\.kernel", ("tensor", "fsdp")),
    (r"feed_forward\.w[13]\.kernel", ("fsdp", "tensor")),
    (r"feed_forward\.w2\.kernel", ("tensor", "fsdp")),
    (r"norm\.scale", ()),
    (r"value_head\.", ()),
)

BATCH_AXES = ("data", "fsdp")  # devices along these read different rows
FSDP_AXIS, TENSOR_AXIS = "fsdp", "tensor"


def parameter_name(path: tuple[Any, ...]) -> str:
    """Dotted name of a leaf of the parameter tree, e.g. ``trunk.attention.wq.kernel``."""
    return ".".join(str(getattr(key, "key", key)) for key in path)


def parameter_spec(name: str, shape: tuple[int, ...]) -> P:
    """Placement of one parameter. The adapter of a kernel lies as its input axis (A) and its output axis (B) do.

    Raises:
      KeyError: no line of the table matches ``name``: a new parameter needs one.
    """
    module, _, matrix = name.rpartition(".")
    looked_up = f"{module}.kernel" if matrix in ("lora_a", "lora_b") else name
    for pattern, axes in PARAMETER_TABLE:
        if re.search(pattern, looked_up):
            if looked_up != name:
                axes = (axes[0], None) if matrix == "lora_a" else (None, axes[1])
            return P(*(None,) * (len(shape) - len(axes)), *axes)
    raise KeyError(f"no line of PARAMETER_TABLE matches the parameter {name!r}; add one")


def parameter_shardings(params: Any, mesh: Mesh) -> Any:
    """The tree of placements for a tree of parameters (arrays or shapes)."""

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, parameter_spec(parameter_name(path), leaf.shape))

    return jax.tree_util.tree_map_with_path(place, params)


def placed(shapes: Any, places: Any) -> Any:
    """Shapes and types of arrays, with where they lie: what a program is traced for and a checkpoint is read into."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def batch_sharding(mesh: Mesh, batch_axis: int = 0) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes; ``batch_axis`` is where the rows are counted."""
    return NamedSharding(mesh, P(*(None,) * batch_axis, BATCH_AXES))


def place(tree: Any, shardings: Any) -> Any:
    """Arrays on the mesh. One that lies on a single device or on the host must be the same in every process."""

    def put(x: Any, sharding: Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and (x.sharding.device_set == sharding.device_set):
            return jax.device_put(x, sharding)
        # Not `jax.device_put`: between processes it sends the whole array around, to see that it is the same.
        values = np.asarray(x)
        return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)

    return jax.tree.map(put, tree, shardings)


def place_rows(read: Callable[[np.ndarray], Any], numbers: np.ndarray, sharding: Sharding) -> Any:
    """Rows on the mesh, a tree of arrays (..., S); a process reads the rows of its own devices only.

    Args:
      read: gives the rows of some numbers (...), a tree of arrays (..., S).
      numbers: (...), which rows. The same in every process.
      sharding: of (..., S), whole rows.
    """
    devices, parts = zip(*local_rows(read, numbers, sharding).items(), strict=True)

    def join(*fields: np.ndarray) -> jax.Array:
        shape = (*numbers.shape, fields[0].shape[-1])
        return jax.make_array_from_single_device_arrays(shape, sharding, jax.device_put(list(fields), list(devices)))

    return jax.tree.map(join, *parts)


def local_rows(read: Callable[[np.ndarray], Any], numbers: np.ndarray, sharding: Sharding) -> dict[jax.Device, Any]:
    """What each device of this process has of the rows; those that several devices have are read once."""
    parts: dict[bytes, Any] = {}
    result = {}
    for device, index in sharding.addressable_devices_indices_map(numbers.shape).items():
        chosen = numbers[index]
        if chosen.tobytes() not in parts:
            parts[chosen.tobytes()] = read(chosen)
        result[device] = parts[chosen.tobytes()]
    return result


def shard_batch(x: jax.Array) -> jax.Array:
    """Keeps an activation (B, ...) sharded by rows inside a jitted function; nothing without a mesh.

    Without this the compiler may replicate activations after the embedding lookup.
    """
    return _constrain(x, P(BATCH_AXES))


def replicate(x: jax.Array) -> jax.Array:
    """Gathers an array on every device inside a jitted function; nothing without a mesh."""
    return _constrain(x, P())


def axis_size(name: str) -> int:
    """Devices along an axis of the mesh in context; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(name, 1)


def map_shards(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``function`` of each device's shards (`jax.shard_map`); itself without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, spec)
