"""What a run says of its steps: figures for people and for files, and whether they are still sound."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wmtp_jax.console import err
from wmtp_jax.data.batches import Batch
from wmtp_jax.errors import Failure
from wmtp_jax.files import write_whole
from wmtp_jax.parallel.distributed import is_first
from wmtp_jax.training.layout import BAD_BATCHES_FILE
from wmtp_jax.training.run import Run
from wmtp_jax.training.saved import saved_steps
from wmtp_jax.training.throughput import device_memory_gb, forward_flops, matmul_peak, update_flops
from wmtp_jax.training.tracking import Tracking

_SHOWN = 8  # of each list of a message


class Records:
    """Turns the figures of finished steps into records (where there is a ``tracking``); keeps the totals of the run.

    Args:
      run: which run.
      tracking: where records go; None in processes that write none.
      progress: the totals so far.
      first_step: where the run continues; what stands of later steps in `BAD_BATCHES_FILE` is made again.
      wait: waits for the saves in flight.
    """

    def __init__(
        self,
        run: Run,
        tracking: Tracking | None,
        progress: dict[str, Any],
        first_step: int,
        wait: Callable[[], None],
    ):
        self.progress = {"skipped": 0, "empty": 0, **progress}
        self._warned, self._unwritten = False, False
        self._run, self._tracking, self._wait = run, tracking, wait
        if is_first():
            _cut_batches(run.directory / BAD_BATCHES_FILE, first_step)
        self._peak = matmul_peak(run.settings.model.compute_dtype) * run.schedule.devices

    def start(self) -> None:
        """Starts the clock of the next step; what came before is no part of it."""
        self._clock, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What is inside waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    def step(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> str:
        """Waits for a step, records it, returns a short note for the progress bar."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        waited, self._waited = self._waited, 0.0
        self._check_finite(step, values, batch)
        tokens = int(values.pop("train/tokens"))
        self.progress["tokens"] += tokens
        self.progress["seconds"] += seconds
        self.progress["skipped"] = int(values["train/skipped_steps"])
        self.progress["empty"] += values["train/target_tokens"] == 0
        if (head_rate := self._run.settings.critic.head_learning_rate) is not None and self._run.objective.value_loss:
            ratio = head_rate / self._run.settings.training.learning_rate
            values["train/head_learning_rate"] = values["train/learning_rate"] * ratio
        values |= {
            "perf/step_seconds": seconds,
            "perf/tokens_per_second": tokens / seconds,
            "perf/model_flops_utilization": self._flops(batch.lengths) / seconds / self._peak,
            "perf/data_wait_fraction": waited / seconds,
            "system/device_memory_gb": device_memory_gb(),
        }
        if step % self._run.settings.tracking.log_every_steps == 0:
            self._record(step, values)
        if values.get("train/weight_clipped_fraction") == 1.0 and not self._warned:
            self._warned = True
            err.print(
                f"[yellow]step {step}: every token weight is clipped[/], so the weighting says nothing; raise "
                "weighting.beta, or widen weighting.weight_clip_min and weighting.weight_clip_max",
                highlight=False,
                soft_wrap=True,
            )
        return f"loss {values['train/loss']:.3f}, {tokens / seconds:,.0f} tokens/s"

    def _check_finite(self, step: int, values: dict[str, float], batch: Batch) -> None:
        """Counts skipped updates aloud, writes down their batches, and stops where there are too many in a row."""
        in_a_row, spike = int(values.pop("train/skipped_in_a_row")), bool(values.pop("train/is_spike", 0.0))
        means = {name: values.pop(f"{name}_mean", math.nan) for name in ("train/loss", "train/grad_norm")}
        if not in_a_row:
            return
        figures = f"train/loss is {values['train/loss']:.6g}, train/grad_norm {values['train/grad_norm']:.6g}"
        if spike:
            over = [name for name in means if values[name] > values[f"{name}_limit"]]
            of_each = (f"{name} has mean {means[name]:.6g}, limit {values[f'{name}_limit']:.6g}" for name in over)
            why = f"spike: {', '.join(of_each)}"
        else:
            # The metrics need not show it: Rho-1 does not choose a target whose score is NaN.
            bad = [name for name in values if not (math.isfinite(values[name]) or name.endswith("_limit"))]
            why = f"not finite: {', '.join(bad) or 'scores of the critic or reference'}"
        rows, tasks = self._keep_batch(step, why, values, batch)
        err.print(f"[yellow]step {step} skipped:[/] {figures}; {why}", highlight=False, soft_wrap=True)
        most = self._run.settings.training.max_skipped_steps
        if in_a_row > most:
            self._wait()
            good, directory = step - in_a_row, self._run.directory
            saved = [saved for saved in saved_steps(directory) if saved <= good]
            advice = (
                "If the level has changed for good, continue with a larger training.max_skipped_steps, or start "
                "another run with a larger training.spike_sigma; if not"
                if spike
                else "If it was there from the first step, look for NaN in the model (`python -m conversion verify`) "
                "and in the scores of the critic or reference; if it came on after good steps"
            )
            at = f"a saved step (model.path={directory}@{saved[-1]}, or an earlier one)" if saved else "the beginning"
            listed = "" if self._unwritten else f" (all skipped batches are in {BAD_BATCHES_FILE} there)"
            raise Failure(
                f"step {step}: {figures}; {why}; {in_a_row} updates in a row were skipped, more than "
                f"training.max_skipped_steps {most}; stopped. The last good step is {good or 'none'}, the last saved "
                f"one up to then {saved[-1] if saved else 'none'}; what is in {directory} is untouched. This batch: "
                f"tasks {_some(tasks)}; rows {_some(rows)}{listed}. {advice}, look at these batches, and start another "
                f"run (experiment.name) from {at} with a lower training.learning_rate or training.max_grad_norm."
            )

    def _keep_batch(self, step: int, why: str, values: dict[str, float], batch: Batch) -> tuple[list[int], list[str]]:
        """Appends the batch of a skipped update to the run's `BAD_BATCHES_FILE`; returns its rows and its tasks."""
        source, rows = self._run.train, batch.numbers.reshape(-1).tolist()
        solutions = np.concatenate([source.documents(row) for row in rows]).tolist()
        problems = dict.fromkeys(source.split.problem[solutions].tolist())  # in the order of the rows, each once
        tasks = [source.split.task_id(problem) for problem in problems]
        if is_first():
            figures = {name: values[f"train/{name}"] for name in ("loss", "grad_norm")}
            record = {
                "step": step,
                "why": why,
                # JSON has no NaN: what is not finite stands as text.
                **{name: value if math.isfinite(value) else str(value) for name, value in figures.items()},
                "rows": rows,
                "task_ids": tasks,
                "solutions": solutions,
            }
            try:
                _append_line(self._run.directory / BAD_BATCHES_FILE, json.dumps(record))
            except OSError as error:  # training does not depend on it
                if not self._unwritten:
                    err.print(
                        f"[yellow]{BAD_BATCHES_FILE} cannot be written[/] ({error.strerror}): skipped batches are told "
                        "here alone",
                        highlight=False,
                        soft_wrap=True,
                    )
                self._unwritten = True
        return rows, tasks

    def _flops(self, lengths: np.ndarray) -> float:
        objective = self._run.objective
        forward = forward_flops(self._run.config, lengths, objective.n_heads)
        return update_flops(forward, backward=objective.part != "head", frozen=objective.frozen)

    def validation(self, step: int, values: dict[str, float]) -> None:
        self._record(step, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        if self._tracking:  # JSON has no NaN
            self._tracking.log(step, {name: value for name, value in values.items() if math.isfinite(value)})


def _cut_batches(path: Path, step: int) -> None:
    """Takes the lines of later steps off, and one that was cut short."""
    kept = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(f"{line}\n")
    if path.is_file():
        with contextlib.suppress(OSError):  # then they stand twice
            write_whole(path, "".join(kept))


def _append_line(path: Path, line: str) -> None:
    """Appends a line; one before it that was cut short (by a kill, by a full disk) stays a line by itself."""
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(f"{line}\n".encode())


def _some(entries: list[Any]) -> str:
    """The first entries of a list, and how many more there are."""
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(map(str, entries[:_SHOWN])) + more
