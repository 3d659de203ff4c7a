"""What a run directory says of its run, beside checkpoints and metrics: settings, samples, and ``run.json``.

``run.json`` holds the settings, what else makes the run the one it is (fingerprints), its seeds, and one entry a
session: when it started and stopped, how it ended, by which code, versions and hardware.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_jax.console import err
from wmtp_jax.data.batches import batch_numbers
from wmtp_jax.data.tokenize import copy_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import write_whole
from wmtp_jax.interruption import Interrupted
from wmtp_jax.load import model_fingerprint
from wmtp_jax.models import store
from wmtp_jax.provenance import code_revision, hardware, versions
from wmtp_jax.settings_file import as_yaml
from wmtp_jax.training.layout import (
    BAD_BATCHES_FILE,
    CHECKPOINTS_FOLDER,
    METRICS_FILE,
    MLFLOW_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    SETTINGS_FILE,
)
from wmtp_jax.training.run import Run

# Entries of ``run.json`` that must stay the same, beside the settings, and what they are for people.
IDENTITY = {
    "stage": "",
    "data_fingerprint": "",
    "scorer_fingerprint": "of the critic or reference",
    "tokenizer_fingerprint": "",
    "rows_sha256": "examples and their places in rows",
    "order_sha256": "order of rows: data_sampling.seed, versions of grain and numpy",
    "rows_per_step": "training.batch_size x training.gradient_accumulation_steps x runtime.mesh.data x "
    "runtime.mesh.fsdp",
}

_HASHED_STEPS = 16


def identity(run: Run) -> dict[str, Any]:
    """What makes a run the one it is, beside its settings; by the names of `IDENTITY`."""
    return {
        "stage": run.stage.name,
        "data_fingerprint": run.fingerprint,
        "scorer_fingerprint": run.scorer_fingerprint,
        "tokenizer_fingerprint": run.tokenizer_fingerprint,
        "rows_sha256": [run.train.digest(), run.validation.digest()],
        "order_sha256": _hash_order(run),
        "rows_per_step": run.schedule.rows_per_step,
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


def write_run_files(run: Run, base: store.Base | None, before: dict[str, Any] | None) -> None:
    """Writes all that is not a checkpoint, at the first start of a run; ``base`` holds the weights that are in none.

    ``before``: the run's ``run.json``, where this is not its very first start.

    Raises:
      UserError: it cannot be written.
    """
    directory = run.directory
    try:
        if before is None:  # what is there is of another run, which has saved nothing
            for name in (MLFLOW_FILE, METRICS_FILE, BAD_BATCHES_FILE):
                (directory / name).unlink(missing_ok=True)
        # These two first: they mark the folder as a run's, should the rest be interrupted.
        start = model_fingerprint(run.source) if run.source else None
        _write_record(run, {"model_fingerprint": start, "sessions": (before or {}).get("sessions", [])})
        samples = {name: dataclasses.asdict(report) for name, report in run.samples.items()}
        write_whole(directory / SAMPLES_FILE, json.dumps(samples, indent=2) + "\n")
        copy_tokenizer(run.tokenizer, directory / store.TOKENIZER_FOLDER)
        origin = str(run.source.directory) if run.source else f"random, seed {run.settings.runtime.seed}"
        facts: dict[str, Any] = {"start": origin, "stage": run.stage.name}
        if run.stage.trains == "values":
            facts["trained"] = run.objective.part
            facts["backbone"] = start
        if run.scorer:
            facts[str(run.stage.scorer)] = str(run.scorer.directory)
        if run.source:
            facts["start_source"] = run.source.description.source
        (directory / CHECKPOINTS_FOLDER).mkdir(exist_ok=True)  # here: all processes save into it
        _write_description(directory, run.config, facts, run.objective.lora, base)
    except OSError as error:
        raise _unwritable(directory, error) from error


def rename_base(directory: Path, base: store.Base) -> None:
    """Writes where the base of a run is now, if that is another place than before. Raises OSError."""
    found = store.read_description(directory)
    if found.base != base:
        _write_description(directory, found.config, found.source, found.adapter, base)


def _write_description(directory: Path, *description: Any) -> None:
    write_whole(directory / store.CONFIG_FILE, store.description_text(*description))


def read_record(directory: Path) -> dict[str, Any] | None:
    """``run.json``; None where there is none, or nothing of it can be read."""
    try:
        record = json.loads((directory / RUN_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def read_stage(directory: Path) -> str:
    """The stage of a run. Raises UserError where the directory is not a run's."""
    try:
        return str((read_record(directory) or {})["stage"])
    except (OSError, KeyError) as error:
        raise UserError(f"{directory}: not a run directory (no readable {RUN_FILE})") from error


