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
from wmtp_jax.training.delivery import MLFLOW_FILE
from wmtp_jax.training.metrics_file import METRICS_FILE
from wmtp_jax.training.run import Run

SETTINGS_FILE, RUN_FILE, SAMPLES_FILE = "settings.yaml", "run.json", "samples.json"

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
            for name in (MLFLOW_FILE, METRICS_FILE):
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
        store.write_description(directory, run.config, facts, run.objective.lora, base)
    except OSError as error:
        raise _unwritable(directory, error) from error


def rename_base(directory: Path, base: store.Base) -> None:
    """Writes where the base of a run is now, if that is another place than before."""
    found = store.read_description(directory)
    if found.base != base:
        store.write_description(directory, found.config, found.source, found.adapter, base)


def read_record(directory: Path) -> dict[str, Any] | None:
    """``run.json``; None where there is none. Raises ValueError where it is damaged."""
    path = directory / RUN_FILE
    return dict(json.loads(path.read_text())) if path.is_file() else None


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
      ended: how it ended.
    """

    def __init__(self, first_step: int, write: Callable[[Session], None] = lambda _: None):
        self.last_step = first_step
        self.ended = "finished"
        self._write = write

    def end(self) -> None:
        """Writes down that it has ended; a second call does nothing."""
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
    sessions: list[dict[str, Any]] = list(record.get("sessions", []))
    if sessions and "ended" not in sessions[-1]:
        sessions[-1]["ended"] = "no word (killed, or the machine was lost)"
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
    try:
        yield this
    except BaseException as error:
        stopped = f"stopped by {error}" if isinstance(error, Interrupted) else None
        this.ended = stopped or f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise
    finally:
        this.end()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
