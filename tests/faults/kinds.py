"""The faults: each starts a session of a chain, or not, does it harm, and says what must be true afterwards."""

from __future__ import annotations

import resource
import signal
import time
from typing import NamedTuple

from faults.chain import Chain, Fault, Outcome
from faults.damage import damage
from faults.runs import EVERY, LAST, LAYOUTS
from faults.victim import Point, Process

from wmtp_jax.training.saved import saved_steps, step_metrics

_SAVE = "wmtp_jax.training.checkpoints:Checkpoints.save"
_CHECKSUMS = "wmtp_jax.training.checkpoints:write_checksums"
_REPLACE = "pathlib:Path.replace"
_METRICS_FILE = "wmtp_jax.training.metrics_file:MetricsFile"
_QUICK = {"wmtp_jax.training.saving:_RETRY_S": 0.3, "wmtp_jax.training.saving:_LAST_PAUSES_S": (0.3, 0.3, 0.3)}
_FILE_BYTES = 20_000  # smaller than the arrays of a checkpoint, larger than the log
_RESUME = "resume with: python -m wmtp_jax.train --stage"


class Kind(NamedTuple):
    """A fault.

    Attributes:
      inject: takes the chain, the fault's name, and how many more are planned; returns None where it has not come
        about, because the run was finished before.
      weight: how often, beside the others.
      needs: ``"space"``: a file system of its own; ``"elastic"``: a run that may change its devices;
        ``"tracked"``: one whose metrics go to MLflow.
    """

    inject: Fault
    weight: int = 2
    needs: str = ""


def _kill(chain: Chain, name: str, left: int) -> Outcome | None:
    process = chain.start()
    chain.reach_some_step(process, left)
    process.signal(signal.SIGKILL)
    return _killed(chain, name, process)


def _kill_in_set_up(chain: Chain, name: str, left: int) -> Outcome | None:
    process = chain.start()
    time.sleep(chain.random.uniform(0, 3))
    process.signal(signal.SIGKILL)
    return _killed(chain, name, process)


def _killed(chain: Chain, name: str, process: Process) -> Outcome | None:
    if process.wait(60) == 0:
        chain.settle(process)
        return None
    return chain.ended(name, process, (-signal.SIGKILL,))


def _kill_at(where: str, *, after: bool = False, calls: int = 1, match: str = "", delay: float = 0.0) -> Fault:
    """A kill at the first of some ``calls`` of a function, or up to ``delay`` seconds later."""

    def inject(chain: Chain, name: str, left: int) -> Outcome | None:
        call, later = chain.random.randint(1, calls), chain.random.uniform(0, delay)
        point = Point(where, "kill", after, call, match, later)
        return _killed(chain, name, chain.start(points=[point]))

    return inject


def _kill_over_owed_validation(chain: Chain, name: str, left: int) -> Outcome | None:
    """SIGTERM in a validation: the next session makes it first, and is killed as it writes that down."""
    process = chain.start(points=[Point("wmtp_jax.training.loop:place_rows", "term")])
    process.wait(60)
    chain.settle(process)
    steps = saved_steps(chain.run)
    if not steps or step_metrics(chain.run, steps[-1]):
        return None
    after = chain.random.random() < 0.5
    where = "wmtp_jax.training.saved:write_whole" if after else "wmtp_jax.training.checkpoints:add_metrics"
    return _killed(chain, name, chain.start(points=[Point(where, "kill", after)]))


def _ask(number: int, *, set_up: bool = False) -> Fault:
    """A signal at some instant."""

    def inject(chain: Chain, name: str, left: int) -> Outcome | None:
        # Before its handlers are there a signal ends the process as the system does.
        listens = Point("wmtp_jax.interruption:Interruption.__enter__", "mark", after=True)
        process = chain.start(points=[listens]) if set_up else chain.start()
        if set_up:
            chain.wait_for(process, process.struck.exists)
            time.sleep(chain.random.uniform(0, 2.5))
        else:
            chain.reach_some_step(process, left)
        process.signal(number)
        return _asked(chain, name, process)

    return inject


def _ask_at(where: str, action: str, *, after: bool = False) -> Fault:
    """A signal at the first call of a function."""

    def inject(chain: Chain, name: str, left: int) -> Outcome | None:
        process = chain.start(points=[Point(where, action, after)])
        chain.wait_for(process, process.struck.exists)
        return _asked(chain, name, process)

    return inject


def _asked(chain: Chain, name: str, process: Process) -> Outcome | None:
    outcome = chain.ended(name, process, (0,), at_most=0)
    if saved_steps(chain.run)[-1:] == [LAST] and _RESUME not in process.text:
        chain.outcomes.remove(outcome)  # the last step was done already
        return None
    if _RESUME not in process.text:
        outcome.wrong.append(f"{_RESUME!r} was not said; see {process.log}")
    return outcome


