"""The directory of a run: whose it is, whether the run may go on there, and whether all processes agree on it."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wmtp_jax.config import Settings
from wmtp_jax.errors import UserError
from wmtp_jax.files import WRITING, check_name
from wmtp_jax.parallel.distributed import is_first, process_id
from wmtp_jax.settings_file import as_yaml, flatten
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER, RUN_FILE, SETTINGS_FILE
from wmtp_jax.training.manifest import IDENTITY, identity, read_record
from wmtp_jax.training.objective import trained_part
from wmtp_jax.training.run import Run
from wmtp_jax.training.saved import saved_steps, step_metrics
from wmtp_jax.training.stages import Stage
from wmtp_jax.volumes import LOCK_FILE, check_writable, lock_run

Changes = dict[str, tuple[Any, Any]]

# What may differ when a run is continued: it changes neither the updates nor their order. How a step's
# rows are divided is free; how many there are is not, see `manifest.identity`.
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

# What cannot be allowed to differ either: the saved state would have another form.
_FORM = (
    "stage",
    "tokenizer_fingerprint",
    "model.architecture",
    "model.param_dtype",
    "training.train",
    "training.moments_dtype",
    "training.spike_sigma",
    "training.spike_window",
    "lora.",
    "critic.value_head",
)


def check_directory(directory: Path, settings: Settings, allowed: Collection[str]) -> None:
    """Checks that a run directory can be written, and is free or a run's. Writes nothing that stays.

    Raises:
      UserError: it cannot, or holds something else; or a name in ``allowed`` is that of no setting.
    """
    known = [*_flat(settings), *IDENTITY]
    for name in allowed:
        if not any(full == name or full.startswith(f"{name}.") for full in known):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; there is: {', '.join(IDENTITY)}, and every setting"
            raise UserError(f"--allow-changed {name}: no such setting or fingerprint{hint}")
    check_name(directory)
    if os.path.isfile(directory):  # unlike pathlib's, with no error where a volume is away
        raise UserError(f"{directory}: is a file; checkpoint.save_dir must be a folder of its own")
    check_writable(directory, "checkpoint.save_dir")
    # What `write_whole` was killed over is no file of anybody's.
    holds = {path.name for path in directory.iterdir() if path.suffix != WRITING} if directory.is_dir() else set()
    if holds - {LOCK_FILE} and not holds & {RUN_FILE, SETTINGS_FILE}:
        raise UserError(f"{directory}: holds files, but no run; name an empty or new folder as checkpoint.save_dir")
    if (directory / CHECKPOINTS_FOLDER).is_file():
        raise UserError(f"{directory / CHECKPOINTS_FOLDER}: is a file, where the run keeps its steps; remove it")
    if holds and is_first():
        with lock_run(directory):  # told now, not when the data is read
            pass


def find_changes(run: Run, allowed: Collection[str]) -> tuple[dict[str, Any] | None, Changes]:
    """Compares the run with the one in its directory.

    Returns:
      Its ``run.json`` (None: there is none yet, or it has saved no step and was another), and what is other than
      there though ``allowed``.

    Raises:
      UserError: it has saved steps and is another run; every difference is listed.
    """
    directory = run.directory
    has_steps = bool(saved_steps(directory))
    record = read_record(directory)
    settings = _read_settings(directory) or (record or {}).get("settings")
    if not isinstance(settings, dict) or (record is None and not has_steps):
        if not has_steps:
            return None, {}
        raise UserError(
            f"{directory}: neither {SETTINGS_FILE} nor {RUN_FILE} can be read, so nothing says what made its steps. "
            f"Restore one of them; or start another run (checkpoint.save_dir) from them: model.path={directory}@latest"
        )
    # Where one of the two is lost, the other stands for both; what nothing tells any more can be allowed.
    known = record or {}
    before = {**flatten(_with_defaults(settings, run.stage)), **{name: known.get(name) for name in IDENTITY}}
    if has_steps and record and "data_fingerprint" in record and "order_sha256" not in record:
        raise UserError(
            f"{directory}: an earlier version of wmtp_jax made this run, and laid its examples into other rows; it "
            "cannot be continued. Its checkpoints can be used as before (model.path, load_model); start another run "
            "with --override experiment.name=... or checkpoint.save_dir=..."
        )
    now = {**_flat(run.settings), **identity(run)}
    for facts in (before, now):
        facts["training.train"] = trained_part(run.stage, facts.get("training.train"))
    different = {name: pair for name, pair in _differences(before, now).items() if not name.startswith(_FREE)}
    lost = {name for name, (there, _) in different.items() if name in IDENTITY and there is None}
    form = [name for name in different if name.startswith(_FORM) and name not in lost]
    refused = {name: pair for name, pair in different.items() if name in form or not _is_allowed(name, allowed)}
    if not refused:
        return known, different
    if not has_steps:
        return None, {}
    listing = "\n  ".join(f"{_for_people(name)}: {a} there, {b} now" for name, (a, b) in refused.items())
    flags = " ".join(f"--allow-changed {name}" for name in refused)
    accept = f" ({', '.join(form)} cannot be allowed: the saved state would not fit)" if form else ""
    accept = accept or f", or accept what has changed with {flags}"
    raise UserError(
        f"{directory} belongs to a run made by other settings:\n  {listing}\n"
        f"Take the settings back (they are in its {SETTINGS_FILE}) to continue it{accept}, or start another run with "
        "--override experiment.name=... or checkpoint.save_dir=..."
    )


def _flat(settings: Settings) -> dict[str, Any]:
    """Settings by dotted names, in the types that a settings file gives."""
    return flatten(yaml.safe_load(as_yaml(settings)))


def _read_settings(directory: Path) -> dict[str, Any] | None:
    """``settings.yaml``; None where nothing of it can be read."""
    try:
        settings = yaml.safe_load((directory / SETTINGS_FILE).read_text())
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return settings if isinstance(settings, dict) else None


def _is_allowed(name: str, allowed: Collection[str]) -> bool:
    return any(name == given or name.startswith(f"{given}.") for given in allowed)


def _for_people(name: str) -> str:
    return f"{name} ({IDENTITY[name]})" if IDENTITY.get(name) else name


def run_facts(run: Run, saved: list[int]) -> dict[str, Any]:
    """What must be the same in every process of a run."""
    validated = [step for step in saved if step_metrics(run.directory, step)]
    settings = _flat(run.settings)
    return {**settings, **identity(run), "saved steps": saved, "validated steps": validated}


def check_alike(run: Run, facts: list[dict[str, Any]]) -> None:
    """Raises UserError where the `run_facts` of a process are not those of process 0."""
    for number, theirs in enumerate(facts):
        different = _differences(facts[0], theirs)
        for steps in different.keys() & {"saved steps", "validated steps"}:
            ours, others = different[steps]
            raise UserError(
                f"{run.directory}: process 0 sees the {steps} {ours} there, process {number} {others}; all "
                "processes need the same folder, on a shared file system"
            )
        if different:
            listing = "\n  ".join(f"{_for_people(n)}: {a} in process 0, {b} there" for n, (a, b) in different.items())
            raise UserError(f"process {number} was started for another run than process 0:\n  {listing}")


def _differences(a: dict[str, Any], b: dict[str, Any]) -> Changes:
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
