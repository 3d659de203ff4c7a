"""The weights a run starts from: random, or loaded and fitted to what the stage trains."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from wmtp_jax.errors import UserError
from wmtp_jax.load import load_backbone, model_fingerprint
from wmtp_jax.models import store
from wmtp_jax.models.lora import ADAPTER
from wmtp_jax.models.value import ValueHead, with_bias
from wmtp_jax.parallel.sharding import parameter_name, parameter_shardings, place
from wmtp_jax.stored import stored_arrays
from wmtp_jax.training.run import Run


def initial_params(run: Run, mesh: Mesh) -> Any:
    """Parameters of ``run.config`` on the mesh, the adapter beside them.

    Raises:
      UserError: weights are damaged or of other shapes.
    """
    model, seed = run.settings.model, run.settings.runtime.seed
    shapes = run.objective.trained_form(store.build(run.config, param_dtype=model.param_dtype)[1])
    if run.source is None:
        params = store.random_params(run.config, seed, model.param_dtype, mesh)
        fresh_head = run.config.value_head is not None
    else:
        params = load_backbone(run.source, run.config, model.param_dtype, mesh)
        fresh_head = run.config.value_head is not None and run.source.config.value_head is None
        if fresh_head:
            assert run.config.value_head is not None
            head = ValueHead(run.config.value_head, run.config.dim, rngs=nnx.Rngs(seed))
            params = {**params, "value_head": nnx.to_pure_dict(nnx.state(head, nnx.Param))}
    joint = run.objective.value_loss is not None and run.scorer is not None
    if joint:
        params = {**params, "value_head": _read_value_head(run, params["value_head"])}
    elif fresh_head:
        params = with_bias(params, run.settings.critic.bias_init)
    if run.objective.lora is not None:
        params = {**params, ADAPTER: run.objective.fresh_adapter(params)}
    params = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, shapes)
    return place(params, parameter_shardings(params, mesh))


def find_base(run: Run, *, resumed: bool) -> store.Base | None:
    """The model that a run names as its base, because its checkpoints hold only what is trained.

    None where all of the model is trained, where it began as random weights, or where the run that is resumed has
    saved it whole, as earlier versions did.

    Raises:
      UserError: the run was begun on another base than ``model.path``.
    """
    recorded = None
    if resumed:
        try:
            recorded = store.read_description(run.directory).base
        except ValueError as error:
            raise UserError(f"{error}; restore it, or start another run (checkpoint.save_dir)") from error
        if recorded is None:
            return None
    if run.source is None or run.objective.part == "full":
        if recorded is not None:
            raise UserError(
                f"{run.directory} was trained on {run.directory / recorded.path}; give that as model.path to continue"
            )
        return None
    base = store.Base(_seen_from(run.directory, run.source.path), model_fingerprint(run.source))
    if recorded is not None and recorded.fingerprint != base.fingerprint:
        raise UserError(
            f"model.path: {run.source.path} has not the weights that {run.directory} was trained on, which were "
            f"{run.directory / recorded.path}: fingerprint {recorded.fingerprint[:12]} expected, "
            f"{base.fingerprint[:12]} found. Name that model, or a copy of its files, as model.path to continue"
        )
    return base


def _seen_from(directory: Path, path: str) -> str:
    """A path for a file in ``directory``: a relative one still holds when the folder that both lie in is moved."""
    return path if Path(path).is_absolute() else os.path.relpath(Path(path).resolve(), directory.resolve())


def _read_value_head(run: Run, like: Any) -> Any:
    """The critic's value head, the rest of its weights left on the disk."""
    assert run.scorer is not None
    arrays = stored_arrays(run.scorer)

    def read(path: tuple[Any, ...], _: jax.Array) -> jax.Array:
        return jnp.asarray(arrays[f"value_head.{parameter_name(path)}"].read(None), jnp.float32)

    return jax.tree_util.tree_map_with_path(read, like)