def _ask_twice(chain: Chain, name: str, left: int) -> Outcome | None:
    process = chain.start(points=[Point(_CHECKSUMS, "twice")])
    chain.wait_for(process, process.struck.exists)
    return chain.ended(name, process, (128 + signal.SIGTERM,), "a second signal: ended at once")


def _second_process(chain: Chain, name: str, left: int) -> Outcome | None:
    first = chain.start(points=[Point(_SAVE, "hold")])
    with chain.held(first):
        second = chain.start()
        code = second.wait(60)
        first.signal(signal.SIGTERM)
    outcome = chain.ended(name, first, (0,), at_most=0)
    if code != 2 or "another process is at work on this run" not in second.text or "Traceback" in second.text:
        outcome.wrong.append(f"the second process ended with {code}; see {second.log}")
    return outcome


def _start_to_fill(chain: Chain) -> Process:
    """A session whose disk is full from its first save on."""
    process = chain.start(points=[Point(_SAVE, "hold")], constants=_QUICK)
    with chain.held(process) as there:
        if there:
            _limit_files(process, _FILE_BYTES)
    return process


def _full_disk(chain: Chain, name: str, left: int) -> Outcome | None:
    """A save fails; there is room again a moment later, and the run is saved without having been stopped."""
    process = _start_to_fill(chain)
    chain.wait_for(process, lambda: "could not be saved" in process.text)
    steps = saved_steps(chain.run)
    _limit_files(process, resource.RLIM_INFINITY)
    again = chain.wait_for(process, lambda: saved_steps(chain.run)[-1:] != steps[-1:])
    process.signal(signal.SIGTERM)
    outcome = chain.ended(name, process, (0,), r"could not be saved.*the disk is full", at_most=0)
    if not again:
        outcome.wrong.append(f"it was not saved again; see {process.log}")
    return outcome


def _disk_stays_full(chain: Chain, name: str, left: int) -> Outcome | None:
    process = _start_to_fill(chain)
    says = r"the last good checkpoint is that of|there is no checkpoint yet"
    outcome = chain.ended(name, process, (1,), rf"({says}).*: what was trained after that is lost", at_most=LAST)
    outcome.exit_seconds = None
    return outcome


def _limit_files(process: Process, size: int) -> None:
    """What ``ulimit -f`` does, from outside: every write beyond fails as on a full disk."""
    if process.code is None:
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, hard))


def _full_file_system(chain: Chain, name: str, left: int) -> Outcome | None:
    """Not a byte is free, for metrics.jsonl neither, over a save and longer."""
    assert chain.space is not None
    process = chain.start(points=[Point(_SAVE, "hold")], constants=_QUICK)
    with chain.held(process):
        chain.space.fill()
    chain.wait_for(process, lambda: "could not be saved" in process.text)
    steps = saved_steps(chain.run)
    chain.space.free()
    chain.wait_for(process, lambda: saved_steps(chain.run)[-1:] != steps[-1:])
    process.signal(signal.SIGTERM)
    return chain.ended(name, process, (0,), r"could not be saved.*the disk is full", at_most=0)


def _read_only(chain: Chain, name: str, left: int) -> Outcome | None:
    assert chain.space is not None
    chain.space.remount("ro")
    outcome = chain.ended(name, chain.start(), (2,), r"cannot be written: Read-only file system", at_most=2 * EVERY)
    chain.space.remount("rw")
    outcome.exit_seconds = None
    return outcome


def _other_devices(chain: Chain, name: str, left: int) -> Outcome | None:
    process = chain.start()
    chain.reach_some_step(process, left)
    process.signal(signal.SIGTERM)
    outcome = _asked(chain, name, process)
    chain.layout = chain.random.choice([layout for layout in LAYOUTS if layout != chain.layout])
    return outcome


def _mlflow(mode: str, number: int, *, at_start: bool) -> Fault:
    """MLflow fails from the start or from some step on, until the session is ended by a signal."""

    def inject(chain: Chain, name: str, left: int) -> Outcome | None:
        assert chain.proxy is not None
        chain.proxy.mode = mode if at_start else "up"
        process = chain.start()
        chain.reach_some_step(process, left)
        chain.proxy.mode = mode
        if chain.random.random() < 0.5:
            time.sleep(chain.random.uniform(0, 1))  # MLflow is written to once a second
        process.signal(number)
        outcome = _killed(chain, name, process) if number == signal.SIGKILL else _asked(chain, name, process)
        chain.proxy.mode = "up"
        return outcome

    return inject


