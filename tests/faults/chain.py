"""A run that is interrupted again and again until it is finished, and what each interruption has cost."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.runs import EVERY, KINDS, LAST, ONE, Kit, differences, reached
from faults.tracker import Proxy, undelivered
from faults.victim import Point, Process

from wmtp_jax.training.saved import find_damage, saved_steps, step_directory

PATIENCE_S = 180.0  # guards against hanging; nothing here takes a tenth of it on an idle machine


# Steps as long as a save: else most instants are in saves and validations.
_PACE = Point("wmtp_jax.training.records:Records.step", "pace", delay=0.06)


@dataclass
class Outcome:
    """A fault that was injected.

    Attributes:
      fault: its name.
      reached: the last step that was trained before it.
      stands: the step that the run is to go on from.
      at_most: steps that it may cost.
      says: pattern that the next sessions must print, until one goes on with the run.
      heard: what they have printed.
      lost: steps that it has cost; None: the next session has not told yet.
      exit_seconds: from a signal to the end of the process.
      wrong: what was other than it must be; empty: survived.
    """

    fault: str
    reached: int
    stands: int
    at_most: int
    says: str = ""
    heard: str = ""
    lost: int | None = None
    exit_seconds: float | None = None
    wrong: list[str] = field(default_factory=list)


class Space:
    """A small file system of its own, in a user namespace, which can be full or read-only.

    Args:
      folder: where the processes in the namespace see it.
      size: as ``mount`` takes it.

    Attributes:
      works: whether this system has such namespaces for us.
      prefix: a command that starts others in it.
      view: where we see it.
    """

    def __init__(self, folder: Path, size: str = "6m"):
        folder.mkdir(parents=True, exist_ok=True)
        script = f"mount -t tmpfs -o size={size} none '{folder}' && echo ready && exec sleep 100000"
        command = ["unshare", "-Urm", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._holder.stdout is not None
        self.prefix = ["nsenter", "--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"]
        self._folder = folder
        self.view = Path(f"/proc/{self._holder.pid}/root{folder}")
        self.works = self._holder.stdout.readline() == "ready\n" and os.access(self.view, os.W_OK)

    def remount(self, how: str) -> None:
        subprocess.run([*self.prefix, "mount", "-o", f"remount,{how}", str(self._folder)], check=True)

    def fill(self) -> None:
        """Leaves no byte free."""
        with contextlib.suppress(OSError), (self.view / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    def free(self) -> None:
        (self.view / "ballast").unlink()

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Chain:
    """Sessions of one run.

    Args:
      kit: data and references.
      name: the kind of run.
      folder: for the run and the logs of its sessions.
      seed: of everything random about it.
      fresh: share of the sessions that start a new interpreter (where nothing is patched into them).
      space: the file system that the run directory lies on; None: the usual one.
    """

    def __init__(self, kit: Kit, name: str, folder: Path, seed: str, *, fresh: float = 0.0, space: Space | None = None):
        self.kit, self.name, self.folder, self.space = kit, name, folder, space
        self.kind, self.random, self.layout = KINDS[name], random.Random(seed), ONE
        self.directory = folder / "disk/run" if space else folder / "run"
        self.run = space.view / "run" if space else self.directory
        self.outcomes: list[Outcome] = []
        self._fresh, self._sessions = fresh, 0
        self.proxy = Proxy(kit.server) if self.kind.tracked else None
        self._experiment = folder.name
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, *more: str, **how: Any) -> Process:
        """Starts a session; ``how``: see `Process`."""
        self._sessions += 1
        if self.proxy:
            uri = f"tracking.uri={self.proxy.address}"
            more = (*more, "tracking.mlflow=true", uri, f"tracking.experiment={self._experiment}")
        arguments = self.kit.arguments(self.name, self.directory, self.layout, *more)
        log = self.folder / f"{self._sessions:02d}.log"
        fresh = not (how or self.kind.numb) and self.random.random() < self._fresh
        if not fresh:
            how["points"] = [*how.get("points", ()), _PACE]
        how["prefix"] = self.space.prefix if self.space else ()
        return Process(arguments, log, devices=self.layout.devices, numb=self.kind.numb, fresh=fresh, **how)

    @property
    def saved(self) -> list[int]:
        """The saved steps; 0, the beginning, is always there."""
        return [0, *saved_steps(self.run)]

    @property
    def sound(self) -> int:
        """The newest step that is as it was written, or 0."""
        steps = [step for step in self.saved[1:] if find_damage(step_directory(self.run, step)) is None]
        return max(steps, default=0)

    @property
    def is_over(self) -> bool:
        """Whether too little is left to be interrupted."""
        return self.saved[-1] >= LAST - 3

    def reach_some_step(self, process: Process, left: int) -> None:
        """Waits until the session has come to some step, ``left`` more faults being planned, and a moment longer."""
        here = self.saved[-1]
        target = here + self.random.randint(1, max(2, (LAST - 2 - here) // (left + 1) * 2))
        self.wait_for(process, lambda: trained(process) >= target)
        time.sleep(self.random.uniform(0, 0.03))

    def wait_for(self, process: Process, happened: Callable[[], Any]) -> bool:
        """Waits for something, or for the end of the process; returns whether it has happened."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if happened():
                return True
            if process.code is not None:
                return bool(happened())
            time.sleep(0.005)
        return False

    @contextlib.contextmanager
    def held(self, process: Process) -> Iterator[bool]:
        """While a process waits at its `Point`; gives whether it has come there."""
        yield self.wait_for(process, process.held.exists)
        process.held.unlink(missing_ok=True)

    def ended(
        self, fault: str, process: Process, codes: tuple[int, ...], says: str = "", *, at_most: int = 2 * EVERY
    ) -> Outcome:
        """Waits for the end of a session into which a fault was injected, and judges it."""
        asked = time.monotonic()
        code = process.wait(PATIENCE_S)
        seconds = time.monotonic() - asked
        self.settle(process)
        outcome = self.note(fault, at_most=at_most)
        if code != -signal.SIGKILL:
            outcome.exit_seconds = seconds
        text = process.text
        if "training: " not in text:
            outcome.reached = outcome.stands  # what came after that was lost before
        if code not in codes:
            outcome.wrong.append(f"exit code {code} instead of {codes}")
        if "Traceback" in text:
            outcome.wrong.append("a traceback was shown")
        if not re.search(says, text, re.DOTALL):
            outcome.wrong.append(f"{says!r} was not said")
        if outcome.wrong:
            outcome.wrong.append(f"see {process.log}")
        return outcome

    def note(self, fault: str, *, at_most: int, stands: int | None = None, says: str = "") -> Outcome:
        """Writes down a fault; the next session tells what it has cost."""
        outcome = Outcome(fault, reached(self.run), self.sound if stands is None else stands, at_most, says)
        self.outcomes.append(outcome)
        return outcome

    def settle(self, process: Process) -> None:
        """Reads from what a session has printed where it began, which is what the faults before it have cost."""
        text = process.text
        waiting = [outcome for outcome in self.outcomes if outcome.lost is None]
        for outcome in waiting:
            outcome.heard += text
        found = re.search(r"continuing .+ from step (\d+)|is finished: step (\d+) of", text)
        if not found and "training: " not in text:
            return  # it did not come that far
        began = int(found[1] or found[2]) if found else 0
        for outcome in waiting:
            outcome.lost = max(outcome.reached - began, 0)
            if began != outcome.stands:
                outcome.wrong.append(f"it went on from step {began}, not {outcome.stands}; see {process.log}")
            if outcome.lost > outcome.at_most:
                outcome.wrong.append(f"{outcome.lost} steps were lost, more than {outcome.at_most}; see {process.log}")
            if not re.search(outcome.says, outcome.heard):
                outcome.wrong.append(f"{outcome.says!r} was not said up to {process.log}")

    def finish(self) -> list[str]:
        """Lets the run end, and compares it with its reference; returns what is other."""
        if self.proxy:
            self.proxy.mode = "up"
        process = self.start()
        code = process.wait(PATIENCE_S)
        self.settle(process)
        wrong = [f"the last session ended with {code}; see {process.log}"] if code != 0 else []
        if not wrong:
            wrong = differences(
                self.run,
                self.kit.reference(self.name),
                elastic=self.kind.elastic,
                all_saved=not any("full" in outcome.fault for outcome in self.outcomes),
            )
        if self.proxy and not wrong:
            command = [sys.executable, "-m", "wmtp_jax.sync", str(self.run)]
            synced = subprocess.run(command, capture_output=True, text=True, check=False)
            wrong = undelivered(self.run, self.kit.server, self._experiment)
            if synced.returncode:
                wrong.append(f"sync ended with {synced.returncode}: {synced.stderr[-500:]}")
        for outcome in self.outcomes:
            if outcome.lost is None:
                outcome.wrong.append("no session has told where it went on")
            outcome.wrong += wrong
        return wrong

    def close(self, *, keep: bool) -> None:
        """Ends the file system of its own and the proxy, and removes the folder."""
        if self.proxy:
            self.proxy.close()
        if self.space:
            if keep:
                shutil.copytree(self.run, self.folder / "run", dirs_exist_ok=True)
            self.space.close()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def trained(process: Process) -> int:
    """The step that a session has come to, by its progress lines; -1 before the first."""
    lines = re.findall(r"^training: (\d+)/(\d+) ", process.text, re.MULTILINE)
    return LAST - int(lines[-1][1]) + int(lines[-1][0]) if lines else -1


# Takes the chain, the name of the fault, and how many faults more are planned.
Fault = Callable[[Chain, str, int], Outcome | None]
