"""A model on disk: ``config.json`` (architecture), ``params/`` (Orbax), ``adapter/`` (LoRA), ``tokenizer/``.

``params/`` holds the nested dict of parameters; it is read onto any mesh. A training checkpoint
keeps its parameters in the same form, so both are loaded by the same code. ``adapter/`` is there only
where ``config.json`` describes one. Where it names a base, ``params/`` holds only what differs from that model,
or is absent.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import LoRAConfig
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.parallel.sharding import parameter_name, parameter_shardings, parameter_spec, placed

FORMAT_VERSIONS = (1, 2)  # 2: with a base, which an earlier program would not look for
CONFIG_FILE, PARAMS_FOLDER, ADAPTER_FOLDER, TOKENIZER_FOLDER = "config.json", "params", "adapter", "tokenizer"
Index = tuple[int | slice, ...]
STACKS = ("trunk.", "heads.")  # leaves whose leading axis counts blocks
_CHUNK_BYTES = 64 * 2**20
_BYTES_IN_FLIGHT = 256 * 2**20


def build(config: ModelConfig, **options: Any) -> tuple[nnx.GraphDef[MTPTransformer], Any]:
    """The model's structure and the shapes of its parameters, without making any weight.

    Args:
      config: the architecture.
      **options: of `MTPTransformer` (dtype, param_dtype, remat, ...).

    Returns:
      ``graphdef`` and a nested dict of `jax.ShapeDtypeStruct`; ``nnx.merge(graphdef, params)`` with
      arrays of these shapes is the model.
    """
    model = nnx.eval_shape(lambda: MTPTransformer(config, rngs=nnx.Rngs(0), **options))
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def random_params(config: ModelConfig, seed: int, param_dtype: DTypeLike, mesh: Mesh) -> Any:
    """Fresh weights, made on the mesh: no device ever holds all of them."""

    def make() -> Any:
        model = MTPTransformer(config, rngs=nnx.Rngs(seed), param_dtype=param_dtype)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return jax.jit(make, out_shardings=parameter_shardings(jax.eval_shape(make), mesh))()


def count_params(shapes: Any) -> dict[str, int]:
    """Number of parameters by part (trunk, heads, tok_embeddings, output, norm) and in total."""
    parts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    return {**parts, "total": sum(parts.values())}


class Base(NamedTuple):
    """A model that holds the rest of another one's weights.

    Attributes:
      path: where it is, as `wmtp_jax.load.find_model` takes it; a relative path counts from the directory of the
        ``config.json`` it stands in.
      fingerprint: `wmtp_jax.load.model_fingerprint` of it.
    """

    path: str
    fingerprint: str


class Description(NamedTuple):
    """What ``config.json`` says of a model.

    Attributes:
      config: its architecture.
      adapter: the adapter in ``adapter/``, which belongs to the model; None without one.
      source: where the weights come from.
      base: the model whose weights are those that are not in ``params/``; None: all of them are.
    """

    config: ModelConfig
    adapter: LoRAConfig | None
    source: dict[str, Any]
    base: Base | None = None


def write_description(directory: Path, config: ModelConfig, source: dict[str, Any], *more: Any) -> None:
    """Writes ``config.json``, see `description_text`."""
    (directory / CONFIG_FILE).write_text(description_text(config, source, *more), encoding="utf-8")


def description_text(
    config: ModelConfig, source: dict[str, Any], adapter: LoRAConfig | None = None, base: Base | None = None
) -> str:
    """What stands in ``config.json``; ``source`` says where the weights come from, the rest is as in `Description`."""
    content = {
        "format_version": FORMAT_VERSIONS[base is not None],
        "architecture": dataclasses.asdict(config),
        "adapter": dataclasses.asdict(adapter) if adapter else None,
        **({"base": base._asdict()} if base else {}),
        "source": source,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_description(directory: Path) -> Description:
    """Reads ``config.json``.

    Raises:
      ValueError: the file is absent, damaged, or of a later format; the message names it.
    """
    path = directory / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        if version not in FORMAT_VERSIONS:
            raise ValueError(f"format version {version}, but this program reads {FORMAT_VERSIONS[-1]} and earlier")
        adapter, base = content.get("adapter"), content.get("base")
        return Description(
            ModelConfig(**content["architecture"]),
            LoRAConfig(**adapter) if adapter else None,
            content["source"],
            Base(**base) if base else None,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: no such file, so {directory} is not a model directory") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a model description of ours ({error})") from error


def is_model_directory(directory: Path) -> bool:
    """Whether a folder holds a model of ours: its description and its parameters."""
    return (directory / CONFIG_FILE).is_file() and (directory / PARAMS_FOLDER).is_dir()


def read_params(directory: Path, shapes: Any, mesh: Mesh) -> Any:
    """Reads ``params/`` onto the mesh, in the types of ``shapes``.

    Raises:
      ValueError: the folder is absent or does not hold parameters of these shapes.
    """
    return _restore(directory.resolve() / PARAMS_FOLDER, shapes, parameter_shardings(shapes, mesh))


def read_adapter(directory: Path, mesh: Mesh) -> Any:
    """Reads ``adapter/`` onto the mesh. Raises ValueError as `read_params` does."""
    stored = open_arrays(directory, ADAPTER_FOLDER)
    shapes: dict[str, Any] = {}
    for name, array in stored.items():
        set_leaf(shapes, name, jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype))
    return _restore(directory.resolve() / ADAPTER_FOLDER, shapes, parameter_shardings(shapes, mesh))


def write_params(directory: Path, params: Any, folder: str = PARAMS_FOLDER) -> None:
    """Writes a tree of arrays as ``params/`` (or ``adapter/``); it appears whole or not at all."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(directory.resolve() / folder, params, save_args=save_args(params))