FAULTS = {
    "SIGKILL at some instant": Kind(_kill, 6),
    "SIGKILL before training begins": Kind(_kill_in_set_up),
    "SIGKILL as a save begins": Kind(_kill_at(_SAVE, after=True, calls=2)),
    "SIGKILL in a save, no checksums": Kind(_kill_at(_CHECKSUMS, calls=2)),
    "SIGKILL in a save, before commit": Kind(_kill_at(_CHECKSUMS, after=True, calls=2)),
    "SIGKILL as an old step is removed": Kind(_kill_at("wmtp_jax.training.saved:shutil.rmtree", match=r"\.removed")),
    "SIGKILL in a validation": Kind(_kill_at("wmtp_jax.training.loop:place_rows", calls=6)),
    "SIGKILL over an owed validation": Kind(_kill_over_owed_validation),
    "SIGKILL in an accumulation": Kind(
        _kill_at("wmtp_jax.training.loop:_Trainer.scored", after=True, calls=12, delay=0.01)
    ),
    "SIGKILL as run.json is written": Kind(_kill_at(_REPLACE, match=r"run\.json|settings\.yaml", calls=3)),
    "SIGKILL after run.json is written": Kind(_kill_at(_REPLACE, match=r"run\.json", after=True, calls=2)),
    "SIGKILL as metrics are shortened": Kind(_kill_at(f"{_METRICS_FILE}.__init__", after=True)),
    "SIGTERM at some instant": Kind(_ask(signal.SIGTERM), 4),
    "SIGINT at some instant": Kind(_ask(signal.SIGINT), 3),
    "SIGTERM before training begins": Kind(_ask(signal.SIGTERM, set_up=True)),
    "SIGINT before training begins": Kind(_ask(signal.SIGINT, set_up=True)),
    "SIGTERM in a save": Kind(_ask_at(_CHECKSUMS, "term")),
    "SIGINT in a validation": Kind(_ask_at("wmtp_jax.training.loop:place_rows", "int")),
    "a second SIGTERM in a save": Kind(_ask_twice),
    "a second process": Kind(_second_process, 1),
    "full disk over a save": Kind(_full_disk),
    "full disk that stays full": Kind(_disk_stays_full, 1),
    "full file system": Kind(_full_file_system, needs="space"),
    "read-only file system at start": Kind(_read_only, needs="space"),
    "weights: a byte flipped": Kind(damage("flip", "[pa][ad]*/**/*")),
    "weights: a file cut short": Kind(damage("cut", "[pa][ad]*/**/*"), 1),
    "weights: a file gone": Kind(damage("remove", "[pa][ad]*/**/*"), 1),
    "optimizer: a byte flipped": Kind(damage("flip", "optimizer/**/*")),
    "optimizer: a file cut short": Kind(damage("cut", "optimizer/**/*"), 1),
    "optimizer: a file gone": Kind(damage("remove", "optimizer/**/*"), 1),
    "progress: a byte flipped": Kind(damage("flip", "progress/metadata"), 1),
    "metrics: a file gone": Kind(damage("remove", "metrics/metrics"), 1),
    "checksums: a byte flipped": Kind(damage("flip", "checksums.json"), 1),
    "checksums: cut short": Kind(damage("cut", "checksums.json"), 1),
    "checksums: gone": Kind(damage("remove", "checksums.json", harmless=True), 1),
    "metadata: cut short": Kind(damage("cut", "_CHECKPOINT_METADATA"), 1),
    "metadata: gone": Kind(damage("remove", "_CHECKPOINT_METADATA"), 1),
    "MLflow away at the start": Kind(_mlflow("away", signal.SIGTERM, at_start=True), needs="tracked"),
    "MLflow away in mid-run": Kind(_mlflow("away", signal.SIGTERM, at_start=False), needs="tracked"),
    "MLflow answers 401": Kind(_mlflow("401", signal.SIGTERM, at_start=True), 1, needs="tracked"),
    "MLflow answers 500 in mid-run": Kind(_mlflow("500", signal.SIGTERM, at_start=False), 1, needs="tracked"),
    "MLflow is slow": Kind(_mlflow("slow", signal.SIGTERM, at_start=True), needs="tracked"),
    "MLflow's answers are lost": Kind(_mlflow("cut", signal.SIGTERM, at_start=False), needs="tracked"),
    "MLflow's answers are lost, SIGKILL": Kind(_mlflow("cut", signal.SIGKILL, at_start=True), needs="tracked"),
    "MLflow up, SIGKILL": Kind(_mlflow("up", signal.SIGKILL, at_start=True), needs="tracked"),
    "restart on other devices": Kind(_other_devices, 6, needs="elastic"),
}