def _write_record(run: Run, record: dict[str, Any]) -> None:
    """Writes ``run.json`` and ``settings.yaml``: this run, with the entries of ``record`` that are no part of it."""
    values = run.settings.model_dump(mode="json")
    seeds = {"runtime.seed": run.settings.runtime.seed, "data_sampling.seed": run.settings.data_sampling.seed}
    record = {**record, **identity(run), "settings": values, "seeds": seeds}
    write_whole(run.directory / RUN_FILE, json.dumps(record, indent=2) + "\n")
    write_whole(run.directory / SETTINGS_FILE, as_yaml(run.settings))


def _unwritable(directory: Path, error: OSError) -> UserError:
    return UserError(f"{directory}: cannot be written ({error.strerror}); see checkpoint.save_dir")


class Session:
    """One part of a run, from a start to a stop.

    Attributes:
      last_step: the last step that was trained.
      ended: how it ended, where that was in order.
    """

    def __init__(self, first_step: int, write: Callable[[Session], None] = lambda _: None):
        self.last_step = first_step
        self.ended = "finished"
        self._write = write

    def end(self, _: object, error: BaseException | None, *__: object) -> None:
        """Writes down that it has ended, by an ``error`` or without; as ``__exit__``. A second call does nothing."""
        if isinstance(error, Interrupted):
            self.ended = f"stopped by {error}"
        elif error is not None:
            self.ended = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        write, self._write = self._write, lambda _: None
        write(self)


@contextlib.contextmanager
def session(run: Run, first_step: int, changed: dict[str, Any]) -> Iterator[Session]:
    """Writes into ``run.json`` that a session has begun, and how it ends.

    Args:
      run: the run.
      first_step: where it goes on.
      changed: what is other than before, by name: (before, now); the files take over what is now.

    Raises:
      UserError: it cannot be written.
    """
    record = read_record(run.directory) or {}
    sessions = _closed_sessions(record)
    entry: dict[str, Any] = {
        "started": _now(),
        "first_step": first_step,
        **({"changed": changed} if changed else {}),
        "code": code_revision(),
        "versions": versions(),
        "hardware": hardware(),
    }
    record = {**record, "sessions": [*sessions, entry]}

    def write_end(this: Session) -> None:
        entry.update(stopped=_now(), last_step=this.last_step, ended=this.ended)
        try:
            _write_record(run, record)
        except OSError as error:  # it does not hide what has ended this
            err.print(f"{run.directory / RUN_FILE}: cannot be written ({error.strerror})", highlight=False)

    try:
        _write_record(run, record)
    except OSError as error:
        raise _unwritable(run.directory, error) from error
    this = Session(first_step, write_end)
    with contextlib.ExitStack() as stack:
        stack.push(this.end)
        yield this


def close_sessions(run: Run) -> None:
    """Writes down that the last session of a finished run was killed, if it has no word of its end."""
    record = read_record(run.directory) or {}
    closed = _closed_sessions(record)
    if closed != record.get("sessions"):
        write_whole(run.directory / RUN_FILE, json.dumps({**record, "sessions": closed}, indent=2) + "\n")


def _closed_sessions(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a record, of which none goes on any more."""
    sessions = record.get("sessions")
    silent = {"ended": "no word (killed, or the machine was lost)"}
    return [silent | entry for entry in sessions if isinstance(entry, dict)] if isinstance(sessions, list) else []


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
