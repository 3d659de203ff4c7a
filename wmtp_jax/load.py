"""Where a model comes from: our model directory, a training run, or a foreign checkpoint as it is.

A run that trained only a part of a model (an adapter, a value head) keeps that part alone, and names the rest as its
base: whatever reads the run reads both, and compares the base with what it was (`check_base`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from conversion.layout import tree_to_ours
from conversion.source import Source, is_foreign, open_source
from wmtp_jax.errors import UserError
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import LoRAConfig, merge
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import parameter_shardings, place
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER
from wmtp_jax.training.saved import best_step, check_step, saved_steps, step_directory


class ModelSource(NamedTuple):
    """A model found on disk.

    Attributes:
      path: finds exactly this model again: a run's has the number of its step.
      description: architecture, adapter, where it is from.
      directory: what holds the weights: a folder with ``params/`` or ``adapter/``, or a foreign checkpoint.
      tokenizer: its tokenizer's folder, if it brings one.
      foreign: the checkpoint, where it is in a foreign layout.
      base: the model that holds the weights which are not in ``directory``, if there are any.
    """

    path: str
    description: store.Description
    directory: Path
    tokenizer: Path | None
    foreign: Source | None = None
    base: ModelSource | None = None

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
      path: a model directory; a run directory (its best step, the latest if none is validated), ``RUN@latest``,
        ``RUN@<step>``; or a
        foreign checkpoint: Meta's multi-token-prediction layout, LlamaForCausalLM, Starling-RM.

    Raises:
      UserError: nothing of that kind is there, or its base is not.
    """
    directory, wanted = split_step(path)
    if not directory.exists():
        raise UserError(f"{path}: no such model; give a model directory, a run directory, or a PyTorch checkpoint")
    if directory.is_file() or is_foreign(directory):
        source = open_source(directory)
        home = source.directory
        readable = any((home / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        description = store.Description(source.config, None, {"format": source.layout.name})
        return ModelSource(str(path), description, home, home if readable else None, source)
    try:
        description = store.read_description(directory)
    except ValueError as error:
        raise UserError(
            f"{error}. A model directory holds {store.CONFIG_FILE} and {store.PARAMS_FOLDER}/, a run directory "
            f"{store.CONFIG_FILE} and {CHECKPOINTS_FOLDER}/; a PyTorch checkpoint is read too "
            "(`python -m conversion inspect` says what it is)"
        ) from error
    tokenizer = directory / store.TOKENIZER_FOLDER
    weights, exact = directory, str(directory)
    if (directory / CHECKPOINTS_FOLDER).is_dir():
        step = _choose_step(directory, wanted)
        weights, exact = step_directory(directory, step), f"{directory}@{step}"
    elif wanted:
        raise UserError(f"{path}: {directory} is a model directory, not a run: it has no steps to choose from")
    base = _find_base(directory, description.base) if description.base else None
    return ModelSource(exact, description, weights, tokenizer if tokenizer.is_dir() else None, base=base)


def _find_base(directory: Path, base: store.Base) -> ModelSource:
    try:
        return find_model(directory / base.path)  # an absolute path stays as it is
    except UserError as error:
        raise UserError(
            f"{directory} holds only what was trained; the rest of its weights is in its base {base.path} "
            f"(fingerprint {base.fingerprint[:12]}), which cannot be opened: {error}. Put it back there, or write "
            f"where it is now as base.path in {directory / store.CONFIG_FILE}"
        ) from error


def model_fingerprint(source: ModelSource) -> str:
    """SHA-256 over a model's description and weights as they are on the disk, and the fingerprint of its base."""
    description: list[Any] = [_not_default(record) for record in (source.config, source.adapter) if record is not None]
    if source.description.base is not None:
        description.append(source.description.base.fingerprint)
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    folders = [source.directory / name for name in (store.PARAMS_FOLDER, store.ADAPTER_FOLDER)]
    files = [path for folder in folders for path in folder.rglob("*")] if not source.foreign else source.foreign.files
    for path in sorted(path for path in files if path.is_file()):
        stat = path.stat()
        digest.update(path.name.encode() + _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


@functools.cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> bytes:
    """SHA-256 of a file: once in a process, while size and time stay as they are."""
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _not_default(record: Any) -> dict[str, Any]:
    """The fields of a description that say something: one that is added later, at its default, changes nothing."""
    values = dataclasses.asdict(record)
    return {f.name: values[f.name] for f in dataclasses.fields(record) if getattr(record, f.name) != f.default}


def check_base(source: ModelSource) -> None:
    """Compares the base of a model, and the base of that, with what they were; reads the whole of them.

    Raises:
      UserError: a base has changed.
    """
    if source.base is None or source.description.base is None:
        return
    expected, found = source.description.base.fingerprint, model_fingerprint(source.base)
    if found != expected:
        raise UserError(
            f"{source.path} holds only what was trained on its base {source.base.path}, whose weights are not those "
            f"any more: fingerprint {expected[:12]} expected, {found[:12]} found. Put the files back that it was "
            "trained on (or copies; a new import is another model), or write where such a copy is as base.path in the "
            f"run's {store.CONFIG_FILE}"
        )
    check_base(source.base)


def split_step(path: Path | str) -> tuple[Path, str]:
    """``RUN@latest`` as the run directory and ``"latest"``; the second is empty where no step is named."""
    run, at, wanted = str(path).rpartition("@")
    if not at or Path(path).exists():
        return Path(path), ""
    return Path(run), wanted


def load_params(source: ModelSource, shapes: Any, mesh: Mesh) -> Any:
    """The parameters of a model, placed on the mesh, in the types of ``shapes`` (`store.build`).

    Raises:
      UserError: the weights are damaged or of other shapes, or a base has changed.
    """
    if source.directory.parent.name == CHECKPOINTS_FOLDER:
        check_step(source.directory)
    if source.foreign:
        # All of it in memory, twice while blocks are stacked: a large model is imported first, and read from there.
        tensors = {name: tensor.read() for name, tensor in source.foreign.tensors.items()}
        ours = tree_to_ours(tensors, source.foreign.layout, source.config)

        typed = jax.tree.map(lambda leaf, values: np.asarray(values, leaf.dtype), shapes, ours)
        return place(typed, parameter_shardings(shapes, mesh))
    try:
        if source.base is None:
            params = store.read_params(source.directory, shapes, mesh)
        else:
            check_base(source)
            params = load_backbone(source.base, source.config, shapes["tok_embeddings"]["embedding"].dtype, mesh)
            if holds_params(source):
                like = flatten_dict(shapes, sep=".")
                own = {name: like[name] for name in store.open_arrays(source.directory) if name in like}
                read = store.read_params(source.directory, unflatten_dict(own, sep="."), mesh)
                params = unflatten_dict(flatten_dict(params, sep=".") | flatten_dict(read, sep="."), sep=".")
        if source.adapter is None:
            return params
        adapter = store.read_adapter(source.directory, mesh)
        work_in = functools.partial(merge, config=source.adapter)
        return jax.jit(work_in, donate_argnums=0, out_shardings=parameter_shardings(shapes, mesh))(params, adapter)
    except ValueError as error:
        raise UserError(str(error)) from error


def holds_params(source: ModelSource) -> bool:
    """Whether a model has parameters of its own: all of them, or those that were trained on its base."""
    return source.base is None or (source.directory / store.PARAMS_FOLDER).exists()


def load_backbone(base: ModelSource, config: ModelConfig, param_dtype: DTypeLike, mesh: Mesh) -> Any:
    """The parameters of a model, as one of the architecture ``config`` holds them that was made from it.

    Their type is ``param_dtype`` (a value head's float32). They are the same, but for a critic on a
    next-token model: that one's only head is the last block of its trunk. A value head that ``config`` has and
    ``base`` has not is not there.

    Raises:
      UserError: as `load_params`.
    """
    _, shapes = store.build(base.config, param_dtype=param_dtype)
    params = load_params(base, shapes, mesh)
    if not joins_trunk(base, config):
        return params
    trunk = params["heads"]
    if "trunk" in params:

        def join(trunk: Any, heads: Any) -> Any:
            return jax.tree.map(lambda *blocks: jnp.concatenate(blocks), trunk, heads)

        placement = parameter_shardings({"trunk": params["trunk"]}, mesh)["trunk"]
        trunk = jax.jit(join, out_shardings=placement)(params["trunk"], params["heads"])
    return {**{name: part for name, part in params.items() if name not in ("heads", "output")}, "trunk": trunk}


def joins_trunk(base: ModelSource, config: ModelConfig) -> bool:
    """Whether the head of ``base`` is the last block of the trunk of a model of ``config`` made from it."""
    return config.n_future_tokens == 0 and base.config.n_future_tokens == 1


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
        return steps[-1] if best is None else best
    if wanted == "latest":
        return steps[-1]
    if wanted.isdigit() and int(wanted) in steps:
        return int(wanted)
    raise UserError(f"{run_directory}@{wanted}: no such step; saved are {', '.join(map(str, steps))} (or @latest)")
