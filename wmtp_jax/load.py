"""Where a model comes from: our model directory, a training run, or a foreign checkpoint as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from conversion.layout import tree_to_ours
from conversion.source import Source, is_foreign, open_source
from wmtp_jax.errors import UserError
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import LoRAConfig, merge, merged
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import parameter_shardings, place
from wmtp_jax.training.checkpoints import CHECKPOINTS_FOLDER, best_step, saved_steps, step_directory


class ModelSource(NamedTuple):
    """A model found on disk.

    Attributes:
      description: architecture, adapter, where it is from.
      directory: what holds the weights: a folder with ``params/``, or a foreign checkpoint.
      tokenizer: its tokenizer's folder, if it brings one.
      foreign: the checkpoint, where it is in a foreign layout.
    """

    description: store.Description
    directory: Path
    tokenizer: Path | None
    foreign: Source | None = None

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.description.config

    @property
    def adapter(self) -> LoRAConfig | None:
        """The adapter in ``adapter/``, if there is one."""
        return self.description.adapter


def find_model(path: Path | str) -> ModelSource:
    """Looks at ``path`` and says what is there; no weight is read.

    Args:
      path: a model directory; a run directory (its best step), ``RUN@latest``, ``RUN@<step>``; or a
        foreign checkpoint: Meta's multi-token-prediction layout, LlamaForCausalLM, Starling-RM.

    Raises:
      UserError: nothing of that kind is there.
    """
    directory, wanted = split_step(path)
    if not directory.exists():
        raise UserError(f"{path}: no such model; give a model directory, a run directory, or a PyTorch checkpoint")
    if directory.is_file() or is_foreign(directory):
        source = open_source(directory)
        home = source.directory
        readable = any((home / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        description = store.Description(source.config, None, {"format": source.layout.name})
        return ModelSource(description, home, home if readable else None, source)
    try:
        description = store.read_description(directory)
    except ValueError as error:
        raise UserError(
            f"{error}. A model directory holds {store.CONFIG_FILE} and {store.PARAMS_FOLDER}/, a run directory "
            f"{store.CONFIG_FILE} and {CHECKPOINTS_FOLDER}/; a PyTorch checkpoint is read too "
            "(`python -m conversion inspect` says what it is)"
        ) from error
    tokenizer = directory / store.TOKENIZER_FOLDER
    weights = directory
    if (directory / CHECKPOINTS_FOLDER).is_dir():
        weights = step_directory(directory, _choose_step(directory, wanted))
    elif wanted:
        raise UserError(f"{path}: {directory} is a model directory, not a run: it has no steps to choose from")
    return ModelSource(description, weights, tokenizer if tokenizer.is_dir() else None)


def split_step(path: Path | str) -> tuple[Path, str]:
    """``RUN@latest`` as the run directory and ``"latest"``; the second is empty where no step is named."""
    run, at, wanted = str(path).rpartition("@")
    if not at or Path(path).exists():
        return Path(path), ""
    return Path(run), wanted


def load_params(source: ModelSource, shapes: object, mesh: Mesh) -> object:
    """The parameters of a model, placed on the mesh, in the types of ``shapes`` (`store.build`).

    Raises:
      UserError: the weights are damaged or of other shapes.
    """
    if source.foreign:
        # All of it in memory, twice while blocks are stacked: a large model is imported first, and read from there.
        tensors = {name: tensor.read() for name, tensor in source.foreign.tensors.items()}
        ours = tree_to_ours(tensors, source.foreign.layout, source.config)

        typed = jax.tree.map(lambda leaf, values: np.asarray(values, leaf.dtype), shapes, ours)
        return place(typed, parameter_shardings(shapes, mesh))
    try:
        params = store.read_params(source.directory, shapes, mesh)
        if source.adapter is None:
            return params
        return merge(params, store.read_adapter(source.directory, mesh), source.adapter)
    except ValueError as error:
        raise UserError(str(error)) from error


def stored_arrays(source: ModelSource, folder: str = store.PARAMS_FOLDER) -> dict[str, Any]:
    """The arrays of a model of ours, not read yet. Raises UserError where they are damaged."""
    try:
        return store.open_arrays(source.directory, folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def block_reader(source: ModelSource) -> Callable[[str, int | None], np.ndarray]:
    """A function ``(dotted name, block or None) -> array`` over a model of ours, with its adapter worked in.

    Without an adapter arrays are as they are stored, with one float32.

    Raises:
      UserError: the weights are damaged.
    """
    arrays = stored_arrays(source)
    adapter = stored_arrays(source, store.ADAPTER_FOLDER) if source.adapter else {}

    def read(name: str, block: int | None) -> np.ndarray:
        def values(array: Any) -> np.ndarray:
            return np.asarray((array if block is None else array[block]).read().result())

        module = name.removesuffix(".kernel")
        if source.adapter and f"{module}.lora_a" in adapter:
            a, b = (values(adapter[f"{module}.{matrix}"]) for matrix in ("lora_a", "lora_b"))
            return merged(values(arrays[name]).astype(np.float32), a, b, source.adapter)
        return values(arrays[name])

    return read


def load_model(
    path: Path | str, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> MTPTransformer:
    """Loads a model: ``model(tokens)`` gives float32 logits (batch, sequence, n_future, vocabulary).

    A model with a value head gives ``model.values(tokens)``, float32 (batch, sequence).

    Args:
      path: as in `find_model`.
      dtype: of matrix products.
      param_dtype: of the weights in memory.

    Raises:
      UserError: no model there, or its weights are damaged.
    """
    source = find_model(path)
    graphdef, shapes = store.build(source.config, dtype=dtype, param_dtype=param_dtype)
    return nnx.merge(graphdef, load_params(source, shapes, make_mesh((-1, 1, 1))))


def _choose_step(run_directory: Path, wanted: str) -> int:
    steps = saved_steps(run_directory)
    if not steps:
        raise UserError(f"{run_directory}: the run has not saved a checkpoint yet")
    if wanted in ("", "best"):
        best = best_step(run_directory)
        assert best is not None
        return best
    if wanted == "latest":
        return steps[-1]
    if wanted.isdigit() and int(wanted) in steps:
        return int(wanted)
    raise UserError(f"{run_directory}@{wanted}: no such step; saved are {', '.join(map(str, steps))} (or @latest)")
