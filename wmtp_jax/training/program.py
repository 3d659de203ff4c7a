"""The functions a run compiles, and where what they work on lies: the loop runs them, ``plan`` compiles them alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from wmtp_jax.config import Settings
from wmtp_jax.data.pack import Rows
from wmtp_jax.errors import UserError
from wmtp_jax.models import store
from wmtp_jax.models.attention import choose_kernel
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.parallel.sharding import batch_sharding, parameter_shardings, placed
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.optimizer import learning_rate_schedule, make_optimizer
from wmtp_jax.training.scoring import make_scorer
from wmtp_jax.training.spikes import SpikeGuard, spike_guard
from wmtp_jax.training.stages import Stage
from wmtp_jax.training.step import Trains, TrainState, init_state, make_train_step, split_params
from wmtp_jax.training.validation import make_eval_step
from wmtp_jax.weighting.td import initial_whitening

_HOST = "pinned_host"  # the kind of memory that ``training.offload_optimizer`` keeps the moments in


@dataclass(frozen=True)
class Program:
    """What a run compiles for a mesh. Its functions are traced with the mesh in context.

    Attributes:
      stage, settings, config, objective: of the run.
      total_steps: what schedules span.
      rows_per_step: rows of one update, all devices and micro-batches together.
      shardings: where the state lies between updates.
      state: its shapes, types and places.
      mesh: where it runs.
      frozen: architecture of the model that scores every batch; None without one.
    """

    stage: Stage
    settings: Settings
    config: ModelConfig
    objective: Objective
    total_steps: int
    rows_per_step: int
    shardings: TrainState
    state: TrainState
    graphdef: nnx.GraphDef[MTPTransformer]
    optimizer: optax.GradientTransformation
    mesh: Mesh
    frozen: ModelConfig | None

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of training rows (A, B, S): micro-batches come first, the devices share B."""
        return batch_sharding(self.mesh, batch_axis=1)

    @property
    def eval_sharding(self) -> NamedSharding:
        """Of validation rows (B, S)."""
        return batch_sharding(self.mesh)

    @property
    def eval_rows(self) -> int:
        """Rows that are validated at once."""
        return self.settings.training.batch_size * self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def init(self, params: Any) -> TrainState:
        """The state before the first update."""
        return init_state(params, self.optimizer, self.objective.trains, spike_guard(self.settings.training))

    def trace_step(self) -> Any:
        """The update, ``(state, rows) -> (state, metrics)``, which takes over the memory of the state."""
        # Every placement is pinned: an unpinned step compiles twice, and may replicate.
        rows = self._train_rows()
        step = make_train_step(
            self.graphdef, self.optimizer, learning_rate_schedule(self.settings.training, self.total_steps),
            self.objective, self._offload(), spike_guard(self.settings.training),
        )  # fmt: skip
        jitted = jax.jit(
            step,
            in_shardings=(self.shardings, rows.map(lambda _: self.batch_sharding)),
            out_shardings=(self.shardings, self._replicated),
            donate_argnums=0,
        )
        return jitted.trace(self.state, rows)

    def trace_eval(self) -> Any:
        """Validation of one batch, see `make_eval_step`."""
        rows = _row_shapes((self.eval_rows, self.settings.dataset.max_length), outcomes=self.stage.trains == "values")
        params = self.state.params
        return jax.jit(
            make_eval_step(self.graphdef, self.objective),
            in_shardings=(self.shardings.params, rows.map(lambda _: self.eval_sharding)),
            out_shardings=(self._replicated, self._replicated),
        ).trace(params, rows)

    def frozen_shapes(self) -> Any:
        """Shapes and places of the frozen model's parameters."""
        assert self.frozen is not None
        _, shapes = store.build(self.frozen, param_dtype=self.settings.model.param_dtype)
        return placed(shapes, parameter_shardings(shapes, self.mesh))

    def trace_score(self) -> Any:
        """The frozen model's scores of a batch, ``(params, tokens, segment_ids) -> scores``."""
        assert self.frozen is not None
        assert self.stage.scorer is not None
        options = model_options(self.settings, self.frozen, self.mesh) | {"remat": "none"}
        graphdef, _ = store.build(self.frozen, **options)
        rows = self._train_rows()
        rows = placed(rows, rows.map(lambda _: self.batch_sharding))
        scorer = jax.jit(make_scorer(graphdef, self.stage.scorer), out_shardings=self.batch_sharding)
        return scorer.trace(self.frozen_shapes(), rows.tokens, rows.segment_ids)

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def _train_rows(self) -> Rows:
        accumulation = self.settings.training.gradient_accumulation_steps
        return _row_shapes(
            (accumulation, self.rows_per_step // accumulation, self.settings.dataset.max_length),
            outcomes=self.objective.needs_outcomes,
            scores=self.objective.needs_scores,
        )

    def _offload(self) -> tuple[Any, Any] | None:
        """Where the optimizer's state is while it is worked on, and between; None where it stays."""
        if not self.settings.training.offload_optimizer:
            return None
        far = self.shardings.opt_state
        return jax.tree.map(lambda place: place.with_memory_kind("device"), far), far


def make_program(
    stage: Stage,
    settings: Settings,
    config: ModelConfig,
    objective: Objective,
    mesh: Mesh,
    *,
    total_steps: int,
    rows_per_step: int,
    frozen: ModelConfig | None = None,
) -> Program:
    """The functions of a run; see `Program`.

    Raises:
      UserError: a setting does not fit the mesh's devices.
    """
    graphdef, shapes = store.build(config, **model_options(settings, config, mesh))
    shapes = objective.trained_form(shapes)
    rate = learning_rate_schedule(settings.training, total_steps)
    optimizer = make_optimizer(settings.training, rate, settings.critic.head_learning_rate)
    _check_offload(settings, mesh)
    guard = spike_guard(settings.training)
    shardings = state_shardings(
        shapes, optimizer, mesh, objective.trains, guard, host=settings.training.offload_optimizer
    )
    state = jax.eval_shape(partial(init_state, optimizer=optimizer, trains=objective.trains, guard=guard), shapes)
    return Program(
        stage=stage,
        settings=settings,
        config=config,
        objective=objective,
        total_steps=total_steps,
        rows_per_step=rows_per_step,
        shardings=shardings,
        state=placed(state, shardings),
        graphdef=graphdef,
        optimizer=optimizer,
        mesh=mesh,
        frozen=frozen,
    )


def model_options(settings: Settings, config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Options of `MTPTransformer` that the settings ask for on these devices.

    Raises:
      UserError: the attention kernel does not run there.
    """
    model, dataset = settings.model, settings.dataset
    return {
        "dtype": model.compute_dtype,
        "param_dtype": model.param_dtype,
        "remat": settings.training.remat,
        "unroll": settings.training.unroll_layers,
        **attention_options(
            config,
            mesh,
            dtype=model.compute_dtype,
            length=dataset.max_length,
            packed=dataset.packing,
            wanted=model.attention,
        ),
    }


def attention_options(
    config: ModelConfig, mesh: Mesh, *, dtype: str, length: int, packed: bool, wanted: str = "auto"
) -> dict[str, Any]:
    """Options of `MTPTransformer` about attention, for rows of ``length`` tokens on these devices.

    Raises:
      UserError: the kernel that is ``wanted`` does not run there.
    """
    try:
        kernel = choose_kernel(
            wanted,
            mesh.devices.flat[0].platform,
            dtype=jnp.dtype(dtype),
            head_width=config.head_width,
            length=length,
            one_document=not packed,
        )
    except ValueError as error:
        raise UserError(f"model.attention: {error}; `auto` takes one that does") from error
    return {"attention": kernel, "packed": packed}


def _check_offload(settings: Settings, mesh: Mesh) -> None:
    device = mesh.devices.flat[0]
    if settings.training.offload_optimizer and _HOST not in (m.kind for m in device.addressable_memories()):
        raise UserError(
            f"training.offload_optimizer: {device.platform} devices have no {_HOST} memory here; set it to false"
        )


def state_shardings(
    shapes: Any,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    trains: Trains,
    guard: SpikeGuard | None = None,
    *,
    host: bool = False,
) -> TrainState:
    """Placement of the state: the optimizer's moments lie where their parameters lie, or in the host's memory."""
    replicated = NamedSharding(mesh, P())
    trained, _ = split_params(shapes, trains)
    places = parameter_shardings(trained, mesh)
    if host:
        places = jax.tree.map(lambda place: place.with_memory_kind(_HOST), places)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(optimizer.init, trained),
        places,
        transform_non_params=lambda _: replicated,
    )
    whitening = jax.tree.map(lambda _: replicated, initial_whitening())
    spikes = jax.tree.map(lambda _: replicated, guard.initial()) if guard else None
    params = parameter_shardings(shapes, mesh)
    return TrainState(replicated, params, opt_state, whitening, replicated, replicated, spikes)


def _row_shapes(shape: tuple[int, ...], *, outcomes: bool = False, scores: bool = False) -> Rows:
    integers, floats = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
    return Rows(
        integers,
        integers,
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        floats if outcomes else None,
        floats if scores else None,
    )
