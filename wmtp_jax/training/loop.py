"""The training loop of every stage: update, log, validate, save; continue where a run stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from wmtp_jax.console import Steps, err
from wmtp_jax.data.batches import Batch, training_batches, validation_batches
from wmtp_jax.data.pack import Rows
from wmtp_jax.errors import Failure
from wmtp_jax.interruption import Interruption
from wmtp_jax.load import load_params
from wmtp_jax.parallel.distributed import Meeting, exchange, is_first, is_several
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import place_rows
from wmtp_jax.processes import agreed
from wmtp_jax.training.checkpoints import Checkpoints
from wmtp_jax.training.initial import find_base, initial_params
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER
from wmtp_jax.training.manifest import Session, close_sessions, rename_base, session, write_run_files
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.program import make_program
from wmtp_jax.training.records import Records
from wmtp_jax.training.run import Run
from wmtp_jax.training.run_directory import (
    Changes,
    check_alike,
    check_shared,
    find_changes,
    run_facts,
)
from wmtp_jax.training.saved import (
    VALIDATION_LOSS,
    best_step,
    keep_step,
    latest_sound_step,
    needed_steps,
    remove_unfinished,
    saved_steps,
    step_metrics,
    step_progress,
)
from wmtp_jax.training.saving import SaveClock
from wmtp_jax.training.step import TrainState
from wmtp_jax.training.tracking import Tracking
from wmtp_jax.training.validation import critic_metrics, unigram_cross_entropy, validation_metrics
from wmtp_jax.volumes import lock_run

_PATIENCE = 30.0  # seconds; the others stand in the middle of a step, and may never come


def fit(run: Run, *, interruption: Interruption | None = None, allow_changed: Collection[str] = ()) -> dict[str, Any]:
    """Trains a run to its last step, from its latest sound checkpoint if it has one.

    Args:
      run: what is trained.
      interruption: what signals ask for: then the run saves after the running step, and stops.
      allow_changed: names of settings and fingerprints that may be other than those of the run so far.

    Returns:
      Figures for the summary: steps, losses, throughput, paths; ``stopped_by`` names the signal that has ended it.

    Raises:
      UserError: the run directory belongs to another run or cannot be written, another process is at work in it, the
        mesh does not fit the devices, or the processes do not do the same.
      Failure: too many updates in a row were skipped, val/loss is no finite number, or the last step could not be
        saved.
    """
    started = time.perf_counter()
    interruption = interruption or Interruption()
    with contextlib.ExitStack() as stack:
        with agreed("looking at the run directory"):
            if is_first():
                stack.enter_context(lock_run(run.directory))
            before, changes = find_changes(run, allow_changed)
            needed_steps(run.directory)  # a damaged list is told now, not when old steps are removed
            if is_first():
                remove_unfinished(run.directory)
                latest_sound_step(run.directory)
        saved = saved_steps(run.directory)
        if is_several():
            facts = exchange(run_facts(run, saved))
            with agreed("comparing what the processes are to do"):
                check_alike(run, facts)
        first_step = last_step = saved[-1] if saved else 0
        saving: dict[str, float] = {}
        if _is_done(run, first_step):
            if is_first():
                close_sessions(run)
            err.print(f"{run.directory} is finished: step {first_step} of {_end(run)}", highlight=False, soft_wrap=True)
        else:
            last_step, saving = _continue(run, saved, before, changes, interruption)
    return {
        **_figures(run, last_step),
        **saving,
        "first_step": first_step,
        "seconds": time.perf_counter() - started,
        "stopped_by": None if _is_done(run, last_step) else interruption.requested or "another process",
    }


def _end(run: Run) -> int:
    assert run.schedule.last_step is not None  # the data set is at hand
    return run.schedule.last_step


def _is_done(run: Run, step: int) -> bool:
    """Whether a run that has come to ``step`` has nothing left to do."""
    return step >= _end(run) and not _owes_validation(run, step)


def _owes_validation(run: Run, step: int) -> bool:
    """Whether a signal has stopped the run at a step that was to be validated, before it was."""
    return step in run.schedule.save_steps and not step_metrics(run.directory, step)


def _continue(
    run: Run, saved: list[int], before: dict[str, Any] | None, changes: Changes, interruption: Interruption
) -> tuple[int, dict[str, float]]:
    """Trains from the latest of the ``saved`` steps on; returns the step it has come to, and what saving took."""
    first_step = saved[-1] if saved else 0
    mesh = make_mesh(run.settings.runtime.mesh.shape)
    with jax.set_mesh(mesh):
        with agreed("making the model", wait_s=_PATIENCE):
            base = find_base(run, resumed=bool(saved))
            trainer = _Trainer(run, mesh)
            # A fresh state first: a damaged model must not leave a run directory behind.
            state = None if saved else trainer.fresh_state()
        with contextlib.ExitStack() as stack:
            with agreed("writing the run directory"):
                if is_first():
                    if not saved:
                        write_run_files(run, base, before)
                        if base is not None:
                            _keep_base(run)
                    elif base is not None:
                        rename_base(run.directory, base)
                    this = stack.enter_context(session(run, first_step, changes))
                else:
                    this = Session(first_step)
            with agreed("looking into the run directory"):
                check_shared(run)
            with agreed("training", wait_s=_PATIENCE):
                saving = _train(run, trainer, state, this, interruption, frozen=base is not None)
            return this.last_step, saving


def _figures(run: Run, step: int) -> dict[str, Any]:
    """What a run that has come to ``step`` has reached."""
    best, progress = best_step(run.directory), step_progress(run.directory, step)
    validation = {} if best is None else step_metrics(run.directory, best)
    has_heads = bool(run.objective.n_heads)
    return {
        "run_directory": str(run.directory),
        "steps": step,
        "best_step": best,
        "val/loss": step_metrics(run.directory, step).get(VALIDATION_LOSS),
        "best_val/loss": validation.get(VALIDATION_LOSS),
        "validation": validation,
        "unigram": unigram_cross_entropy(run.train, run.validation, run.config.n_future_tokens, run.config.vocab_size)
        if has_heads and validation
        else [],
        "tokens_trained": progress.get("tokens", 0),
        "tokens_per_second": progress.get("tokens", 0) / max(progress.get("seconds", 0), 1e-9),
        "left_out_too_long": run.samples["train"].left_out.too_long,
        "skipped_steps": progress.get("skipped", 0),
        "batches_without_target": progress.get("empty", 0),
    }


def _keep_base(run: Run) -> None:
    """Says that the weights of another model are needed; where that is a step of a run, has the run keep it."""
    assert run.source is not None
    kept = ""
    if run.source.directory.parent.name == CHECKPOINTS_FOLDER:
        try:
            keep_step(run.source.directory)
            kept = "; its run keeps that step from now on"
        except OSError as error:
            kept = f"; its run could not be told to keep that step ({error.strerror}): going on with it may delete it"
    err.print(f"what is not trained stays in {run.source.path}, which is needed{kept}", highlight=False, soft_wrap=True)


class _Trainer:
    """The compiled functions of a run."""

    def __init__(self, run: Run, mesh: Mesh):
        self.run, self.mesh = run, mesh
        scores_batches = run.objective.needs_scores and run.train.scores is None
        assert run.schedule.total_steps is not None
        self.program = make_program(
            run.stage,
            run.settings,
            run.config,
            run.objective,
            mesh,
            total_steps=run.schedule.total_steps,
            rows_per_step=run.schedule.rows_per_step,
            frozen=run.scorer.config if run.scorer and scores_batches else None,
        )
        if run.objective.part == "full" and run.settings.model.param_dtype == "bfloat16":
            err.print(
                "[yellow]model.param_dtype is bfloat16 and all weights are trained:[/] a weight keeps 8 bits, so an "
                "update below 1/512 of it is lost; with a small training.learning_rate that is most of them. "
                "training.train=lora keeps what it trains in float32",
                highlight=False,
                soft_wrap=True,
            )
        started = time.perf_counter()
        self.step = self.program.trace_step().lower().compile()
        self.eval_step = self.program.trace_eval().lower().compile()
        self._score: Any = None
        self._frozen: Any = None
        if self.program.frozen is not None:
            assert run.scorer is not None
            self._frozen = load_params(run.scorer, self.program.frozen_shapes(), mesh)
            self._score = self.program.trace_score().lower().compile()
        err.print(f"compiled in {time.perf_counter() - started:.1f} s", highlight=False)

    def scored(self, rows: Rows) -> Rows:
        """Rows on the devices with the frozen model's scores, where they do not bring them along."""
        if self._score is None:
            return rows
        return rows._replace(scores=self._score(self._frozen, rows.tokens, rows.segment_ids))

    def fresh_state(self) -> TrainState:
        """The state before the first update: loaded or random weights, an empty optimizer."""
        params = initial_params(self.run, self.mesh)
        return jax.jit(self.program.init, out_shardings=self.program.shardings, donate_argnums=0)(params)

    def validate(self, params: Any, leave: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Validation metrics over all validation rows; None where ``leave`` says to leave it before it is done."""
        totals, values = None, []
        rows = self.run.validation
        for numbers in validation_batches(len(rows), self.program.eval_rows):
            if leave():
                return None
            part = place_rows(rows.__getitem__, numbers, self.program.eval_sharding)
            sums, values_BS = self.eval_step(params, part)
            sums = jax.device_get(sums)  # added up here: no small programs on all devices between the large ones
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
            values.append(values_BS)
        assert totals is not None
        metrics = validation_metrics(totals)
        if self.run.stage.trains == "values":
            values_RS = np.concatenate(multihost_utils.process_allgather(values, tiled=True))[: len(rows)]
            metrics |= critic_metrics(values_RS, rows)
        return metrics


def _train(
    run: Run, trainer: _Trainer, state: TrainState | None, this: Session, interruption: Interruption, *, frozen: bool
) -> dict[str, float]:
    """Updates from the session's step (from the checkpoint there, where ``state`` is None) to the last.

    With a ``frozen`` base checkpoints hold only what is trained. Returns seconds: how long saves took, and how long
    they kept the loop waiting.
    """
    settings, first_step, last_step = run.settings, this.last_step, _end(run)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                run.directory,
                save_best=settings.checkpoint.save_best,
                keep=settings.checkpoint.save_total_limit,
                holds=run.objective.trains if frozen else None,
            )
        )
        progress: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
        if is_first():
            checkpoints.warn_of_space(trainer.program.state)
        if state is None:
            err.print(f"continuing {run.directory} from step {first_step}", highlight=False, soft_wrap=True)
            base = initial_params(run, trainer.mesh) if frozen else {}
            state, progress = checkpoints.restore(first_step, trainer.program.state, base)
        tracking = None
        if is_first():
            tracking = stack.enter_context(Tracking(run.directory, settings, run.stage.name, first_step))
            stack.push(this.end)  # before it is uploaded
        log = Records(run, tracking, progress, first_step, checkpoints.wait)
        if _owes_validation(run, first_step):
            validation = trainer.validate(state.params)
            assert validation is not None
            _check_sound(run, first_step, validation)
            # A session that was killed between these two has left its line.
            if not any(line["step"] == first_step and VALIDATION_LOSS in line for line in read_metrics(run.directory)):
                log.validation(first_step, validation)
            err.print(f"step {first_step}: val/loss {validation[VALIDATION_LOSS]:.4f}, owed since it was stopped there")
            checkpoints.complete(first_step, validation)
        bar = stack.enter_context(Steps("training", last_step - first_step, every=0.05))
        clock, stop = SaveClock(run, checkpoints, bar.note), Meeting("stop")
        in_flight: deque[tuple[int, Any, Batch]] = deque()
        batches = training_batches(
            run.train,
            trainer.program.batch_sharding,
            rows_per_step=run.schedule.rows_per_step,
            accumulation=settings.training.gradient_accumulation_steps,
            seed=settings.data_sampling.seed,
            first_step=first_step,
            last_step=last_step,
            order=run.order,
        )
        stack.callback(batches.close)
        interruption.only_ask()
        asked = stopping = False

        def log_oldest() -> None:
            number, metrics, batch = in_flight.popleft()
            bar.advance(1, log.step(number, metrics, batch))
            this.last_step = number

        log.start()
        for step in range(first_step + 1, last_step + 1):
            with log.waiting():
                batch = next(batches)
            state, metrics = trainer.step(state, trainer.scored(batch.rows))
            in_flight.append((step, metrics, batch))
            # The device works on this step while the one before is logged.
            while len(in_flight) > 1:
                log_oldest()
            if interruption.requested and not asked:
                stop.ask(step)
                asked = True
            stopping, by_clock, by_plan = stop.due(step), clock.due(step), step in run.schedule.save_steps
            if not (stopping or by_clock or by_plan):
                continue
            log_oldest()
            validation = None
            if by_plan and not stopping:
                # One process may leave its validation half done, and owe it: the notice before the end is short.
                validation = trainer.validate(state.params, lambda: bool(interruption.requested) and not is_several())
                stopping = validation is None
            if validation is not None:
                _check_sound(run, step, validation)
                log.validation(step, validation)
                bar.note(f"step {step}: val/loss {validation[VALIDATION_LOSS]:.4f}")
            if tracking:
                tracking.sync()
            save = partial(checkpoints.save, state, validation, log.progress)
            save()
            clock.saved()
            if stopping or step == last_step:
                clock.settle(step, save, hurry=stopping)
                break
            log.start()
        if stopping:
            this.ended = f"stopped by {interruption.requested or 'another process'}"
        this.end(None, None)
        if stopping and tracking:
            tracking.stop()
        return {"save_seconds": checkpoints.seconds, "save_stall_seconds": checkpoints.stalled}


def _check_sound(run: Run, step: int, validation: dict[str, float]) -> None:
    if not math.isfinite(validation[VALIDATION_LOSS]):
        raise Failure(
            f"step {step}: val/loss is {validation[VALIDATION_LOSS]}: the weights are no longer sound; stopped. "
            f"Earlier checkpoints in {run.directory} are untouched. Start another run with a lower "
            "training.learning_rate."
        )
