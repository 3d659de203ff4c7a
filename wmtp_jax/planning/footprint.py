"""What a training step takes of a card, read off the program compiled for it: memory, traffic, operations, time."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from typing import Any

import jax
import numpy as np

from wmtp_jax.config import Settings
from wmtp_jax.console import err
from wmtp_jax.errors import UserError
from wmtp_jax.load import find_model, split_step
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import TENSOR_AXIS
from wmtp_jax.planning.cards import Card, compile_only_mesh
from wmtp_jax.planning.compiled import collectives, kernel_calls
from wmtp_jax.settings_file import load_settings, production_preset
from wmtp_jax.training.inputs import scorer_path
from wmtp_jax.training.objective import make_objective
from wmtp_jax.training.program import Program, make_program
from wmtp_jax.training.run import Schedule, check_mesh, describe_model, plan_schedule, resolve_mesh
from wmtp_jax.training.stages import Stage
from wmtp_jax.training.step import split_params
from wmtp_jax.training.throughput import forward_flops, update_flops

RESERVE = 0.1  # of a card's memory: what NCCL, cuDNN and fragmentation take is not in a program's figures


def read_footprint(
    stage: Stage,
    settings: Settings,
    card: Card,
    n_devices: int,
    *,
    efficiency: float,
    price: float | None,
    estimate: bool,
) -> dict[str, Any]:
    """Compiles the training step of a stage and reads its figures, bytes of one device.

    Args:
      stage, settings: what is trained, and how.
      card, n_devices: on what.
      efficiency: share of the card's peak that the time is reckoned with.
      price: of one card for an hour.
      estimate: compile for this process's CPU devices instead, whose temporaries are only a rough guide.

    Raises:
      UserError: settings that fit neither each other nor the devices.
    """
    config = describe_model(stage, settings)
    shape = resolve_mesh(settings, n_devices)
    check_mesh(settings, config, "model", n_devices)
    schedule = plan_schedule(settings, settings.data_sampling.n_samples, exact=False, n_devices=n_devices)
    try:
        mesh = make_mesh(shape, n_devices) if estimate else compile_only_mesh(card, shape)
    except ValueError as error:
        raise UserError(f"--devices: {error}") from error
    # Compiled as if the moments stayed on the card: a mesh without devices knows no memory of the host.
    training = settings.training.model_copy(update={"offload_optimizer": False})
    on_card = settings.model_copy(update={"training": training})
    program = _program(stage, on_card, config, schedule, mesh)
    with jax.set_mesh(mesh):
        compiled = _compile(program.trace_step(), estimate)
        scorer = _compile(program.trace_score(), estimate) if program.frozen else None
    memory = compiled.memory_analysis()
    state = program.state
    trained, _ = split_params(state.params, program.objective.trains)
    bytes_of = {
        "parameters": _bytes_per_device(state.params),
        "gradients": _bytes_per_device(trained, np.float32),  # the sum over micro-batches
        "optimizer": _bytes_per_device(state.opt_state),
        "frozen": _bytes_per_device(program.frozen_shapes()) if program.frozen else 0,
    }
    peaks = [_peak(memory) + bytes_of["frozen"]]
    resident = memory.argument_size_in_bytes
    if settings.training.offload_optimizer:
        # Away while the gradient is made; there, whole, while it is applied.
        away = bytes_of["optimizer"]
        peaks = [peaks[0] - away, resident + 2 * bytes_of["gradients"] + bytes_of["frozen"]]
        resident -= away
        bytes_of["optimizer"] = 0
    if scorer:  # the state lies there while the frozen model, which is among its arguments, scores
        peaks.append(resident + _peak(scorer.memory_analysis()))
    peak = max(peaks)
    text = compiled.as_text()
    traffic = collectives(text, *([scorer.as_text()] if scorer else []))
    flops = _flops(program, schedule)
    seconds = max(  # they overlap
        flops["executed"] / schedule.devices / (card.flops * efficiency),
        sum(c.sent for c in traffic) / (card.link * efficiency),
    )
    hours = schedule.last_step * seconds / 3600 if schedule.last_step else None
    return {
        "stage": stage.name,
        "name": settings.experiment.name,
        "device": card.name,
        "devices": schedule.devices,
        "mesh": dict(zip(mesh.axis_names, shape, strict=True)),
        "compiled_for": "cpu (estimate)" if estimate else card.name,
        "jax": jax.__version__,
        "remat": settings.training.remat,
        "offload_optimizer": settings.training.offload_optimizer,
        "rows_per_step": schedule.rows_per_step,
        "batch_size": settings.training.batch_size,
        "parameters_bytes": bytes_of["parameters"],
        "gradients_bytes": bytes_of["gradients"],
        "optimizer_bytes": _bytes_per_device(state.opt_state),
        "scorer_bytes": bytes_of["frozen"],
        "activations_bytes": max(peak - sum(bytes_of.values()), 0),
        "peak_bytes_per_device": peak,
        "capacity_bytes": card.capacity,
        "reserve_fraction": RESERVE,
        "fits": peak <= (1 - RESERVE) * card.capacity,
        "spare_fraction": 1 - peak / card.capacity,
        "flops_per_step": flops["executed"],
        "model_flops_per_step": flops["model"],
        "collectives": [c._asdict() for c in traffic],
        "collective_bytes": sum(c.bytes for c in traffic),
        "kernels": dict(kernel_calls(text)),
        "holds_attention_scores": _holds_scores(text, program),
        "assumed_efficiency": efficiency,
        "step_seconds": seconds,
        "tokens_per_second": schedule.tokens_per_step / seconds,
        "steps": schedule.last_step,
        "hours": hours,
        "cost": None if price is None or hours is None else hours * price * schedule.devices,
    }


def _program(stage: Stage, settings: Settings, config: ModelConfig, schedule: Schedule, mesh: Any) -> Program:
    total_steps = schedule.total_steps or 1000
    n_documents = max(settings.dataset.max_length // 64, 1) if settings.dataset.packing else 1
    objective = make_objective(
        stage, settings, config.n_future_tokens, total_steps=total_steps, n_documents=n_documents
    )
    scores_batches = objective.needs_scores and settings.weighting.scores is None
    return make_program(
        stage,
        settings,
        config,
        objective,
        mesh,
        total_steps=total_steps,
        rows_per_step=schedule.rows_per_step,
        frozen=_frozen(stage, settings, config, schedule.devices) if scores_batches else None,
    )


def _frozen(stage: Stage, settings: Settings, config: ModelConfig, n_devices: int) -> ModelConfig:
    """The architecture of the model that scores every batch: its own, or what is meant where it is not at hand."""
    path, setting = scorer_path(stage, settings)
    assert path is not None
    if split_step(path)[0].exists():
        return _checked(find_model(path).config, settings, setting, n_devices)
    if stage.scorer == "critic":
        assumed, kind = dataclasses.replace(config, value_head=settings.critic.value_head), "the policy's"
    else:
        reference = load_settings(production_preset("reference"), []).model.architecture
        assumed, kind = config, "the policy's"
        if reference is not None and reference.vocab_size == config.vocab_size:
            assumed, kind = reference, "the reference preset's"
    err.print(f"{setting}: {path} is not at hand; taken to be of {kind} size", highlight=False, soft_wrap=True)
    return _checked(assumed, settings, setting, n_devices)


def _checked(config: ModelConfig, settings: Settings, setting: str, n_devices: int) -> ModelConfig:
    check_mesh(settings, config, setting, n_devices)
    return config


def _compile(traced: Any, estimate: bool) -> Any:
    lowered = traced.lower() if estimate else traced.lower(lowering_platforms=("cuda",))
    try:
        return lowered.compile()
    except Exception as error:  # XLA raises one kind for all; a missing library is the one a user can mend
        if "cudnn" in str(error).lower() and not _cudnn_is_there():
            raise UserError(
                "cuDNN is missing, which this program's attention is made of: pip install '.[plan]', or plan with "
                "--override model.attention=pallas"
            ) from error
        raise


def _cudnn_is_there() -> bool:
    packages = importlib.util.find_spec("nvidia")
    return packages is not None and importlib.util.find_spec("nvidia.cudnn") is not None


def _peak(memory: Any) -> int:
    """Bytes a program needs: what it is given, what it makes on the way and gives, what is shared counted once."""
    return int(
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _holds_scores(text: str, program: Program) -> bool:
    """Whether the program has an array of attention scores: (S, S) for each row and attention head of a device."""
    length, mesh = program.settings.dataset.max_length, program.mesh.shape
    scores = program.settings.training.batch_size * program.config.n_heads // mesh[TENSOR_AXIS]
    shapes = re.findall(rf"\b(?:bf16|f16|f32)\[((?:\d+,)+){length},{length}\]", text)
    return any(math.prod(int(size) for size in leading.split(",") if size) == scores for leading in shapes)


def _bytes_per_device(tree: Any, dtype: Any = None) -> int:
    """Of the largest share that a device has of each array, in its own type or in ``dtype``."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(dtype or leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _flops(program: Program, schedule: Schedule) -> dict[str, float]:
    """Operations of a step over full rows, all devices together: what the update needs, and what is executed."""
    objective, training = program.objective, program.settings.training
    lengths = np.full(schedule.rows_per_step, program.settings.dataset.max_length)
    forward = forward_flops(program.config, lengths, objective.n_heads)
    model = update_flops(forward, backward=objective.part != "head", frozen=objective.frozen)
    executed = model + forward["logits"]  # never kept, made again in the backward pass
    if objective.part != "head" and training.remat != "none":
        executed += forward["heads"] + forward["head attention"]
        if training.remat in ("full", "attention"):
            executed += forward["trunk"]
        if training.remat == "full":
            executed += forward["trunk attention"]
    if objective.weighs_first(training.gradient_accumulation_steps):
        executed += sum(forward.values())
    if program.frozen is not None:
        n_heads = 1 if program.stage.scorer == "reference" else 0
        executed += sum(forward_flops(program.frozen, lengths, n_heads).values())
    return {"model": model, "executed": executed}
