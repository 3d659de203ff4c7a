"""The weights a run starts from: random, or loaded and fitted to what the stage trains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from wmtp_jax.load import load_params, stored_arrays
from wmtp_jax.models import store
from wmtp_jax.models.lora import ADAPTER, init_adapter
from wmtp_jax.models.value import ValueHead, with_bias
from wmtp_jax.parallel.sharding import parameter_shardings, place
from wmtp_jax.training.run import Run


def initial_params(run: Run, mesh: Mesh) -> Any:
    """Parameters of ``run.config`` on the mesh.

    Raises:
      UserError: weights are damaged or of other shapes.
    """
    model, seed = run.settings.model, run.settings.runtime.seed
    if run.source is None:
        params = store.random_params(run.config, seed, model.param_dtype, mesh)
        fresh_head = run.config.value_head is not None
    else:
        _, shapes = store.build(run.source.config, param_dtype=model.param_dtype)
        params = load_params(run.source, shapes, mesh)
        fresh_head = run.config.value_head is not None and run.source.config.value_head is None
        if run.config.n_future_tokens == 0 and run.source.config.n_future_tokens == 1:
            params = _as_backbone(params, mesh)
        if fresh_head:
            assert run.config.value_head is not None
            head = ValueHead(run.config.value_head, run.config.dim, rngs=nnx.Rngs(seed), param_dtype=model.param_dtype)
            params = {**params, "value_head": nnx.to_pure_dict(nnx.state(head, nnx.Param))}
    joint = run.objective.value_loss is not None and run.scorer is not None
    if joint:
        assert run.scorer is not None
        params = {**params, "value_head": _read_value_head(run, params["value_head"])}
    elif fresh_head:
        params = with_bias(params, run.settings.critic.bias_init)
    if run.objective.lora is not None:
        params = {**params, ADAPTER: fresh_adapter(run, params)}
    return place(params, parameter_shardings(params, mesh))


def fresh_adapter(run: Run, params: Any) -> Any:
    """Adapters that change nothing yet, on the blocks that the values depend on."""
    assert run.objective.lora is not None
    blocks = {name: part for name, part in params.items() if name == "trunk"}
    return init_adapter(blocks, run.objective.lora, run.settings.runtime.seed)


def _as_backbone(params: Any, mesh: Mesh) -> Any:
    """A next-token model as a value model's backbone: its one head is the last block of the trunk."""
    trunk = params["heads"]
    if "trunk" in params:

        def join(trunk: Any, heads: Any) -> Any:
            return jax.tree.map(lambda *blocks: jnp.concatenate(blocks), trunk, heads)

        placement = parameter_shardings({"trunk": params["trunk"]}, mesh)["trunk"]
        trunk = jax.jit(join, out_shardings=placement)(params["trunk"], params["heads"])
    return {**{name: part for name, part in params.items() if name not in ("heads", "output")}, "trunk": trunk}


def _read_value_head(run: Run, like: Any) -> Any:
    """The critic's value head, the rest of its weights left on the disk."""
    assert run.scorer is not None
    arrays = stored_arrays(run.scorer)

    def read(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = ".".join(["value_head", *(key.key for key in path)])
        return jnp.asarray(np.asarray(arrays[name].read().result()), leaf.dtype)

    return jax.tree_util.tree_map_with_path(read, like)
