"""``metrics.jsonl`` in the run directory: one JSON object a line, written by training and read by all others."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp_jax.console import err
from wmtp_jax.errors import Failure
from wmtp_jax.training.layout import METRICS_FILE

_TAIL = 2**20  # bytes, more than a line has


class MetricsFile:
    """Appends metrics, one line a call; a disk that takes none does not stop training.

    What cannot be written stays in memory, and is written in order when the disk takes it again.

    Args:
      run_directory: where the file is, or shall be.
      first_step: lines of later steps are cut off: a resumed run makes them again. The file is only shortened, which
        needs no space, so that a full disk loses nothing.

    Raises:
      Failure: the file can be neither made nor shortened, or a line in it is broken.
    """

    def __init__(self, run_directory: Path, first_step: int):
        self._path = run_directory / METRICS_FILE
        self._waiting = bytearray()  # whole lines
        self._failing = False
        try:
            self._file: int | None = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            whole = 0
            for end, line in metric_lines(self._path):
                if line["step"] > first_step:
                    break
                whole = end
            if os.fstat(self._file).st_size > whole:
                os.ftruncate(self._file, whole)
            if whole and os.pread(self._file, 1, whole - 1) != b"\n":
                os.write(self._file, b"\n")
            if first_step and not whole:
                err.print(f"[yellow]{self._path}: holds nothing up to step {first_step}[/], where the run goes on")
        except OSError as error:
            raise Failure(
                f"{self._path}: cannot be opened for writing ({error.strerror}); nothing in it was changed. See to the "
                "disk it is on (space, rights, whether it is mounted) and start again"
            ) from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends ``metrics`` (finite values) with the step and the time in milliseconds since 1970. Never raises."""
        line = {"step": step, "time": time.time_ns() // 1_000_000, **metrics}
        self._waiting += json.dumps(line).encode() + b"\n"
        self._write()

    def sync(self) -> None:
        """Has the disk keep what is written, even if the machine goes. Never raises."""
        if self._file is not None:
            try:
                os.fsync(self._file)
            except OSError as error:
                self._warn(error, "its last lines may be lost")

    def close(self) -> None:
        """Writes what is waiting; says what is lost where that does not work."""
        self._write()
        self.sync()  # a network disk tells only now that it is full
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if lines := self._waiting.count(b"\n"):
            err.print(f"[bold red]{self._path}: {lines} lines could not be written[/]", highlight=False, soft_wrap=True)

    def _write(self) -> None:
        lines, written = self._waiting.count(b"\n"), 0
        try:
            if self._file is None:
                self._file = _open_again(self._path)
            while written < len(self._waiting):
                written += os.write(self._file, self._waiting[written:])
            self._waiting.clear()
        except OSError as error:
            # A line that was begun is taken off and written anew, see _open_again.
            del self._waiting[: self._waiting.rfind(b"\n", 0, written) + 1]
            if self._file is not None:
                with contextlib.suppress(OSError):  # the error is told already
                    os.close(self._file)
                self._file = None
            if not self._failing:
                self._warn(error, "training goes on; metrics wait in memory, and are written when it works again")
            self._failing = True
            return
        if self._failing:
            self._failing = False
            err.print(f"{self._path}: is written again, {lines} lines caught up", highlight=False, soft_wrap=True)

    def _warn(self, error: OSError, consequence: str) -> None:
        reason = error.strerror or type(error).__name__
        err.print(f"[yellow]{self._path}: cannot be written[/] ({reason}); {consequence}", soft_wrap=True)


def _open_again(path: Path) -> int:
    """Opens the file for appending after its last whole line."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        size = os.fstat(handle).st_size
        tail = os.pread(handle, _TAIL, max(size - _TAIL, 0))
        if not tail.endswith(b"\n") and size:
            os.ftruncate(handle, size - len(tail) + tail.rfind(b"\n") + 1)
    except OSError:
        os.close(handle)
        raise
    return handle


def metric_lines(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines after byte ``start``, each with the byte at which it ends; a last line cut by a kill is passed over.

    A line has ``step``, ``time`` (milliseconds since 1970; runs of older versions have none) and metrics.

    Raises:
      Failure: another line than the last is broken.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        end = start
        while text := file.readline():
            if text == b"\n":  # a reader was faster than the end of a line
                end += 1
                continue
            try:
                line = json.loads(text)
                line["step"]
            except (ValueError, TypeError, KeyError) as error:
                if not text.endswith(b"\n") or not file.readline():
                    return
                file.seek(0)
                number = file.read(end).count(b"\n") + 1
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "no object with a step"
                raise Failure(f"{path} line {number}: broken JSON ({reason}); remove that line") from error
            end += len(text)
            yield end, line


def read_metrics(run_directory: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, see `metric_lines`; none where there is no such file."""
    return [line for _, line in metric_lines(run_directory / METRICS_FILE)]