def write_params_streamed(directory: Path, shapes: Any, parts: Iterable[tuple[str, Index, np.ndarray]]) -> None:
    """Writes ``params/`` part by part: only a few parts at a time are held in memory (about 256 MiB, or one part).

    Args:
      directory: the model directory.
      shapes: nested dict of `jax.ShapeDtypeStruct`.
      parts: ``(dotted name, index, array)``: the array goes to ``leaf[index]``. Together they must fill every
        leaf; nothing here checks that. Parts of `write_areas` are written fastest.
    """
    registry = ocp.type_handlers.create_type_handler_registry((jax.ShapeDtypeStruct, _StreamHandler(parts)))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, use_compression=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(directory.resolve() / PARAMS_FOLDER, shapes)


def write_areas(name: str, shape: tuple[int, ...]) -> list[Index]:
    """The areas of one block (or of a leaf that is no stack) that are chunks on the disk, in order."""
    if name.startswith(STACKS):
        whole, piece = shape[1:], _write_shape(name, shape)[1:]
    else:
        whole, piece = shape, _write_shape(name, shape)
    steps = [range(0, size, step) for size, step in zip(whole, piece, strict=True)]
    corners = itertools.product(*steps)
    return [tuple(slice(at, at + step) for at, step in zip(corner, piece, strict=True)) for corner in corners]


def save_args(tree: Any) -> Any:
    """How Orbax cuts the leaves of a parameter tree into chunks: one block of a stack, or less, a chunk.

    So one block can be read without the others, and a device reads little more than its shard.
    """

    def args(path: tuple[Any, ...], _: Any) -> ocp.SaveArgs:
        stacked = parameter_name(path).startswith(STACKS)
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(args, tree)


def open_arrays(directory: Path, folder: str = PARAMS_FOLDER) -> dict[str, ts.TensorStore]:
    """Opens every array of ``params/`` (or ``adapter/``) by its dotted name; nothing of it is read yet.

    ``array[i].read().result()`` gives block i of a stack as numpy.

    Raises:
      ValueError: the folder is absent or damaged.
    """
    path = directory.resolve() / folder
    if not path.is_dir():
        raise ValueError(f"{path}: no parameters there")
    try:
        metadata = json.loads((path / "_METADATA").read_text())
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        names = [".".join(key["key"] for key in leaf["key_metadata"]) for leaf in metadata["tree_metadata"].values()]
        kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{path}/"}}
        pending = [ts.open({"driver": driver, "kvstore": {**kvstore, "path": f"{name}/"}}) for name in names]
        return dict(zip(names, (future.result() for future in pending), strict=True))
    except Exception as error:  # tensorstore raises many kinds; the remedy is the same for all
        reason = str(error).partition(" [")[0][:200]  # behind it stands all of tensorstore's specification
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {reason}); it is damaged: make or copy it again"
        ) from error


def get_leaf(tree: Mapping[str, Any], name: str) -> Any:
    """The leaf with a dotted name, e.g. ``trunk.attention.wq.kernel``; raises KeyError without one."""
    for key in name.split("."):
        tree = tree[key]
    return tree


def set_leaf(tree: dict[str, Any], name: str, value: Any) -> None:
    """Puts a leaf at a dotted name, making the dicts on the way."""
    *parents, last = name.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


class _StreamHandler(ocp.type_handlers.NumpyHandler):
    """Writes leaves that arrive in parts, in any order; Orbax does the rest (metadata, whole or nothing)."""

    def __init__(self, parts: Iterable[tuple[str, Index, np.ndarray]]):
        super().__init__()
        self._parts = parts

    def typestr(self) -> str:
        return "jax.Array"  # as a tree of jax arrays is described: what reads it is the same

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
        stores = {}
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=info.is_ocdbt_checkpoint,
                global_shape=value.shape,
                local_shape=_write_shape(info.name, value.shape),
                dtype=np.dtype(value.dtype),
                process_index=0,
                arg=ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES),
            )
            # Not every chunk is brought to the disk by itself: that costs several times the writing. The caller
            # syncs once, before the directory gets its name.
            context = ts.Context({"file_io_sync": False}, parent=info.ts_context)
            stores[info.name] = await ts.open(ts.Spec(spec), create=True, open=True, context=context)
        in_flight: deque[tuple[int, Any]] = deque()  # parts that are written while the next one is prepared
        try:
            for name, index, array in self._parts:
                while in_flight and sum(size for size, _ in in_flight) + array.nbytes > _BYTES_IN_FLIGHT:
                    await in_flight.popleft()[1]
                target = stores[name][index] if index else stores[name]
                in_flight.append((array.nbytes, target.write(array, can_reference_source_data_indefinitely=True)))
        except BaseException:
            # Nothing may go on writing into a folder that the caller is about to clear away.
            await asyncio.gather(*(writing for _, writing in in_flight), return_exceptions=True)
            raise
        for _, writing in in_flight:
            await writing
        return []


def _write_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One block of a stack, in quarters along the axis that fsdp shards: four devices read four parts."""
    axes = parameter_spec(name, shape)
    result = [size // 4 if axis == "fsdp" and size % 4 == 0 else size for size, axis in zip(shape, axes, strict=True)]
    return (1, *result[1:]) if name.startswith(STACKS) else tuple(result)


def _restore(path: Path, shapes: Any, shardings: Any) -> Any:
    if not path.is_dir():
        raise ValueError(f"{path}: no parameters there")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, placed(shapes, shardings))
    except Exception as error:  # Orbax raises many kinds; the remedy is the same for all
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
