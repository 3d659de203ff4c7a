"""From settings to everything a run needs: model, tokenizer, rows of tokens, steps, run directory.

All input is checked here, before anything is written.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from pydantic import ValidationError

from wmtp_jax.config import Settings, read_environment
from wmtp_jax.data.batches import RowSet, build_rows, count_steps
from wmtp_jax.data.sample import assign_bins
from wmtp_jax.data.store import data_fingerprint, open_split
from wmtp_jax.data.tokenize import load_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import check_name
from wmtp_jax.load import ModelSource, model_fingerprint, split_step
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.distributed import is_first, process_id
from wmtp_jax.parallel.mesh import check_shapes, resolve_shape
from wmtp_jax.settings_file import as_yaml, flatten
from wmtp_jax.training.checkpoints import saved_steps
from wmtp_jax.training.inputs import (
    draw_examples,
    find_architecture,
    find_scorer,
    find_tokenizer,
    open_scores,
    scorer_path,
)
from wmtp_jax.training.objective import Objective, make_objective, trained_part
from wmtp_jax.training.stages import Stage
from wmtp_jax.training.tracking import MLFLOW_FILE

SETTINGS_FILE, RUN_FILE = "settings.yaml", "run.json"

# What may differ when a run is continued: it changes neither the updates nor their order. How a step's
# rows are divided is free; how many there are is not, see `_identity`.
_FREE = (
    "training.max_steps",
    "training.max_skipped_steps",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "checkpoint.",
    "tracking.",
    "training.remat",
    "training.unroll_layers",
    "training.offload_optimizer",
    "model.attention",
    "runtime.mesh.",
    "runtime.compilation_cache",
    "experiment.description",
    "dataset.path",
    "model.path",
    "model.tokenizer",
    "experiment.critic_checkpoint",
    "experiment.reference_model",
    "weighting.scores",
)


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
      tokenizer: of the model.
      train, validation: rows of tokens.
      validation_problems: the problem of each document of each validation row.
      schedule, objective: sizes of the run, and what an update minimises.
      scorer: the critic or the reference, where the stage has one.
      fingerprint, scorer_fingerprint: of the data set, and of the frozen model whose scores are used.
    """

    stage: Stage
    settings: Settings
    directory: Path
    config: ModelConfig
    source: ModelSource | None
    tokenizer: Any
    train: RowSet
    validation: RowSet
    validation_problems: list[list[int]]
    schedule: Schedule
    objective: Objective
    scorer: ModelSource | None
    fingerprint: str
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
    tokenizer = load_tokenizer(find_tokenizer(settings, source))
    read_environment()  # a broken .env is found now, not after the model is loaded
    scorer = find_scorer(stage, settings, config, source, tokenizer)
    if scorer:
        check_mesh(settings, scorer.config, scorer_path(stage, settings)[1])
    fingerprint = data_fingerprint(dataset.path)
    # Which fields the rows need does not depend on the sizes of the run.
    needs = make_objective(stage, settings, config.n_future_tokens, total_steps=1, n_documents=1)
    scorer_fingerprint = model_fingerprint(scorer) if needs.needs_scores and scorer else None
    score_file = open_scores(stage, settings, tokenizer, fingerprint, scorer_fingerprint)
    sets = {}
    for name, setting in (("train", "n_samples"), ("valid", "n_validation_samples")):
        split = splits[name]
        chosen = draw_examples(stage, settings, split, f"data_sampling.{setting}")
        bins = None
        if name == "train" and sampling.curriculum is not None:
            bins = assign_bins(split.difficulty[chosen].reshape(len(chosen), -1)[:, 0], sampling.curriculum.bins)
        sets[name] = build_rows(
            split,
            chosen,
            tokenizer,
            max_length=dataset.max_length,
            packing=dataset.packing,
            vocab_size=config.vocab_size,
            outcomes=needs.needs_outcomes if name == "train" else stage.trains == "values",
            scores=partial(score_file.of, name, limit=dataset.max_length) if score_file and name == "train" else None,
            bins=bins,
        )
    train, validation = sets["train"], sets["valid"]
    schedule = plan_schedule(settings, len(train.rows.tokens), exact=True)
    assert schedule.total_steps is not None
    if train.rows_per_unit > 1 and settings.training.batch_size % train.rows_per_unit:
        raise UserError(
            f"training.batch_size is {settings.training.batch_size}; it must be even, because a pair takes two rows"
        )
    return Run(
        stage=stage,
        settings=settings,
        directory=run_directory(stage, settings),
        config=config,
        source=source,
        tokenizer=tokenizer,
        train=train,
        validation=validation,
        validation_problems=[[int(splits["valid"].problem[i]) for i in row] for row in validation.documents],
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
        scorer_fingerprint=scorer_fingerprint,
    )


