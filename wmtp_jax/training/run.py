"""From settings to everything a run needs: model, tokenizer, which examples stand in which rows, steps.

All input is checked here, before anything is written.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from wmtp_jax.config import Settings, read_environment
from wmtp_jax.data.batches import RowSource, count_steps
from wmtp_jax.data.curriculum import curriculum_order
from wmtp_jax.data.sample import assign_bins
from wmtp_jax.data.sample_report import SampleReport
from wmtp_jax.data.store import data_fingerprint, open_split
from wmtp_jax.data.tokenize import load_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource, model_fingerprint, split_step
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import check_shapes, resolve_shape
from wmtp_jax.training.inputs import (
    check_tokens,
    draw_examples,
    find_architecture,
    find_scorer,
    find_tokenizer,
    open_scores,
    scorer_path,
)
from wmtp_jax.training.objective import Objective, make_objective
from wmtp_jax.training.stages import Stage


@dataclass(frozen=True)
class Schedule:
    """Sizes of a run.

    Attributes:
      devices: devices of the mesh.
      rows_per_step: rows of one update, all devices and micro-batches together.
      tokens_per_step: its tokens, padding included.
      rows: rows in one epoch; None if the data set is not at hand and n_samples not set.
      exact: False if `rows` is an upper bound (one sample a row), because the data set is not at hand.
      steps_per_epoch: updates in one epoch, a fraction.
      total_steps: updates in n_epochs; what the learning-rate schedule spans.
      last_step: where training ends: total_steps, or max_steps if that is less.
      save_steps: updates after which the run validates and saves, ascending; the last one is last_step.
    """

    devices: int
    rows_per_step: int
    tokens_per_step: int
    rows: int | None
    exact: bool
    steps_per_epoch: float | None = None
    total_steps: int | None = None
    last_step: int | None = None
    save_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Run:
    """Everything `wmtp_jax.training.loop.fit` needs; nothing has been written yet.

    Attributes:
      stage, settings: what was asked for.
      directory: the run directory.
      config: architecture of the model that is trained.
      source: where its weights come from; None: random ones.
      tokenizer: folder of the model's.
      samples: what was drawn of each split, by its name.
      train, validation: rows of tokens, read when they are needed.
      order: the units of ``train`` (`RowSource.rows_per_unit` rows) in the order of a curriculum; None: a random one.
      schedule, objective: sizes of the run, and what an update minimises.
      scorer: the critic or the reference, where the stage has one.
      fingerprint, tokenizer_fingerprint: of the data set, and of the tokenizer that made its tokens.
      scorer_fingerprint: of the frozen model whose scores are used.
    """

    stage: Stage
    settings: Settings
    directory: Path
    config: ModelConfig
    source: ModelSource | None
    tokenizer: Path
    samples: dict[str, SampleReport]
    train: RowSource
    validation: RowSource
    order: np.ndarray | None
    schedule: Schedule
    objective: Objective
    scorer: ModelSource | None
    fingerprint: str
    tokenizer_fingerprint: str
    scorer_fingerprint: str | None


def run_directory(stage: Stage, settings: Settings) -> Path:
    """``checkpoint.save_dir``, or ``storage/checkpoints/<stage>/<experiment.name>``."""
    default = Path("storage/checkpoints") / stage.name / settings.experiment.name
    return settings.checkpoint.save_dir or default


def resolve_mesh(settings: Settings, n_devices: int | None = None) -> tuple[int, int, int]:
    """Sizes of the mesh on ``n_devices`` (None: those at hand). Raises UserError where they do not fit."""
    try:
        return resolve_shape(settings.runtime.mesh.shape, n_devices or jax.device_count())
    except ValueError as error:
        raise UserError(str(error)) from error


def planned_mesh(settings: Settings, n_devices: int | None = None) -> tuple[int, int, int]:
    """Sizes of the mesh; if all are given, they can be planned on a machine with other devices."""
    mesh = settings.runtime.mesh.shape
    return resolve_mesh(settings, n_devices) if -1 in mesh or n_devices else mesh


def check_mesh(settings: Settings, config: ModelConfig, what: str, n_devices: int | None = None) -> None:
    """Raises UserError where the mesh does not divide the shapes of a model (``what``: the one of which setting)."""
    try:
        check_shapes(planned_mesh(settings, n_devices), config)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from error


def plan_schedule(settings: Settings, rows: int | None, exact: bool, n_devices: int | None = None) -> Schedule:
    """Sizes of a run with ``rows`` rows an epoch, on ``n_devices`` (None: those at hand).

    Raises:
      UserError: the mesh does not fit the devices, or the rows do not fill a step.
    """
    training, checkpoint, mesh = settings.training, settings.checkpoint, planned_mesh(settings, n_devices)
    rows_per_step = training.batch_size * training.gradient_accumulation_steps * mesh[0] * mesh[1]
    schedule = Schedule(
        devices=math.prod(mesh),
        rows_per_step=rows_per_step,
        tokens_per_step=rows_per_step * settings.dataset.max_length,
        rows=rows,
        exact=exact,
    )
    if rows is None:
        return schedule
    per_epoch = rows / rows_per_step
    total = count_steps(rows, training.n_epochs, rows_per_step)
    last = min(total, training.max_steps or total)
    every = checkpoint.save_every_steps or (checkpoint.save_checkpoint_every or 0) * per_epoch
    every = max(every, 1.0) if every else 0.0  # more often than every update is every update
    saves = {round(every * k) for k in range(1, int(last / every) + 1)} if every else set()
    saves = {step for step in saves if 0 < step < last} | {last}
    return dataclasses.replace(
        schedule, steps_per_epoch=per_epoch, total_steps=total, last_step=last, save_steps=tuple(sorted(saves))
    )


def build_run(stage: Stage, settings: Settings) -> Run:
    """Reads and checks everything a run needs.

    Raises:
      UserError: anything is missing or does not fit; nothing has been written then.
    """
    config, source = find_architecture(stage, settings)
    check_mesh(settings, config, "model")
    scorer_path(stage, settings)  # settings that contradict each other are named before anything long
    sampling, dataset = settings.data_sampling, settings.dataset
    splits = {name: open_split(dataset.path, name) for name in ("train", "valid")}
    tokens_of = find_tokenizer(settings, source)
    tokenizer = load_tokenizer(tokens_of)
    tokenizer_fingerprint = check_tokens(dataset.path, tokenizer, tokens_of, config.vocab_size, splits)
    read_environment()  # a broken .env is found now, not after the model is loaded
    scorer = find_scorer(stage, settings, config, source, tokenizer)
    if scorer:
        check_mesh(settings, scorer.config, scorer_path(stage, settings)[1])
    # Which fields the rows need does not depend on the sizes of the run.
    needs = make_objective(stage, settings, config.n_future_tokens, total_steps=1, n_documents=1)
    sets, samples = {}, {}
    for name, setting in (("train", "n_samples"), ("valid", "n_validation_samples")):
        split = splits[name]
        chosen, samples[name] = draw_examples(stage, settings, split, f"data_sampling.{setting}")
        bins = None
        if name == "train" and sampling.curriculum is not None:
            bins = assign_bins(split.difficulty[chosen].reshape(len(chosen), -1)[:, 0], sampling.curriculum.bins)
        sets[name] = RowSource(
            split,
            chosen,
            dataset.max_length,
            packing=dataset.packing,
            seed=sampling.seed,
            outcomes=needs.needs_outcomes if name == "train" else stage.trains == "values",
            bins=bins,
        )
    train, validation = sets["train"], sets["valid"]
    if train.rows_per_unit > 1 and settings.training.batch_size % train.rows_per_unit:
        raise UserError(
            f"training.batch_size is {settings.training.batch_size}; it must be even, because a pair takes two rows"
        )
    schedule = plan_schedule(settings, len(train), exact=True)
    assert schedule.total_steps is not None
    # Last, because it may read a large model from the disk.
    fingerprint = data_fingerprint(dataset.path)
    scorer_fingerprint = model_fingerprint(scorer) if needs.needs_scores and scorer else None
    score_file = open_scores(stage, settings, tokenizer_fingerprint, fingerprint, scorer_fingerprint)
    if score_file is not None:
        score_file.check_solutions("train", train.chosen, splits["train"].lengths[train.chosen])
        train.scores = partial(score_file.of, "train")
    return Run(
        stage=stage,
        settings=settings,
        directory=run_directory(stage, settings),
        config=config,
        source=source,
        tokenizer=tokens_of,
        samples=samples,
        train=train,
        validation=validation,
        order=_curriculum(settings, train, schedule),
        schedule=schedule,
        objective=make_objective(
            stage,
            settings,
            config.n_future_tokens,
            total_steps=schedule.total_steps,
            n_documents=max(train.documents_per_row, validation.documents_per_row),
        ),
        scorer=scorer,
        fingerprint=fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        scorer_fingerprint=scorer_fingerprint,
    )


def _curriculum(settings: Settings, train: RowSource, schedule: Schedule) -> np.ndarray | None:
    """The order of units under ``data_sampling.curriculum``; None without one."""
    curriculum = settings.data_sampling.curriculum
    if curriculum is None or train.bins is None:
        return None
    assert schedule.total_steps is not None
    phases = [(phase.until, np.array([phase.weights[name] for name in curriculum.bins])) for phase in curriculum.phases]
    per_step = schedule.rows_per_step // train.rows_per_unit
    return curriculum_order(train.bins, phases, schedule.total_steps, per_step, settings.data_sampling.seed)


def sketch_run(stage: Stage, settings: Settings) -> tuple[ModelConfig, Schedule, dict[str, SampleReport], list[str]]:
    """Architecture and sizes of a run for ``--dry-run``, also where model or data are not at hand yet.

    Returns:
      The architecture, the sizes, what was drawn of each split (empty where something is missing), and what is
      missing (one sentence each).

    Raises:
      UserError: what is at hand does not fit, or there is no architecture to count.
    """
    missing = []
    if not _model_is_there(settings):
        missing.append(f"the model is not at {settings.model.path}")
    if not settings.dataset.path.exists():
        missing.append(f"the data set is not at {settings.dataset.path}")
    frozen, setting = scorer_path(stage, settings)
    if frozen is not None and not split_step(frozen)[0].exists():
        missing.append(f"the {stage.scorer} is not at {frozen} ({setting})")
    if not missing:
        run = build_run(stage, settings)
        return run.config, run.schedule, run.samples, missing
    config = describe_model(stage, settings)
    check_mesh(settings, config, "model")
    # One sample a row: exact without packing (unless some are too long), an upper bound with it.
    return config, plan_schedule(settings, settings.data_sampling.n_samples, exact=False), {}, missing


def describe_model(stage: Stage, settings: Settings) -> ModelConfig:
    """The architecture that is trained; where the model is not at hand, as the settings describe it.

    Raises:
      UserError: it does not fit the stage, or nothing describes it.
    """
    if not _model_is_there(settings):
        if settings.model.architecture is None:
            raise UserError(
                f"the model is not at {settings.model.path}, and model.architecture is not set: there is nothing to "
                "count"
            )
        settings = settings.model_copy(update={"model": settings.model.model_copy(update={"path": None})})
    return find_architecture(stage, settings)[0]


def _model_is_there(settings: Settings) -> bool:
    return settings.model.path is None or split_step(settings.model.path)[0].exists()
