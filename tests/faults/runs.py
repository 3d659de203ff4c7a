"""The runs that faults are injected into: every stage on tiny data, and how two runs are compared."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
import tiny
from faults.tracker import Server
from faults.victim import Process
from metric_lines import untimed_metrics

from wmtp_jax.models import store
from wmtp_jax.training.manifest import read_record
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.saved import best_step, saved_steps, step_directory, step_metrics, step_progress

EVERY = 6  # updates between two saves of the schedule
LAST = 50  # the last step of all runs


class Kind(NamedTuple):
    """A run that is interrupted.

    Attributes:
      stage: of it.
      settings: beside the usual; ``{name}`` stands for the reference run of that kind.
      rests_on: kinds of which there must be a reference run.
      elastic: its sessions run on other devices; so it is equal to its reference within 1e-5, not bit for bit.
      numb: some of its scores are NaN.
      tracked: its metrics go to an MLflow server that fails.
    """

    stage: str
    settings: tuple[str, ...] = ()
    rests_on: tuple[str, ...] = ()
    elastic: bool = False
    numb: bool = False
    tracked: bool = False


_POLICY = "model.path={baseline}"
_BY_TIME = "checkpoint.save_every_minutes=0.008"
KINDS = {
    "baseline": Kind("baseline"),
    "by time": Kind("baseline", (_BY_TIME,)),
    "critic": Kind("critic", (_POLICY,), ("baseline",)),
    "reference": Kind("reference", ("model.architecture.n_future_tokens=1",)),
    "verifiable": Kind(
        "verifiable",
        (
            _POLICY,
            "experiment.critic_checkpoint={critic}",
            "weighting.whiten_statistics=moving",
            "weighting.whiten_warmup_steps=9",
        ),
        ("baseline", "critic"),
    ),
    "rho1": Kind("rho1", (_POLICY, "experiment.reference_model={reference}"), ("baseline", "reference")),
    "lora": Kind(
        "baseline",
        (_POLICY, _BY_TIME, "training.train=lora", "lora={{rank: 2, alpha: 4, dropout: 0.1}}"),
        ("baseline",),
    ),
    "not finite": Kind(
        "rho1",
        (
            _POLICY,
            "experiment.reference_model={reference}",
            "weighting.scores={scores}",
            "weighting.selection=soft",
            "training.max_skipped_steps=30",
        ),
        ("baseline", "reference", "scores"),
        numb=True,
    ),
    "tracked": Kind("baseline", tracked=True),
    "elastic": Kind("baseline", ("training.adam_eps=1e-3", "training.learning_rate=1e-3"), elastic=True),
}


class Layout(NamedTuple):
    """Devices and how rows are divided among them: eight rows a step whatever it is."""

    devices: int
    mesh: tuple[int, int, int]
    accumulation: int

    def settings(self) -> list[str]:
        data, fsdp, tensor = self.mesh
        return [
            f"runtime.mesh={{data: {data}, fsdp: {fsdp}, tensor: {tensor}}}",
            f"training.batch_size={8 // (data * fsdp * self.accumulation)}",
            f"training.gradient_accumulation_steps={self.accumulation}",
        ]


ONE = Layout(1, (1, 1, 1), 2)
LAYOUTS = (ONE, Layout(4, (1, 4, 1), 2), Layout(2, (2, 1, 1), 1), Layout(4, (2, 1, 2), 2), Layout(1, (1, 1, 1), 4))


class Kit:
    """Data, reference runs and compiled programs that the runs share.

    Args:
      folder: for all of it.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self._made: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made by the first thread that asks for it."""
        with self._locks.setdefault(name, threading.Lock()):
            if name not in self._made:
                self._made[name] = make()
            return self._made[name]

    @property
    def data(self) -> Path:
        """The data set."""
        return self._once("data", self._make_data)

    def _make_data(self) -> Path:
        (self.folder / "tiny").mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            return tiny.make_data(self.folder / "tiny")

    @property
    def server(self) -> Server:
        """MLflow, in which nothing fails."""
        return self._once("server", lambda: Server(self.folder / "mlflow"))

    def close(self) -> None:
        """Stops the server, if there is one."""
        if "server" in self._made:
            self.server.close()

    def arguments(self, name: str, directory: Path, layout: Layout = ONE, *more: str) -> list[str]:
        """Arguments of ``wmtp_jax.train`` for a run of a kind."""
        kind = KINDS[name]
        places = {other: self.reference(other) for other in kind.rests_on}
        chosen = [setting.format(**places) for setting in kind.settings]
        usual = tiny.overrides(self.data, self.folder / "xla")
        usual += ["training.n_epochs=4", "checkpoint.save_total_limit=2"]
        place = [f"checkpoint.save_every_steps={EVERY}", f"checkpoint.save_dir={directory}"]
        return tiny.arguments(kind.stage, usual, *chosen, *layout.settings(), *place, *more)

    def reference(self, name: str) -> Path:
        """The run of a kind that nothing has interrupted (``scores``: those of the reference model)."""
        where = self.folder / "references" / name
        return self._once(
            f"reference {name}", lambda: self._score(where) if name == "scores" else self._train(name, where)
        )

    def _train(self, name: str, where: Path) -> Path:
        where.parent.mkdir(parents=True, exist_ok=True)
        process = Process(self.arguments(name, where), where.with_suffix(".log"), numb=KINDS[name].numb)
        code = process.wait(600)
        assert code == 0, f"{where}: the reference run ended with {code}:\n{process.text}"
        skipped = [line.get("train/skipped_steps", 0) for line in read_metrics(where)]
        assert saved_steps(where)[-1] == LAST
        assert bool(max(skipped)) is KINDS[name].numb
        return where

    def _score(self, where: Path) -> Path:
        from wmtp_jax import score

        path = where.with_suffix(".arrow")
        arguments = ["--model", str(self.reference("reference")), "--data", str(self.data), "--output", str(path)]
        with contextlib.redirect_stdout(io.StringIO()):
            assert score.main([*arguments, "--max-length", "64", "--json"]) == 0
        return path


def reached(run: Path) -> int:
    """The last step in ``metrics.jsonl``."""
    return int(max((line["step"] for line in read_metrics(run)), default=0)) if run.is_dir() else 0


def differences(run: Path, reference: Path, *, elastic: bool, all_saved: bool = True) -> list[str]:
    """What is other in a finished run than in its reference; times aside.

    Without ``all_saved`` the disk was full over a save, so that a step of the schedule may not be there.
    """
    found = []
    steps = saved_steps(run)
    if steps[-1:] != [LAST]:
        return [f"the saved steps are {steps}, without {LAST}"]
    for step in {LAST, best_step(reference) or LAST} if all_saved else {LAST}:
        for item in (store.PARAMS_FOLDER, store.ADAPTER_FOLDER, "optimizer"):
            one, other = _arrays(run, step, item), _arrays(reference, step, item)
            if one.keys() != other.keys():
                found.append(f"step {step}, {item}: {sorted(one.keys() ^ other.keys())} are in one alone")
            found += [
                f"step {step}, {item}: {name} differs by {_distance(one[name], other[name]):.3g}"
                for name in sorted(one.keys() & other.keys())
                if not _alike(one[name], other[name], elastic)
            ]
        if _counts(step_progress(run, step)) != _counts(step_progress(reference, step)):
            found.append(f"step {step}: progress {step_progress(run, step)}, {step_progress(reference, step)} there")
    validated = [[step for step in saved_steps(where) if step_metrics(where, step)] for where in (run, reference)]
    if (all_saved and validated[0] != validated[1]) or (not elastic and best_step(run) != best_step(reference)):
        found.append(f"validated steps are {validated[0]}, best {best_step(run)}; {validated[1]} there")
    lines, wanted = untimed_metrics(run), untimed_metrics(reference)
    if [(line["step"], *sorted(line)) for line in lines] != [(line["step"], *sorted(line)) for line in wanted]:
        found.append("metrics.jsonl has other lines or names")
    else:
        found += [
            f"metrics.jsonl, step {line['step']}: {name} is {value}, {wanted_line[name]} there"
            for line, wanted_line in zip(lines, wanted, strict=True)
            for name, value in line.items()
            if not _alike(np.asarray(value), np.asarray(wanted_line[name]), elastic)
        ]
    sessions: list[dict[str, Any]] = (read_record(run) or {}).get("sessions", [])
    # A kill after the last save may have taken its last word from the last session.
    ends = [entry.get("ended", "no word") for entry in sessions]
    if (
        any("ended" not in entry for entry in sessions[:-1])
        or not ends
        or not ends[-1].startswith(("no word", "finished"))
    ):
        found.append(f"run.json: sessions ended {ends}")
    left = [path.name for path in run.rglob("*") if ".orbax-checkpoint-tmp" in path.name or ".removed" in path.name]
    return found + [f"{name} was left behind" for name in left[:1]]


def _arrays(run: Path, step: int, item: str) -> dict[str, np.ndarray]:
    folder = step_directory(run, step)
    if not (folder / item).is_dir():
        return {}
    metadata = json.loads((folder / item / "_METADATA").read_text())
    leaves = metadata["tree_metadata"].values()
    names = [
        ".".join(key["key"] for key in x["key_metadata"]) for x in leaves if x["value_metadata"]["value_type"] != "None"
    ]
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    kvstore = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{(folder / item).absolute()}/"}}
    opened = {name: ts.open({"driver": driver, "kvstore": {**kvstore, "path": f"{name}/"}}).result() for name in names}
    assert opened
    return {name: array.read().result() for name, array in opened.items()}


def _alike(one: np.ndarray, other: np.ndarray, elastic: bool) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if elastic:
        return np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-5, atol=1e-5)
    return one.tobytes() == other.tobytes()


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - other).max()) if one.shape == other.shape else float("inf")


def _counts(progress: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in progress.items() if name != "seconds"}
