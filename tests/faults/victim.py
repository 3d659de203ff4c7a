"""Processes that train, with a fault inside where it must come at an exact instant."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# All that takes long to import: a process that is forked here has it already. No jax backend is up then.
import tiny
import transformers.models.auto.tokenization_auto  # noqa: F401

import wmtp_jax.processes
import wmtp_jax.train
import wmtp_jax.training.loop
import wmtp_jax.training.run
from wmtp_jax.errors import run_command

_HOLD_S = 120.0
_PATH = f"{tiny.ROOT / 'tests'}:{tiny.ROOT}"


class Point(NamedTuple):
    """A call in the training process at which something happens to it.

    Attributes:
      where: the function, e.g. ``"wmtp_jax.training.checkpoints:Checkpoints.save"``.
      action: ``kill``, ``term``, ``int``: that signal. ``twice``: SIGTERM, and again 0.4 s later, while it waits here.
        ``hold``: waits here until the file ``.held`` beside the log, which it makes, is removed.
        ``mark``: makes the file ``.struck``, as the signals do.
        ``pace``: every call takes ``delay`` seconds longer.
      after: it happens when the function returns, not when it is called.
      call: in which of its calls.
      match: of those whose arguments show this pattern.
      delay: seconds; it then happens while the process goes on.
    """

    where: str
    action: str
    after: bool = False
    call: int = 1
    match: str = ""
    delay: float = 0.0


def arm(point: Point, held: Path) -> None:
    """Puts the point into this process."""
    module, _, path = point.where.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)

    def happens() -> None:
        if point.delay:
            threading.Timer(point.delay, _act, (point.action, held)).start()
        else:
            _act(point.action, held)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if point.action == "pace":
            time.sleep(point.delay)
            return original(*args, **kwargs)
        hit = (not point.match or re.search(point.match, repr(args))) and next(calls) == point.call
        if hit and not point.after:
            happens()
        result = original(*args, **kwargs)
        if hit and point.after:
            happens()
        return result

    setattr(owner, name, wrapped)


def _act(action: str, held: Path) -> None:
    number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "twice": signal.SIGTERM, "int": signal.SIGINT}
    (held if action == "hold" else held.with_suffix(".struck")).touch()
    if action in number:
        os.kill(os.getpid(), number[action])
    if action == "twice":
        time.sleep(0.4)
        os.kill(os.getpid(), number[action])
    end = time.monotonic() + _HOLD_S
    while action in ("hold", "twice") and (held.exists() or action == "twice"):
        if time.monotonic() > end:
            os._exit(99)
        time.sleep(0.005)


def run(
    argv: Sequence[str], log: Path, devices: int, points: Sequence[Point], constants: dict[str, Any], numb: bool = False
) -> None:
    """Trains in this process.

    Args:
      argv: arguments of ``wmtp_jax.train``.
      log: takes all that it prints.
      devices: how many the CPU pretends to be.
      points: faults inside.
      constants: module constants that are changed, e.g. ``{"wmtp_jax.training.saving:_RETRY_S": 1.0}``.
      numb: the reference gives NaN for one solution in ten.
    """
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    for name, value in constants.items():
        module, _, constant = name.partition(":")
        assert hasattr(importlib.import_module(module), constant)
        setattr(importlib.import_module(module), constant, value)
    for point in points:
        arm(point, log.with_suffix(".held"))
    if numb:
        _spoil_scores()
    run_command(wmtp_jax.train.main, list(argv))


def _spoil_scores() -> None:
    from wmtp_jax.data.scores import ScoreFile

    original = ScoreFile.of

    def of(self: ScoreFile, split: str, number: int) -> Any:
        scores = original(self, split, number)
        return scores * float("nan") if number % 10 == 0 else scores

    ScoreFile.of = of  # type: ignore[method-assign]


class Process:
    """A training process, forked from one that has imported everything, or a fresh interpreter.

    Args:
      argv, log, devices, points, constants, numb: see `run`.
      fresh: ``python -m wmtp_jax.train``, as people start it; without any of ``points``, ``constants``, ``numb``.
      prefix: a command that starts the fresh interpreter, e.g. ``nsenter``.
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        *,
        devices: int = 1,
        points: Sequence[Point] = (),
        constants: dict[str, Any] | None = None,
        numb: bool = False,
        fresh: bool = False,
        prefix: Sequence[str] = (),
    ):
        self.log, self.held, self.struck = log, log.with_suffix(".held"), log.with_suffix(".struck")
        for path in (self.held, self.struck):
            path.unlink(missing_ok=True)
        self._popen: subprocess.Popen[bytes] | None = None
        how = (list(argv), log, devices, tuple(points), constants or {}, numb)
        if not fresh and not prefix:
            self._forked = _context().Process(target=run, args=how, daemon=True)
            self._forked.start()
            self.pid = self._forked.pid
            return
        plain = not (points or constants or numb)
        start = [sys.executable, "-m", "wmtp_jax.train", *argv] if plain else [sys.executable, "-m", "faults.victim"]
        more = [] if plain else [json.dumps([how[0], str(log), *how[2:]])]
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [*prefix, *start, *more],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **flags, "PYTHONPATH": _PATH},
            )
        self.pid = self._popen.pid

    def signal(self, number: int) -> None:
        """Sends a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            if self.code is None:
                os.kill(self.pid, number)

    @property
    def code(self) -> int | None:
        """Its exit code, below zero for a signal; None while it runs."""
        return self._popen.poll() if self._popen else self._forked.exitcode

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; None where it has not come in that time, and then it is killed."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(0.005)
        code = self.code
        if code is None:
            self.signal(signal.SIGKILL)
        return code

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text() if self.log.exists() else ""


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults.victim"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = _PATH
    multiprocessing.forkserver.ensure_running()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before
    return context


if __name__ == "__main__":
    argv, log, devices, points, constants, numb = json.loads(sys.argv[1])
    run(argv, Path(log), devices, [Point(*point) for point in points], constants, numb)
