"""The directory of a run: whose it is, what marks it, and whether all processes of the run agree on it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from pydantic import ValidationError

from wmtp_jax.config import Settings
from wmtp_jax.data.batches import batch_numbers
from wmtp_jax.data.tokenize import copy_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import check_name
from wmtp_jax.load import model_fingerprint
from wmtp_jax.models import store
from wmtp_jax.parallel.distributed import is_first, process_id
from wmtp_jax.settings_file import as_yaml, flatten
from wmtp_jax.training.checkpoints import saved_steps
from wmtp_jax.training.delivery import MLFLOW_FILE
from wmtp_jax.training.objective import trained_part
from wmtp_jax.training.run import Run
from wmtp_jax.training.stages import Stage

SETTINGS_FILE, RUN_FILE, SAMPLES_FILE = "settings.yaml", "run.json", "samples.json"

_HASHED_STEPS = 16

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
        different = _differences(facts[0], theirs)
        if "saved steps" in different:
            ours, others = different["saved steps"]
            raise UserError(
                f"{run.directory}: process 0 sees the saved steps {ours} there, process {number} {others}; all "
                "processes need the same folder, on a shared file system"
            )
        if different:
            listing = "\n  ".join(f"{name}: {a} in process 0, {b} there" for name, (a, b) in different.items())
            raise UserError(f"process {number} was started for another run than process 0:\n  {listing}")


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of every name that has not the same in ``a`` and ``b``; None stands for a name that one lacks."""
    return {name: (a.get(name), b.get(name)) for name in {**a, **b} if a.get(name) != b.get(name)}


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
        record = json.loads((directory / RUN_FILE).read_text())
        before = {
            **flatten(_with_defaults(yaml.safe_load((directory / SETTINGS_FILE).read_text()), run.stage)),
            **_identity(record),
        }
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{directory}: {SETTINGS_FILE} or {RUN_FILE} is damaged ({error}); restore it, or start another run "
            "with --override checkpoint.save_dir=..."
        ) from error
    if "order_sha256" not in record:
        raise UserError(
            f"{directory}: an earlier version of wmtp_jax made this run, and laid its examples into other rows; it "
            "cannot be continued. Its checkpoints can be used as before (model.path, load_model); start another run "
            "with --override experiment.name=... or checkpoint.save_dir=..."
        )
    now = {
        **flatten(yaml.safe_load(as_yaml(run.settings))),
        **_identity(_record(run)),
    }
    for settings in (before, now):
        settings["training.train"] = trained_part(run.stage, settings.get("training.train"))
    different = {name: pair for name, pair in _differences(before, now).items() if not name.startswith(_FREE)}
    if different:
        listing = "\n  ".join(f"{name}: {a} there, {b} now" for name, (a, b) in different.items())
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
        "tokenizer_fingerprint": run.tokenizer_fingerprint,
        "rows_sha256": [run.train.digest(), run.validation.digest()],
        "order_sha256": _hash_order(run),
        "scorer_fingerprint": run.scorer_fingerprint,
    }


def _hash_order(run: Run) -> str:
    """SHA-256 over the rows of the first steps: the shuffle is Grain's, and another version's may be another."""
    schedule = run.schedule
    assert schedule.total_steps is not None
    numbers = batch_numbers(
        len(run.train),
        rows_per_step=schedule.rows_per_step,
        accumulation=1,
        seed=run.settings.data_sampling.seed,
        rows_per_unit=run.train.rows_per_unit,
        order=run.order,
    )
    digest = hashlib.sha256(b"" if run.order is None else np.ascontiguousarray(run.order, np.int64).data)
    for step in range(min(schedule.total_steps, _HASHED_STEPS)):
        digest.update(np.ascontiguousarray(numbers[step], np.int64).data)
    return digest.hexdigest()


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``run.json`` that must stay the same, by names for people."""
    return {
        "stage": record.get("stage"),
        "data fingerprint": record.get("data_fingerprint"),
        "fingerprint of the critic or reference": record.get("scorer_fingerprint"),
        "tokenizer": record.get("tokenizer_fingerprint"),
        "examples and their places in rows": record.get("rows_sha256"),
        "order of rows (data_sampling.seed, versions of grain and numpy)": record.get("order_sha256"),
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
            | {name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")},
        }
        # These two first: they mark the folder as a run's, should the rest be interrupted.
        (directory / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")
        (directory / SETTINGS_FILE).write_text(as_yaml(run.settings))
        samples = {name: dataclasses.asdict(report) for name, report in run.samples.items()}
        (directory / SAMPLES_FILE).write_text(json.dumps(samples, indent=2) + "\n")
        (directory / MLFLOW_FILE).unlink(missing_ok=True)
        copy_tokenizer(run.tokenizer, directory / store.TOKENIZER_FOLDER)
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