def sketch_run(stage: Stage, settings: Settings) -> tuple[ModelConfig, Schedule, list[str]]:
    """Architecture and sizes of a run for ``--dry-run``, also where model or data are not at hand yet.

    Returns:
      The architecture, the sizes, and what is missing (one sentence each).

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
        return run.config, run.schedule, missing
    config = describe_model(stage, settings)
    check_mesh(settings, config, "model")
    # One sample a row: exact without packing (unless some are too long), an upper bound with it.
    return config, plan_schedule(settings, settings.data_sampling.n_samples, exact=False), missing


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


def check_directory(run: Run) -> list[int]:
    """Checks that the run directory is free or this run's; returns the steps saved in it. Writes nothing.

    Raises:
      UserError: it belongs to a run with other settings (the differences are listed) or other data, or
        it holds something else.
    """
    directory = run.directory
    check_name(directory)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; checkpoint.save_dir must be a folder of its own")
    is_run = (directory / SETTINGS_FILE).is_file() and (directory / RUN_FILE).is_file()
    if directory.is_dir() and any(directory.iterdir()) and not is_run:
        raise UserError(f"{directory}: holds files, but no run; name an empty or new folder as checkpoint.save_dir")
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{directory}: cannot be written (no right to write in {nearest}); see checkpoint.save_dir")
    steps = saved_steps(directory)
    if steps:
        _check_same_run(run)
    return steps


def run_facts(run: Run, saved: list[int]) -> dict[str, Any]:
    """What must be the same in every process of a run, by names for people."""
    settings = flatten(yaml.safe_load(as_yaml(run.settings)))
    return {**settings, **_identity(_record(run)), "saved steps": saved}


def check_alike(run: Run, facts: list[dict[str, Any]]) -> None:
    """Raises UserError where the `run_facts` of a process are not those of process 0."""
    for number, theirs in enumerate(facts):
        different = [name for name in facts[0] if theirs[name] != facts[0][name]]
        if "saved steps" in different:
            raise UserError(
                f"{run.directory}: process 0 sees the saved steps {facts[0]['saved steps']} there, process {number} "
                f"{theirs['saved steps']}; all processes need the same folder, on a shared file system"
            )
        if different:
            listing = "\n  ".join(f"{name}: {facts[0][name]} in process 0, {theirs[name]} there" for name in different)
            raise UserError(f"process {number} was started for another run than process 0:\n  {listing}")


def check_shared(run: Run) -> None:
    """Raises UserError where this process does not see the run directory that process 0 has made."""
    for _ in range(60):  # a network file system may show a new folder late
        if is_first() or (run.directory / RUN_FILE).is_file():
            return
        time.sleep(1)
    raise UserError(
        f"{run.directory}: process 0 has made it, but process {process_id()} does not see it; all processes need the "
        "same folder, on a shared file system"
    )


def _check_same_run(run: Run) -> None:
    directory = run.directory
    try:
        before = {
            **flatten(_with_defaults(yaml.safe_load((directory / SETTINGS_FILE).read_text()), run.stage)),
            **_identity(json.loads((directory / RUN_FILE).read_text())),
        }
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{directory}: {SETTINGS_FILE} or {RUN_FILE} is damaged ({error}); restore it, or start another run "
            "with --override checkpoint.save_dir=..."
        ) from error
    now = {
        **flatten(yaml.safe_load(as_yaml(run.settings))),
        **_identity(_record(run)),
    }
    for settings in (before, now):
        settings["training.train"] = trained_part(run.stage, settings.get("training.train"))
    names = [name for name in {**before, **now} if not name.startswith(_FREE)]
    different = [name for name in names if before.get(name) != now.get(name)]
    if different:
        listing = "\n  ".join(f"{name}: {before.get(name)} there, {now.get(name)} now" for name in different)
        raise UserError(
            f"{directory} belongs to a run made by other settings:\n  {listing}\n"
            "Take the settings back (they are in its settings.yaml) to continue it, or start another run with "
            "--override experiment.name=... or checkpoint.save_dir=..."
        )


def _with_defaults(values: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """Settings that a run wrote, perhaps before some of today's existed: those have their defaults."""
    critic = values.get("critic")
    if isinstance(critic, dict) and "train" in critic:  # training.train took its place, which concerns every stage
        train = critic["train"] if stage.trains == "values" else None
        values = {
            **values,
            "critic": {name: value for name, value in critic.items() if name != "train"},
            "training": {"train": train, **(values.get("training") or {})},
        }
    try:
        return dict(yaml.safe_load(as_yaml(Settings.model_validate(values))))
    except ValidationError:  # one that no longer exists: it is compared as it stands
        return values


