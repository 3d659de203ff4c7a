"""The training loop of every stage: update, log, validate, save; continue where a run stopped."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from wmtp_jax.console import Steps, err
from wmtp_jax.data.batches import Batch, training_batches, validation_batches
from wmtp_jax.data.pack import Rows
from wmtp_jax.errors import Failure
from wmtp_jax.load import load_params
from wmtp_jax.parallel.distributed import exchange, is_first, is_several
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import place_rows
from wmtp_jax.processes import agreed
from wmtp_jax.training.checkpoints import CHECKPOINTS_FOLDER, Checkpoints, best_step, keep_step, saved_steps
from wmtp_jax.training.initial import find_base, initial_params
from wmtp_jax.training.program import make_program
from wmtp_jax.training.records import Records
from wmtp_jax.training.run import Run
from wmtp_jax.training.run_directory import (
    check_alike,
    check_directory,
    check_shared,
    rename_base,
    run_facts,
    write_run_files,
)
from wmtp_jax.training.step import TrainState
from wmtp_jax.training.tracking import Tracking
from wmtp_jax.training.validation import critic_metrics, unigram_cross_entropy, validation_metrics

_PATIENCE = 30.0  # seconds; the others stand in the middle of a step, and may never come


def fit(run: Run) -> dict[str, Any]:
    """Trains a run to its last step, from its latest checkpoint if it has one.

    Returns:
      Figures for the summary: steps, losses, throughput, paths.

    Raises:
      UserError: the run directory belongs to another run, the mesh does not fit the devices, or the processes do not
        do the same.
      Failure: the loss is no longer a finite number.
    """
    started = time.perf_counter()
    settings, last_step = run.settings, run.schedule.last_step
    assert last_step is not None  # the data set is at hand
    mesh = make_mesh(settings.runtime.mesh.shape)
    with agreed("looking at the run directory"):
        saved = check_directory(run)
    if is_several():
        facts = exchange(run_facts(run, saved))
        with agreed("comparing what the processes are to do"):
            check_alike(run, facts)
    first_step = saved[-1] if saved else 0
    if first_step >= last_step:
        err.print(f"{run.directory} is finished: step {first_step} of {last_step}", highlight=False, soft_wrap=True)
    else:
        with jax.set_mesh(mesh):
            with agreed("making the model", wait_s=_PATIENCE):
                base = find_base(run, resumed=bool(saved))
                trainer = _Trainer(run, mesh)
                # A fresh state first: a damaged model must not leave a run directory behind.
                state = None if saved else trainer.fresh_state()
            with agreed("writing the run directory"):
                if not saved and is_first():
                    write_run_files(run, base)
                    if base is not None:
                        _keep_base(run)
                elif base is not None and is_first():
                    rename_base(run.directory, base)
            with agreed("looking into the run directory"):
                check_shared(run)
            try:
                with agreed("training", wait_s=_PATIENCE):
                    _train(run, trainer, state, first_step, frozen=base is not None)
            except KeyboardInterrupt:
                saved = saved_steps(run.directory)
                place = f"step {saved[-1]}" if saved else "the beginning (no checkpoint was due yet)"
                err.print(f"the same command continues from {place}", highlight=False)
                raise
    final_step, best = max(first_step, last_step), best_step(run.directory)
    assert best is not None
    with Checkpoints(run.directory, read_only=True) as checkpoints:
        validation, final = checkpoints.metrics(best), checkpoints.metrics(final_step)
        progress = checkpoints.progress(final_step)
    return {
        "run_directory": str(run.directory),
        "steps": final_step,
        "first_step": first_step,
        "best_step": best,
        "val/loss": final["val/loss"],
        "best_val/loss": validation["val/loss"],
        "validation": validation,
        "unigram": unigram_cross_entropy(run.train, run.validation, run.config.n_future_tokens, run.config.vocab_size)
        if run.objective.n_heads
        else [],
        "tokens_trained": progress["tokens"],
        "tokens_per_second": progress["tokens"] / progress["seconds"],
        "seconds": time.perf_counter() - started,
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

    def validate(self, params: Any) -> dict[str, float]:
        """Validation metrics over all validation rows."""
        totals, values = None, []
        rows = self.run.validation
        for numbers in validation_batches(len(rows), self.program.eval_rows):
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


def _train(run: Run, trainer: _Trainer, state: TrainState | None, first_step: int, *, frozen: bool) -> None:
    """Updates from ``first_step`` (from the checkpoint there, where ``state`` is None) to the last.

    With a ``frozen`` base checkpoints hold only what is trained.
    """
    settings, last_step = run.settings, run.schedule.last_step
    assert last_step is not None
    keep = settings.checkpoint.save_total_limit
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            Checkpoints(
                run.directory,
                save_best=settings.checkpoint.save_best,
                keep=keep,
                holds=run.objective.trains if frozen else None,
            )
        )
        progress: dict[str, Any] = {"tokens": 0, "seconds": 0.0}
        if state is None:
            err.print(f"continuing {run.directory} from step {first_step}", highlight=False, soft_wrap=True)
            base = initial_params(run, trainer.mesh) if frozen else {}
            state, progress = checkpoints.restore(first_step, trainer.program.state, base)
        tracking = None
        if is_first():
            tracking = stack.enter_context(Tracking(run.directory, settings, run.stage.name, first_step))
        log = Records(run, tracking, progress)
        bar = stack.enter_context(Steps("training", last_step - first_step, every=0.05))
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
        log.start()
        for step in range(first_step + 1, last_step + 1):
            with log.waiting():
                batch = next(batches)
            state, metrics = trainer.step(state, trainer.scored(batch.rows))
            in_flight.append((step, metrics, batch))
            save = step in run.schedule.save_steps
            # The device works on this step while the one before is logged.
            while len(in_flight) > (0 if save else 1):
                bar.advance(1, log.step(*in_flight.popleft()))
            if save:
                validation = trainer.validate(state.params)
                if not math.isfinite(validation["val/loss"]):
                    raise Failure(
                        f"step {step}: val/loss is {validation['val/loss']}: the weights are no longer sound; stopped. "
                        f"Earlier checkpoints in {run.directory} are untouched. Start another run with a lower "
                        "training.learning_rate."
                    )
                log.validation(step, validation)
                checkpoints.save(state, validation, log.progress)
                bar.note(f"step {step}: val/loss {validation['val/loss']:.4f}")
                log.start()
