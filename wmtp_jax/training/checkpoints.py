"""Saving and restoring the state of a run, by Orbax: ``<run directory>/checkpoints/<step>/``.

A step holds ``params`` and ``adapter`` (as in a model directory; on a frozen base only what is trained),
``optimizer`` (its state and all else that changes from step to step), ``progress`` (JSON: tokens and seconds so far)
and, where it was validated, ``metrics``. The order of the data and all randomness follow from the settings and the
step, so a resume needs nothing else.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from wmtp_jax.console import err
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.models.lora import ADAPTER
from wmtp_jax.models.store import ADAPTER_FOLDER, PARAMS_FOLDER, save_args
from wmtp_jax.parallel.distributed import is_first
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER
from wmtp_jax.training.saved import (
    METRICS_ITEM,
    PROGRESS_ITEM,
    WITH_CHECKSUMS,
    add_metrics,
    remove_old_steps,
    remove_unfinished,
    step_directory,
    write_checksums,
)
from wmtp_jax.training.step import TrainState, join_params, split_params

_OPTIMIZER_ITEM = "optimizer"
_ARRAY_ITEMS = (PARAMS_FOLDER, ADAPTER_FOLDER, _OPTIMIZER_ITEM)

# Orbax narrates every save at WARNING, and prints the traceback of a failed one a dozen times, which we report.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class SaveFailure(NamedTuple):
    """A save that did not work.

    Attributes:
      step: what was to be saved.
      reason: for people.
    """

    step: int
    reason: str


class Checkpoints:
    """Saves and restores steps of one run. Use as a context: leaving it waits for the save in flight.

    Saving goes on behind the training loop; what fails there is told by `failure`, and training may go on.

    Args:
      run_directory: the run.
      save_best: never remove the step with the lowest val/loss.
      keep: newest validated steps that are kept beside it; None for all.
      holds: the parameters that a step holds, by their dotted names; None: all. The others are those of a base.

    Attributes:
      seconds: what the finished saves took from their beginning to their commit.
      stalled: how long the loop has waited meanwhile.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        save_best: bool = True,
        keep: int | None = None,
        holds: Callable[[str], bool] | None = None,
    ):
        self.seconds = self.stalled = 0.0
        self._run_directory, self._holds = run_directory, holds
        self._keep, self._save_best = keep, save_best
        self._failure: SaveFailure | None = None
        self._settling: threading.Thread | None = None
        handlers: dict[str, Any] = {
            # Compressed, a step is a tenth smaller, and takes two to four times as long.
            **{name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in _ARRAY_ITEMS},
            PROGRESS_ITEM: ocp.JsonCheckpointHandler(),
            METRICS_ITEM: ocp.JsonCheckpointHandler(filename=METRICS_ITEM),
        }
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(**handlers),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._before_commit),
        )

    def __enter__(self) -> Checkpoints:
        self._hook_before, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        if self._failure:  # an error has come between
            err.print(f"step {self._failure.step} could not be saved ({self._failure.reason})", highlight=False)
        sys.unraisablehook = self._hook_before
        self._checkpointer.close()

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Leaves out what tensorstore tells of every array whose save was called off because another's has failed."""
        if not (isinstance(lost.exc_value, RuntimeError) and str(lost.exc_value) == "Event loop is closed"):
            self._hook_before(lost)

    @property
    def is_saving(self) -> bool:
        """Whether a save is in flight."""
        return self._settling is not None and self._settling.is_alive()

    def wait(self) -> None:
        """Waits for the save in flight."""
        started = time.perf_counter()
        if self._settling is not None:
            self._settling.join()
        self.stalled += time.perf_counter() - started

    def failure(self) -> SaveFailure | None:
        """The save that has failed since this was asked last; None while one is in flight."""
        if self.is_saving:
            return None
        failure, self._failure = self._failure, None
        return failure

    def warn_of_space(self, state: TrainState) -> None:
        """Tells where the disk has less room than one step takes: nothing is lost yet, and it can be made.

        ``state``: arrays, or their shapes and types.
        """
        leaves = jax.tree.leaves([self._weights(state.params), _beside_params(state)])
        needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        free = shutil.disk_usage(self._run_directory).free
        if free < needed:
            err.print(
                f"[yellow]{self._run_directory}:[/] a checkpoint takes up to {needed / 1e9:,.1f} GB, and "
                f"{free / 1e9:,.1f} GB are free; saving will fail until there is room",
                highlight=False,
                soft_wrap=True,
            )

    def save(self, state: TrainState, metrics: dict[str, float] | None, progress: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, the writing goes on behind.

        Args:
          state: what is saved, as the step it has come to.
          metrics: of its validation; None where it was not validated.
          progress: totals of the run.
        """
        self.wait()
        started = time.perf_counter()
        step = int(state.step)
        items = {
            name: ocp.args.PyTreeSave(tree, save_args=save_args(tree))
            for name, tree in self._weights(state.params).items()
        }
        items[_OPTIMIZER_ITEM] = ocp.args.PyTreeSave(_beside_params(state))
        items[PROGRESS_ITEM] = ocp.args.JsonSave(progress)
        if metrics is not None:
            items[METRICS_ITEM] = ocp.args.JsonSave(metrics)
        self._step = step
        try:
            folder = step_directory(self._run_directory, step)
            self._checkpointer.save(folder.resolve(), args=ocp.args.Composite(**items), custom_metadata=WITH_CHECKSUMS)
        except Exception as error:  # as in `_settle`
            self._fail(error)
            return
        self._settling = threading.Thread(target=self._settle, args=(started,), name="saving")
        self._settling.start()
        self.stalled += time.perf_counter() - started

    def complete(self, step: int, metrics: dict[str, float]) -> None:
        """Gives a step of an earlier session the metrics of the validation that it owed.

        Raises:
          Failure: they cannot be written.
        """
        if not is_first():
            return
        try:
            add_metrics(self._run_directory, step, metrics)
        except OSError as error:
            raise Failure(
                f"{step_directory(self._run_directory, step)}: its validation cannot be written ({error.strerror}); "
                "make room (or mend the volume) and give the same command"
            ) from error
        self._remove_old()

    def _before_commit(self) -> None:
        """Called by Orbax in process 0 when all of a step is written, before it gets its name."""
        folder = self._run_directory / CHECKPOINTS_FOLDER
        (written,) = folder.glob(f"{self._step}.orbax-checkpoint-tmp*")
        write_checksums(written)

    def _settle(self, started: float) -> None:
        """Waits for the commit; then older steps may go. Runs in a thread of its own."""
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:  # Orbax and tensorstore raise many kinds; none of them ends the training
            self._fail(error)
            return
        self.seconds += time.perf_counter() - started
        if is_first():
            self._remove_old()

    def _remove_old(self) -> None:
        try:
            remove_old_steps(self._run_directory, keep=self._keep, save_best=self._save_best)
        except (OSError, UserError) as error:
            err.print(f"older steps are not removed: {error}", highlight=False, soft_wrap=True)

    def _fail(self, error: Exception) -> None:
        self._failure = SaveFailure(self._step, _reason(error))
        if is_first():
            remove_unfinished(self._run_directory, self._step)  # gives its space back

    def restore(self, step: int, target: TrainState, base: Any) -> tuple[TrainState, dict[str, Any]]:
        """Reads a step.

        Args:
          step: its number.
          target: `jax.ShapeDtypeStruct` with the wanted shardings.
          base: parameters, of which those are taken that a step does not hold; an empty dict where it holds all.

        Raises:
          Failure: it cannot be read, or does not fit.
        """
        items = {
            **{name: _restore_args(tree) for name, tree in self._weights(target.params).items()},
            _OPTIMIZER_ITEM: _restore_args(_beside_params(target)),
            PROGRESS_ITEM: ocp.args.JsonRestore(),
        }
        folder = step_directory(self._run_directory, step)
        try:
            restored = self._checkpointer.restore(folder.resolve(), args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many kinds; the remedy is the same for all
            raise Failure(
                f"{folder}: this checkpoint cannot be read, though its files are as they were written "
                f"({type(error).__name__}: {str(error).splitlines()[0]}). Move it away to continue from the checkpoint "
                "before it."
            ) from error
        params = restored[PARAMS_FOLDER] if PARAMS_FOLDER in items else {}
        if ADAPTER in target.params:
            params = {**params, ADAPTER: restored[ADAPTER_FOLDER]}
        return TrainState(params=join_params(params, base), **restored[_OPTIMIZER_ITEM]), restored[PROGRESS_ITEM]

    def _weights(self, params: Any) -> dict[str, Any]:
        """The items that hold the weights, by their folders, as in a model directory."""
        items = {PARAMS_FOLDER: {name: part for name, part in params.items() if name != ADAPTER}}
        if self._holds is not None:
            items[PARAMS_FOLDER], _ = split_params(items[PARAMS_FOLDER], self._holds)
            if not items[PARAMS_FOLDER]:
                del items[PARAMS_FOLDER]
        return {**items, ADAPTER_FOLDER: params[ADAPTER]} if ADAPTER in params else items


def _restore_args(target: Any) -> Any:
    """Asks for arrays of exactly these shapes, types and places."""
    return ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))


def _beside_params(state: TrainState) -> dict[str, Any]:
    """What a state holds beside the parameters; what a run does not have (None) is not saved either."""
    return {name: value for name, value in state._asdict().items() if name != "params" and value is not None}


def _reason(error: Exception) -> str:
    """Why a save has failed, for people: tensorstore's messages end with the system's words."""
    text = str(error)
    for sign in ("No space left on device", "Disk quota exceeded", "File too large"):
        if sign in text:
            return f"the disk is full: {sign}"
    for sign in ("Read-only file system", "Permission denied", "Input/output error", "Stale file handle"):
        if sign in text:
            return sign
    return f"{type(error).__name__}: {(text.splitlines() or [''])[0][:300]}"
