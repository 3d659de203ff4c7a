"""Checkpoints of a run, by Orbax: ``<run directory>/checkpoints/<step>/``.

A step holds ``params`` and ``adapter`` (as in a model directory; on a frozen base only what is trained),
``optimizer`` (its state and all else that changes from step to step) and ``progress`` (JSON: tokens and seconds so
far); Orbax keeps the validation metrics beside them. The order of the data and all randomness follow from the
settings and the step, so a resume needs nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from wmtp_jax.errors import Failure, UserError
from wmtp_jax.models.lora import ADAPTER
from wmtp_jax.models.store import ADAPTER_FOLDER, PARAMS_FOLDER, save_args
from wmtp_jax.training.step import TrainState, join_params, split_params

CHECKPOINTS_FOLDER = "checkpoints"
NEEDED_FILE = "needed_steps.json"  # in a run directory: steps that other runs rest on
_METRIC = "val/loss"

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save at WARNING


def saved_steps(run_directory: Path) -> list[int]:
    """Steps that are completely written, ascending."""
    folder = run_directory / CHECKPOINTS_FOLDER
    # The metadata file is written last; a folder without it is the rest of an interrupted save.
    return sorted(
        int(path.parent.name)
        for path in folder.glob("*/_CHECKPOINT_METADATA")
        if path.parent.name.isdigit()
        and (path.parent / "metrics").is_dir()
        and any((path.parent / item).is_dir() for item in (PARAMS_FOLDER, ADAPTER_FOLDER))
    )


def best_step(run_directory: Path) -> int | None:
    """The saved step with the lowest val/loss, the earlier of equals; None if nothing is saved."""
    with Checkpoints(run_directory, read_only=True) as checkpoints:
        losses = {step: checkpoints.metrics(step)[_METRIC] for step in saved_steps(run_directory)}
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def step_directory(run_directory: Path, step: int) -> Path:
    """The folder of a step; it has ``params/`` and ``adapter/`` as a model directory has."""
    return run_directory / CHECKPOINTS_FOLDER / str(step)


def keep_step(step_folder: Path) -> None:
    """Has the run that a step belongs to keep it whatever ``checkpoint.save_total_limit`` says: another rests on it.

    Raises:
      OSError: it cannot be written there.
    """
    run_directory, step = step_folder.parent.parent, int(step_folder.name)
    steps = sorted({*_needed_steps(run_directory), step})
    (run_directory / NEEDED_FILE).write_text(json.dumps(steps) + "\n")


def _needed_steps(run_directory: Path) -> list[int]:
    path = run_directory / NEEDED_FILE
    try:
        return [int(step) for step in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); it lists the steps that other runs rest on, as [3, 8]"
        ) from error


class Checkpoints:
    """Saves and restores steps of one run. Use as a context: leaving it waits for saves in flight.

    Args:
      run_directory: the run.
      save_best: never delete the step with the lowest val/loss.
      keep: newest steps that are kept beside it; None for all.
      holds: the parameters that a step holds, by their dotted names; None: all. The others are those of a base.
      read_only: only look.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        save_best: bool = True,
        keep: int | None = None,
        holds: Callable[[str], bool] | None = None,
        read_only: bool = False,
    ):
        policies: list[Any] = [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.CustomSteps(_needed_steps(run_directory)),
        ]
        if save_best:
            # Not Orbax's own best_fn + max_to_keep: that deletes the newest step when its metric is bad.
            policies.append(
                checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics[_METRIC], reverse=True, n=1)
            )
        self._run_directory, self._holds = run_directory, holds
        self._manager = ocp.CheckpointManager(
            (run_directory / CHECKPOINTS_FOLDER).resolve(),
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda metrics: metrics[_METRIC],
                best_mode="min",
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns when what was saved is on the disk."""
        self._manager.wait_until_finished()

    def save(self, state: TrainState, metrics: dict[str, float], progress: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns, the writing goes on behind."""
        items = {
            name: ocp.args.StandardSave(tree, save_args=save_args(tree))
            for name, tree in self._weights(state.params).items()
        }
        items["optimizer"] = ocp.args.StandardSave(_beside_params(state))
        args = ocp.args.Composite(**items, progress=ocp.args.JsonSave(progress))
        self._manager.save(int(state.step), args=args, metrics=metrics)

    def restore(self, step: int, target: TrainState, base: Any) -> tuple[TrainState, dict[str, Any]]:
        """Reads a step.

        Args:
          step: its number.
          target: `jax.ShapeDtypeStruct` with the wanted shardings.
          base: parameters, of which those are taken that a step does not hold; an empty dict where it holds all.

        Raises:
          Failure: the step is damaged.
        """
        items = {
            **{name: ocp.args.StandardRestore(tree) for name, tree in self._weights(target.params).items()},
            "optimizer": ocp.args.StandardRestore(_beside_params(target)),
            "progress": ocp.args.JsonRestore(),
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax raises many kinds; the remedy is the same for all
            folder = step_directory(self._run_directory, step)
            raise Failure(
                f"{folder}: this checkpoint cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Move it away to continue from the checkpoint before it."
            ) from error
        params = restored[PARAMS_FOLDER] if PARAMS_FOLDER in items else {}
        if ADAPTER in target.params:
            params = {**params, ADAPTER: restored[ADAPTER_FOLDER]}
        return TrainState(params=join_params(params, base), **restored["optimizer"]), restored["progress"]

    def progress(self, step: int) -> dict[str, Any]:
        """Tokens and seconds up to a saved step."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return dict(self._manager.restore(step, args=args)["progress"])

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics of a saved step."""
        return dict(self._manager.metrics(step))

    def _weights(self, params: Any) -> dict[str, Any]:
        """The items that hold the weights, by their folders, as in a model directory."""
        items = {PARAMS_FOLDER: {name: part for name, part in params.items() if name != ADAPTER}}
        if self._holds is not None:
            items[PARAMS_FOLDER], _ = split_params(items[PARAMS_FOLDER], self._holds)
            if not items[PARAMS_FOLDER]:
                del items[PARAMS_FOLDER]
        return {**items, ADAPTER_FOLDER: params[ADAPTER]} if ADAPTER in params else items


def _beside_params(state: TrainState) -> dict[str, Any]:
    """What a state holds beside the parameters; what a run does not have (None) is not saved either."""
    return {name: value for name, value in state._asdict().items() if name != "params" and value is not None}
