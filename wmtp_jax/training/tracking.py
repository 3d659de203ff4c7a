"""Where metrics go: ``metrics.jsonl`` in the run directory, always, and MLflow, off the training thread."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wmtp_jax.config import Settings, read_environment
from wmtp_jax.console import err
from wmtp_jax.errors import Failure
from wmtp_jax.settings_file import flatten

METRICS_FILE, MLFLOW_FILE = "metrics.jsonl", "mlflow.json"


class MetricsFile:
    """One JSON object a step, appended. On a resume, lines after the resumed step are taken off."""

    def __init__(self, run_directory: Path, first_step: int):
        self._path = run_directory / METRICS_FILE
        kept = [line for line in read_metrics(run_directory) if line["step"] <= first_step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self._path)
        self._file = self._path.open("a", buffering=1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    def close(self) -> None:
        self._file.close()


def read_metrics(run_directory: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``; a last line cut by a kill is passed over."""
    path = run_directory / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    result = []
    for number, line in enumerate(lines, start=1):
        try:
            result.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise Failure(f"{path} line {number}: broken JSON ({error.msg}); remove that line") from error
    return result


class MlflowRun:
    """Logs to MLflow from a thread of its own; training never waits for it.

    A server that fails is reported once, and the run goes on without it: every figure is in
    ``metrics.jsonl`` too.

    Args:
      settings: the run's settings; logged as parameters.
      stage: logged as a tag.
      run_directory: home of the default SQLite file, and of ``mlflow.json``, by which a later part of
        this run continues the same MLflow run.
    """

    def __init__(self, settings: Settings, stage: str, run_directory: Path):
        self._settings, self._stage, self._directory = settings, stage, run_directory
        environment = read_environment()
        for name, secret in (
            ("MLFLOW_TRACKING_USERNAME", environment.mlflow_tracking_username),
            ("MLFLOW_TRACKING_PASSWORD", environment.mlflow_tracking_password),
        ):
            if secret is not None:
                os.environ.setdefault(name, secret.get_secret_value())
        local = f"sqlite:///{run_directory.resolve() / 'mlflow.db'}"
        self.uri = settings.tracking.uri or environment.mlflow_tracking_uri or local
        self.is_local = self.uri == local
        self._queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._queue.put((step, metrics))

    def close(self, timeout: float = 60.0) -> None:
        """Sends what is waiting and ends the run."""
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            err.print(f"MLflow has not taken all metrics in {timeout:.0f} s; they are in {METRICS_FILE}")

    def _work(self) -> None:
        try:
            self._run()
        except Exception as error:  # whatever a server does, training goes on
            # The type alone: a message could repeat an address with credentials in it.
            err.print(
                f"[yellow]MLflow logging stopped[/] ({type(error).__name__}); metrics are in "
                f"{self._directory / METRICS_FILE}. Check MLFLOW_TRACKING_URI and its credentials, or set "
                "tracking.mlflow=false.",
                soft_wrap=True,
            )

    def _run(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("ALEMBIC_LOGGING_LEVEL", "ERROR")
        import logging

        import mlflow
        from mlflow.entities import Metric, Param

        for name in ("alembic", "mlflow", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        note = self._directory / MLFLOW_FILE
        address = _without_credentials(self.uri)
        if note.exists() and (known := json.loads(note.read_text()))["uri"] == address:
            run_id = known["run_id"]
            client.update_run(run_id, status="RUNNING")
        else:
            run_id = self._create(client)
            note.write_text(json.dumps({"uri": address, "run_id": run_id}) + "\n")
            values = flatten(self._settings.model_dump(mode="json"))
            client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in values.items()])
        finished = False
        while not finished:
            batch: list[Any] = []
            item = self._queue.get()
            while item is not None and len(batch) < 900:  # MLflow takes 1000 metrics at once
                step, metrics = item
                now = int(time.time() * 1000)
                batch += [Metric(name, value, now, step) for name, value in metrics.items()]
                if self._queue.empty():
                    break
                item = self._queue.get()
            finished = item is None
            if batch:
                client.log_batch(run_id, metrics=batch)
        client.set_terminated(run_id)

    def _create(self, client: Any) -> str:
        name = self._settings.tracking.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            home = {"artifact_location": (self._directory / "artifacts").resolve().as_uri()} if self.is_local else {}
            experiment_id = client.create_experiment(name, **home)
        else:
            experiment_id = experiment.experiment_id
        tags = {"wmtp.stage": self._stage}
        if self._settings.experiment.description:
            tags["mlflow.note.content"] = self._settings.experiment.description
        return client.create_run(experiment_id, run_name=self._settings.experiment.name, tags=tags).info.run_id


def _without_credentials(uri: str) -> str:
    """An address as it may stand in a file: without user and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
