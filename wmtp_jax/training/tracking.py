"""Where metrics go: ``metrics.jsonl`` in the run directory, and from there to MLflow, off the training thread."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from wmtp_jax.config import Settings
from wmtp_jax.console import err
from wmtp_jax.training.delivery import ARTIFACTS, Delivery
from wmtp_jax.training.layout import METRICS_FILE
from wmtp_jax.training.metrics_file import MetricsFile
from wmtp_jax.training.mlflow_client import describe, http_status

_FLUSH_S = 8.0  # of the seconds between a signal and the end of a machine
_LOOK_EVERY = 1.0  # seconds between two looks into the file
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds after a failure
_REFUSED_PAUSE = 60.0  # after a wrong password: a server may lock an account that tries too often


class Tracking:
    """Metrics of a run: into its file at once, to MLflow (``tracking.mlflow``) when that takes them.

    MLflow may be absent, slow, refuse and come back: training neither waits nor stops. What it has not taken when the
    run ends, ``python -m wmtp_jax.sync`` delivers later.

    Args:
      run_directory, settings, stage: of the run.
      first_step: where it continues; the file loses what comes after.

    Raises:
      Failure: ``metrics.jsonl`` cannot be opened.
      UserError: ``.env`` cannot be read.
    """

    def __init__(self, run_directory: Path, settings: Settings, stage: str, first_step: int):
        self._directory = run_directory
        self._file: MetricsFile | None = MetricsFile(run_directory, first_step)
        self._delivery: Delivery | None = None
        if settings.tracking.mlflow:
            self._delivery = Delivery(run_directory, settings, stage)
            self._delivery.status = "RUNNING"
            self._metrics = _Worker("MLflow", "metrics", f"they wait in {run_directory / METRICS_FILE}", self._send)
            self._artifacts = _Worker("the artifact store of MLflow", "files", "metrics are sent on", self._upload)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stop()
        else:
            self.close("FINISHED" if kind is None else "FAILED")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Records finite values of a step, in the order of steps. Takes no time and raises nothing."""
        assert self._file is not None
        self._file.log(step, metrics)

    def sync(self) -> None:
        """Has the disk keep what is recorded, even if the machine goes: a checkpoint rests on it."""
        assert self._file is not None
        self._file.sync()

    def stop(self) -> None:
        """`close` for a run that is to be continued, and a machine that may soon be gone."""
        self.close("KILLED", _FLUSH_S)

    def close(self, status: str = "FINISHED", deadline_s: float = 30.0) -> None:
        """Delivers what is waiting, as far as that works within ``deadline_s`` seconds, and says what remains.

        Args:
          status: MLflow's word for how the run ended: FINISHED, FAILED, or KILLED, as one that is to be continued.
          deadline_s: for all of it. A second call does nothing.
        """
        if self._file is None:
            return
        self._file.close()
        self._file = None
        if self._delivery is None:
            return
        until = time.monotonic() + deadline_s
        self._delivery.status = status
        # One after the other: files go to a run that is there.
        done = [worker.close(until) for worker in (self._metrics, self._artifacts)]
        self._delivery.stop()
        try:
            self._delivery.save()
            lines, files = self._delivery.waiting(), self._delivery.waiting_files(self._names())
        except OSError as error:
            err.print(f"[yellow]{self._directory}: {describe(error)}[/]", highlight=False, soft_wrap=True)
            return
        if all(done) and not lines and not files:
            return
        waiting = [f"{lines:,} lines of metrics"] * bool(lines) + files
        err.print(
            f"[yellow]not yet in MLflow:[/] {', '.join(waiting) or 'how the run ended'}; kept in {self._directory}. "
            f"Deliver later with: python -m wmtp_jax.sync {shlex.quote(str(self._directory))}",
            highlight=False,
            soft_wrap=True,
        )

    def _send(self, closing: bool) -> int:
        assert self._delivery is not None
        amounts: list[int] = []
        self._delivery.deliver(amounts.append)
        if closing:
            self._delivery.finish()
        return sum(amounts)

    def _upload(self, closing: bool) -> int:
        assert self._delivery is not None
        return self._delivery.upload(self._names() if closing else ARTIFACTS)

    def _names(self) -> tuple[str, ...]:
        """Files to upload at the end; a run that is to be continued is not at its end."""
        assert self._delivery is not None
        return ARTIFACTS if self._delivery.status == "KILLED" else (*ARTIFACTS, METRICS_FILE)


class _Worker:
    """A thread that does its work again and again: soon after it succeeded, after longer and longer pauses if not.

    Args:
      who: takes it, for messages.
      what: it takes, for messages.
      consequence: of a failure, for messages.
      work: given whether it is the last time, returns how much was done, and raises anything.
    """

    def __init__(self, who: str, what: str, consequence: str, work: Callable[[bool], int]):
        self._who, self._what, self._consequence, self._work = who, what, consequence, work
        self._closing, self._abandoned, self._succeeded = threading.Event(), False, False
        self._thread = threading.Thread(target=self._run, name=f"to {who}", daemon=True)
        self._thread.start()

    def close(self, until: float) -> bool:
        """Works a last time; returns whether that succeeded before ``until`` (of `time.monotonic`)."""
        self._closing.set()
        self._thread.join(max(until - time.monotonic(), 0.0))
        self._abandoned = self._thread.is_alive()
        return self._succeeded and not self._abandoned

    def _run(self) -> None:
        pause, failing = _FIRST_PAUSE, False
        while True:
            closing = self._closing.is_set()
            try:
                done = self._work(closing)
            except Exception as error:  # whatever a server does, training goes on
                if self._abandoned:
                    return
                if not failing:
                    self._warn(error)
                failing = True
                if closing:
                    return
                wait = max(pause, _REFUSED_PAUSE) if http_status(error) in (401, 403) else pause
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if failing and not self._abandoned:
                    err.print(f"{self._who} takes {self._what} again, {done:,} caught up", highlight=False)
                pause, failing, wait = _FIRST_PAUSE, False, _LOOK_EVERY
                if closing:
                    self._succeeded = True
                    return
            self._closing.wait(wait)

    def _warn(self, error: Exception) -> None:
        err.print(
            f"[yellow]{self._who} takes no {self._what}[/] ({describe(error)}); training goes on, and "
            f"{self._consequence}. It is tried again and again. Check MLFLOW_TRACKING_URI and credentials, or set "
            "tracking.mlflow=false.",
            highlight=False,
            soft_wrap=True,
        )
