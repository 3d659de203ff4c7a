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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from wmtp_jax.config import Settings, as_yaml, flatten, read_environment
from wmtp_jax.data.batches import RowReport, build_rows, count_steps
from wmtp_jax.data.pack import Rows
from wmtp_jax.data.sample import draw
from wmtp_jax.data.store import data_fingerprint, open_split
from wmtp_jax.data.tokenize import load_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import check_name
from wmtp_jax.load import ModelSource, find_model, split_step
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import resolve_shape
from wmtp_jax.training.checkpoints import saved_steps
from wmtp_jax.training.stages import Stage
from wmtp_jax.training.tracking import MLFLOW_FILE

SETTINGS_FILE, RUN_FILE = "settings.yaml", "run.json"

# What may differ when a run is continued: it changes neither the updates nor their order. How a step's
# rows are divided is free; how many there are is not, see `_identity`.
_FREE = (
    "training.max_steps",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "checkpoint.",
    "tracking.",
    "runtime.mesh.",
    "runtime.compilation_cache",
    "experiment.description",
    "dataset.path",
    "model.path",
    "model.tokenizer",
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
    """Everything `wmtp_jax.training.loop.fit` needs; nothing has been written yet."""

    stage: Stage
    settings: Settings
    directory: Path
    config: ModelConfig
    source: ModelSource | None
    tokenizer: Any
    train: Rows
    validation: Rows
    reports: dict[str, RowReport]
    schedule: Schedule
    fingerprint: str


def run_directory(stage: Stage, settings: Settings) -> Path:
    """``checkpoint.save_dir``, or ``storage/checkpoints/<stage>/<experiment.name>``."""
    default = Path("storage/checkpoints") / stage.name / settings.experiment.name
    return settings.checkpoint.save_dir or default


def resolve_mesh(settings: Settings) -> tuple[int, int, int]:
    """Sizes of the mesh on the devices at hand. Raises UserError where they do not fit."""
    try:
        return resolve_shape(settings.runtime.mesh.shape, jax.device_count())
    except ValueError as error:
        raise UserError(str(error)) from error


def plan_schedule(settings: Settings, rows: int | None, exact: bool) -> Schedule:
    """Sizes of a run with ``rows`` rows an epoch.

    Raises:
      UserError: the mesh does not fit the devices, or the rows do not fill a step.
    """
    training, checkpoint = settings.training, settings.checkpoint
    mesh = settings.runtime.mesh.shape
    if -1 in mesh:  # sizes that are all given can be planned on a machine with other devices
        mesh = resolve_mesh(settings)
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


def find_architecture(settings: Settings) -> tuple[ModelConfig, ModelSource | None]:
    """The model's architecture, and where its weights are (None: random weights).

    Raises:
      UserError: the model is absent and no architecture is given, or the two differ.
    """
    expected = settings.model.architecture
    if settings.model.path is None:
        assert expected is not None  # config.py checks it
        return _with_heads(expected), None
    source = find_model(settings.model.path)
    if expected is not None and expected != source.config:
        raise UserError(
            f"model.architecture is not that of {settings.model.path}:\n  settings: {expected}\n  "
            f"found:    {source.config}\nMend or remove model.architecture."
        )
    return _with_heads(source.config), source


def _with_heads(config: ModelConfig) -> ModelConfig:
    if not config.n_future_tokens:
        raise UserError("the model gives values only (n_future_tokens is 0); this stage needs one that predicts tokens")
    return config


def find_tokenizer(settings: Settings, source: ModelSource | None) -> Path:
    """Folder of the tokenizer: the one named, the model's own, or the data set's."""
    if settings.model.tokenizer is not None:
        return settings.model.tokenizer
    if source is not None and source.tokenizer is not None:
        return source.tokenizer
    if source is not None and source.foreign and (source.directory / "tokenizer.model").is_file():
        raise UserError(
            f"{source.directory}: its tokenizer.model needs a config; make a model directory with "
            "`python -m conversion import` first, or name a tokenizer as model.tokenizer"
        )
    return settings.dataset.path / "tokenizer"


def build_run(stage: Stage, settings: Settings) -> Run:
    """Reads and checks everything a run needs.

    Raises:
      UserError: anything is missing or does not fit; nothing has been written then.
    """
    config, source = find_architecture(settings)
    splits = {name: open_split(settings.dataset.path, name) for name in ("train", "valid")}
    tokenizer = load_tokenizer(find_tokenizer(settings, source))
    read_environment()  # a broken .env is found now, not after the model is loaded
    sampling, dataset = settings.data_sampling, settings.dataset
    rows, reports = {}, {}
    for name, setting in (("train", "n_samples"), ("valid", "n_validation_samples")):
        split = splits[name]
        wanted = split.is_correct if stage.correct_only else np.ones(len(split), bool)
        kind = "correct solutions" if stage.correct_only else "solutions"
        chosen = draw(
            np.flatnonzero(wanted),
            getattr(sampling, setting),
            sampling.seed,
            f"{kind} in {split.path}",
            f"data_sampling.{setting}",
        )
        rows[name], reports[name] = build_rows(
            split,
            chosen,
            tokenizer,
            max_length=dataset.max_length,
            packing=dataset.packing,
            vocab_size=config.vocab_size,
        )
    return Run(
        stage=stage,
        settings=settings,
        directory=run_directory(stage, settings),
        config=config,
        source=source,
        tokenizer=tokenizer,
        train=rows["train"],
        validation=rows["valid"],
        reports=reports,
        schedule=plan_schedule(settings, len(rows["train"].tokens), exact=True),
        fingerprint=data_fingerprint(dataset.path),
    )


def sketch_run(stage: Stage, settings: Settings) -> tuple[ModelConfig, Schedule, list[str]]:
    """Architecture and sizes of a run for ``--dry-run``, also where model or data are not at hand yet.

    Returns:
      The architecture, the sizes, and what is missing (one sentence each).

    Raises:
      UserError: what is at hand does not fit, or there is no architecture to count.
    """
    missing = []
    model_there = settings.model.path is None or split_step(settings.model.path)[0].exists()
    if not model_there:
        missing.append(f"the model is not at {settings.model.path}")
    if not settings.dataset.path.exists():
        missing.append(f"the data set is not at {settings.dataset.path}")
    if not missing:
        run = build_run(stage, settings)
        return run.config, run.schedule, missing
    config = settings.model.architecture
    if model_there:
        config, _ = find_architecture(settings)
    if config is None:
        raise UserError(f"{missing[0]}, and model.architecture is not set: there is nothing to count")
    # One sample a row: exact without packing (unless some are too long), an upper bound with it.
    return config, plan_schedule(settings, settings.data_sampling.n_samples, exact=False), missing


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


def _check_same_run(run: Run) -> None:
    directory = run.directory
    try:
        before = {
            **flatten(yaml.safe_load((directory / SETTINGS_FILE).read_text())),
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
    names = [name for name in {**before, **now} if not name.startswith(_FREE)]
    different = [name for name in names if before.get(name) != now.get(name)]
    if different:
        listing = "\n  ".join(f"{name}: {before.get(name)} there, {now.get(name)} now" for name in different)
        raise UserError(
            f"{directory} belongs to a run made by other settings:\n  {listing}\n"
            "Take the settings back (they are in its settings.yaml) to continue it, or start another run with "
            "--override experiment.name=... or checkpoint.save_dir=..."
        )


def _record(run: Run) -> dict[str, Any]:
    """What ``run.json`` says of a run beside its settings."""
    return {
        "stage": run.stage.name,
        "data_fingerprint": run.fingerprint,
        "rows_per_step": run.schedule.rows_per_step,
        "rows_sha256": _hash_rows(run.train, run.validation),
    }


def _hash_rows(*splits: Rows) -> str:
    digest = hashlib.sha256()
    for rows in splits:
        for field in rows:
            digest.update(np.ascontiguousarray(field).data)
    return digest.hexdigest()


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``run.json`` that must stay the same, by names for people."""
    return {
        "stage": record.get("stage"),
        "data fingerprint": record.get("data_fingerprint"),
        "tokens (examples, tokenizer, packing)": record.get("rows_sha256"),
        "rows per step (training.batch_size x training.gradient_accumulation_steps x runtime.mesh.data x "
        "runtime.mesh.fsdp)": record.get("rows_per_step"),
    }


def write_run_files(run: Run) -> None:
    """Makes the run directory, with all that is not a checkpoint.

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
        if run.source:
            facts["start_source"] = run.source.description.source
        store.write_description(directory, run.config, facts)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); see checkpoint.save_dir") from error
