"""Brings what a run directory holds to MLflow: every line of ``metrics.jsonl`` once, in order, and small files."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from wmtp_jax.config import Settings, read_environment, without_credentials
from wmtp_jax.console import err
from wmtp_jax.files import sha256_of, write_whole
from wmtp_jax.settings_file import flatten
from wmtp_jax.training.layout import METRICS_FILE, MLFLOW_FILE, RUN_FILE, SAMPLES_FILE, SETTINGS_FILE
from wmtp_jax.training.metrics_file import metric_lines
from wmtp_jax.training.mlflow_client import make_client, prepare

ARTIFACTS = (SETTINGS_FILE, RUN_FILE, SAMPLES_FILE)

_TAG = "wmtp.id"  # by which the MLflow run of a run directory is found
_AT_ONCE = 1000  # metrics MLflow takes in one request


class Delivery:
    """The MLflow run of a run directory. What fails here, with whatever a server does, may be called again.

    What is delivered is the server's to say: after each failure, and at the start, it is asked for the last step that
    it has of every metric, and what comes after is sent. So nothing arrives twice, whenever this process or one before
    it was killed.

    Args:
      run_directory: of the run. Its `MLFLOW_FILE` keeps an id (the tag `wmtp.id`, by which the MLflow run is found),
        how the run ended, and what each server is known to have.
      settings: of the run; logged as parameters.
      stage: logged as a tag.

    Attributes:
      address: of the server, without user and password.
      is_local: the server is a database in the run directory.
      status: MLflow's word for how the run stands: RUNNING, FINISHED, FAILED or KILLED.

    Raises:
      UserError: ``.env`` cannot be read.
    """

    def __init__(self, run_directory: Path, settings: Settings, stage: str):
        self._directory, self._settings, self._stage = run_directory, settings, stage
        environment = read_environment()
        local = f"sqlite:///{run_directory.resolve() / 'mlflow.db'}"
        self._uri = settings.tracking.uri or environment.mlflow_tracking_uri or local
        self.is_local = self._uri == local
        self.address = without_credentials(self._uri)
        note = _read_note(run_directory / MLFLOW_FILE)
        self._id: str = note.get("id") or secrets.token_hex(16)
        self.status: str = note.get("status", "RUNNING")
        self._servers: dict[str, Any] = note.get("servers", {})
        known = self._servers.get(self.address, {})
        self._run_id: str | None = known.get("run_id")
        self._delivered: dict[str, int] = known.get("delivered", {})
        self._uploaded: dict[str, str] = known.get("artifacts", {})
        self._offset = self._started = 0
        self._noted, self._connected, self._in_doubt, self._stopped = "id" in note, False, False, False
        self._writing = threading.Lock()
        prepare(environment)

    def stop(self) -> None:
        """Has other threads end after the request they are in."""
        self._stopped = True

    def deliver(self, advance: Callable[[int], None]) -> None:
        """Sends the lines that are waiting; calls ``advance`` with their number as they arrive."""
        try:
            if not self._connected and not self._stopped:
                self._connect()
            self._send(advance)
        except Exception:
            self._connected = False
            raise

    def finish(self, ended: int | None = None) -> None:
        """Sets the status, and when the run ended (milliseconds since 1970; default: now)."""
        if self._stopped:
            return
        if self._in_doubt:
            for twin in self._find_runs():
                if twin.info.run_id != self._run_id and not twin.data.metrics:
                    self._client.delete_run(twin.info.run_id)
            self._in_doubt = False
        self._client.set_terminated(self._run_id, self.status, ended)

    def upload(self, names: Sequence[str]) -> int:
        """Uploads those files of the run directory that are not there as they are now; returns how many."""
        if self._run_id is None:  # nothing is delivered yet
            return 0
        client, done = make_client(self._uri), 0
        for name, digest in self._changed(names):
            if self._stopped:
                break
            run_id = self._run_id
            client.log_artifact(run_id, str(self._directory / name))
            if run_id == self._run_id:  # meanwhile the server may have lost that run, and got another
                self._uploaded = self._uploaded | {name: digest}
            self._try_to_save()
            done += 1
        return done

    def save(self) -> None:
        """Writes `MLFLOW_FILE`. Raises OSError."""
        mine = {"run_id": self._run_id, "delivered": self._delivered, "artifacts": self._uploaded}
        with self._writing:
            self._servers[self.address] = mine
            note = {"id": self._id, "status": self.status, "servers": self._servers}
            write_whole(self._directory / MLFLOW_FILE, json.dumps(note))
            self._noted = True

    def _try_to_save(self) -> None:
        # On a full disk: the server knows itself what it has, and a file that is uploaded twice is the same.
        with contextlib.suppress(OSError):
            if not self._stopped:
                self.save()

    def _connect(self) -> None:
        """Finds the MLflow run, or makes it, and learns what it has."""
        from mlflow.entities import Param

        self._client = make_client(self._uri)
        if not self._noted:
            self.save()  # the id is on the disk before a run bears it
        run = self._known_run() or next(iter(self._find_runs()), None) or self._create_run()
        if run.info.run_id != self._run_id:
            self._uploaded = {}
        self._run_id, self._started = run.info.run_id, run.info.start_time
        has = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        if any(step > has.get(name, -1) for name, step in self._delivered.items()):
            self._offset = 0  # it has lost some
        self._delivered = has
        self._try_to_save()
        values = flatten(self._settings.model_dump(mode="json"))
        # Those that are there stay: MLflow refuses another value, and a resumed run may have another max_steps.
        missing = [Param(name, str(value)[:6000]) for name, value in values.items() if name not in run.data.params]
        self._client.log_batch(self._run_id, params=missing)
        if self.status == "RUNNING" != run.info.status:
            self._client.update_run(self._run_id, status="RUNNING")
        self._connected = True

    def _send(self, advance: Callable[[int], None]) -> None:
        from mlflow.entities import Metric

        for end, lines in self._portions():
            if self._stopped:
                return
            points = [
                Metric(name, value, line.get("time", self._started), line["step"])
                for line in lines
                for name, value in self._missing(line).items()
            ]
            if points:
                self._client.log_batch(self._run_id, metrics=points)
                self._delivered = self._delivered | {point.key: point.step for point in points}
                self._try_to_save()
            self._offset = end
            advance(len(lines))

    def waiting(self) -> int:
        """How many lines are not known to be delivered."""
        lines = metric_lines(self._directory / METRICS_FILE, self._offset)
        return sum(bool(self._missing(line)) for _, line in lines)

    def waiting_files(self, names: Sequence[str]) -> list[str]:
        """Which of these files are not known to be uploaded as they are now."""
        return [name for name, _ in self._changed(names)]

    def _changed(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        for name in () if self.is_local else names:  # beside a local database they lie already
            path = self._directory / name
            if path.is_file() and (digest := sha256_of(path)) != self._uploaded.get(name):
                yield name, digest

    def _missing(self, line: dict[str, Any]) -> dict[str, float]:
        """The metrics of a line that are not known to be delivered."""
        step = line["step"]
        return {
            name: value
            for name, value in line.items()
            if name not in ("step", "time") and step > self._delivered.get(name, -1)
        }

    def _portions(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Lines that wait, as many as make one request, with the byte at which the last one ends."""
        lines: list[dict[str, Any]] = []
        size, before = 0, self._offset
        for end, line in metric_lines(self._directory / METRICS_FILE, self._offset):
            if not (new := len(self._missing(line))):
                before = end
                continue
            if lines and size + new > _AT_ONCE:
                yield before, lines
                lines, size = [], 0
            lines.append(line)
            size, before = size + new, end
        yield before, lines

    def _known_run(self) -> Any:
        """The MLflow run that was made before; None where there is none (any more)."""
        from mlflow.exceptions import MlflowException

        if self._run_id is None:
            return None
        try:
            run = self._client.get_run(self._run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _find_runs(self) -> list[Any]:
        """MLflow runs with the tag of this directory: a kill may have come before the number was written down."""
        experiment = self._client.get_experiment_by_name(self._settings.tracking.experiment)
        if experiment is None:
            return []
        runs = self._client.search_runs([experiment.experiment_id], f"tags.`{_TAG}` = '{self._id}'")
        return sorted(runs, key=lambda run: (-len(run.data.metrics), run.info.start_time))

    def _create_run(self) -> Any:
        name = self._settings.tracking.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            home = {"artifact_location": (self._directory / "artifacts").resolve().as_uri()} if self.is_local else {}
            experiment_id = self._client.create_experiment(name, **home)
        else:
            experiment_id = experiment.experiment_id
        tags = {"wmtp.stage": self._stage, _TAG: self._id}
        if self._settings.experiment.description:
            tags["mlflow.note.content"] = self._settings.experiment.description
        try:
            started = next((line.get("time") for _, line in metric_lines(self._directory / METRICS_FILE)), None)
            name = self._settings.experiment.name
            return self._client.create_run(experiment_id, start_time=started, run_name=name, tags=tags)
        except Exception:
            self._in_doubt = True  # a slow server may make it after all, beside the one of the next attempt
            raise


def _read_note(path: Path) -> dict[str, Any]:
    """What stands in `MLFLOW_FILE`, in today's form."""
    if not path.exists():
        return {}
    try:
        note = dict(json.loads(path.read_text()))
        if "servers" not in note:  # an earlier version knew one server
            return {"servers": {note["uri"]: {"run_id": note["run_id"]}}}
        for known in note["servers"].values():
            dict(known["delivered"]), dict(known["artifacts"])
        return {**note, "id": str(note["id"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        err.print(f"[yellow]{path} is damaged[/]; another MLflow run is begun", highlight=False, soft_wrap=True)
        return {}