def _record(run: Run) -> dict[str, Any]:
    """What ``run.json`` says of a run beside its settings."""
    return {
        "stage": run.stage.name,
        "data_fingerprint": run.fingerprint,
        "rows_per_step": run.schedule.rows_per_step,
        "rows_sha256": _hash_rows(run.train.rows._replace(scores=None), run.validation.rows),
        "scorer_fingerprint": run.scorer_fingerprint,
    }


def _hash_rows(*splits: Any) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        for field in jax.tree.leaves(rows):
            digest.update(np.ascontiguousarray(field).data)
    return digest.hexdigest()


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``run.json`` that must stay the same, by names for people."""
    return {
        "stage": record.get("stage"),
        "data fingerprint": record.get("data_fingerprint"),
        "fingerprint of the critic or reference": record.get("scorer_fingerprint"),
        "tokens (examples, tokenizer, packing)": record.get("rows_sha256"),
        "rows per step (training.batch_size x training.gradient_accumulation_steps x runtime.mesh.data x "
        "runtime.mesh.fsdp)": record.get("rows_per_step"),
    }


def write_run_files(run: Run, base: store.Base | None) -> None:
    """Makes the run directory, with all that is not a checkpoint; ``base`` holds the weights that are in none.

    Raises:
      UserError: it cannot be written.
    """
    directory = run.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        record = {
            **_record(run),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint")},
        }
        # These two first: they mark the folder as a run's, should the rest be interrupted.
        (directory / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
        (directory / SETTINGS_FILE).write_text(as_yaml(run.settings))
        (directory / MLFLOW_FILE).unlink(missing_ok=True)
        run.tokenizer.save_pretrained(directory / store.TOKENIZER_FOLDER)
        origin = str(run.source.directory) if run.source else f"random, seed {run.settings.runtime.seed}"
        facts: dict[str, Any] = {"start": origin, "stage": run.stage.name}
        if run.stage.trains == "values":
            facts["trained"] = run.objective.part
            facts["backbone"] = model_fingerprint(run.source) if run.source else None
        if run.scorer:
            facts[str(run.stage.scorer)] = str(run.scorer.directory)
        if run.source:
            facts["start_source"] = run.source.description.source
        store.write_description(directory, run.config, facts, run.objective.lora, base)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); see checkpoint.save_dir") from error


def rename_base(directory: Path, base: store.Base) -> None:
    """Writes where the base of a run is now, if that is another place than before."""
    found = store.read_description(directory)
    if found.base != base:
        store.write_description(directory, found.config, found.source, found.adapter, base)
