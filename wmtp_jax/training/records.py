"""What a run says of its steps: figures for people and for files, and whether they are still sound."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from wmtp_jax.console import err
from wmtp_jax.data.batches import Batch
from wmtp_jax.errors import Failure
from wmtp_jax.training.run import Run
from wmtp_jax.training.throughput import device_memory_gb, forward_flops, matmul_peak, update_flops
from wmtp_jax.training.tracking import Tracking


class Records:
    """Turns the figures of finished steps into records (where there is a ``tracking``); keeps the totals of the run."""

    def __init__(self, run: Run, tracking: Tracking | None, progress: dict[str, Any]):
        self.progress = {"skipped": 0, "empty": 0, **progress}
        self._warned = False
        self._run, self._tracking = run, tracking
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
        self._check_finite(step, values)
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

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        """Counts skipped updates aloud, and stops where there are too many in a row."""
        in_a_row = int(values.pop("train/skipped_in_a_row"))
        if not in_a_row:
            return
        settings = self._run.settings
        figures = f"train/loss is {values['train/loss']}, train/grad_norm {values['train/grad_norm']}"
        err.print(f"[yellow]step {step} skipped:[/] {figures}", highlight=False)
        if in_a_row > settings.training.max_skipped_steps:
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            raise Failure(
                f"step {step}: {figures}; {in_a_row} updates in a row were skipped, more than "
                f"training.max_skipped_steps {settings.training.max_skipped_steps}; stopped. Not finite: "
                f"{', '.join(bad)}. Earlier checkpoints in {self._run.directory} are untouched. If it came on after "
                "good steps, start another run (experiment.name) from them (model.path=RUN@latest) with a lower "
                "training.learning_rate or training.max_grad_norm; if it was there from the first step, look for NaN "
                "in the model (`python -m conversion verify`) and in the scores of the critic or reference."
            )

    def _flops(self, lengths: np.ndarray) -> float:
        objective = self._run.objective
        forward = forward_flops(self._run.config, lengths, objective.n_heads)
        return update_flops(forward, backward=objective.part != "head", frozen=objective.frozen)

    def validation(self, step: int, values: dict[str, float]) -> None:
        self._record(step, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        if self._tracking:  # JSON has no NaN
            self._tracking.log(step, {name: value for name, value in values.items() if math.isfinite(value)})
