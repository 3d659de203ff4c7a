"""The saved steps of a run on disk: which there are, which is the best, whether one is still what was written.

``<run directory>/checkpoints/<step>/`` appears whole (Orbax writes beside it and renames), and brings the SHA-256 of
its files along. A step that is being removed is renamed first: what has a number for a name is complete.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wmtp_jax.console import err
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.files import sha256_of, write_whole
from wmtp_jax.models.store import ADAPTER_FOLDER, PARAMS_FOLDER
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER, CHECKSUMS_FILE, NEEDED_FILE

WITH_CHECKSUMS = {"checksums": True}  # in Orbax's metadata of a step: it is damaged if they are away
METRICS_ITEM, PROGRESS_ITEM = "metrics", "progress"
VALIDATION_LOSS = "val/loss"

_METADATA_FILE = "_CHECKPOINT_METADATA"
# Orbax writes these two after the checksums, with the time of the commit; the first must be JSON.
_UNCHECKED = (_METADATA_FILE, "commit_success.txt")
_REMOVED, _DAMAGED = ".removed", ".damaged"
_UNFINISHED = re.compile(r"\d+(\.orbax-checkpoint-tmp.*|\.removed)")
_THREADS = 8


def saved_steps(run_directory: Path) -> list[int]:
    """Steps that are completely written, ascending."""
    folder = run_directory / CHECKPOINTS_FOLDER
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{_METADATA_FILE}") if _is_step(path.parent))


def _is_step(folder: Path) -> bool:
    items = any((folder / item).is_dir() for item in (PARAMS_FOLDER, ADAPTER_FOLDER))
    return folder.name.isdigit() and items and (folder / PROGRESS_ITEM).is_dir()


def step_directory(run_directory: Path, step: int) -> Path:
    """The folder of a step; it has ``params/`` and ``adapter/`` as a model directory has."""
    return run_directory / CHECKPOINTS_FOLDER / str(step)


def step_metrics(run_directory: Path, step: int) -> dict[str, float]:
    """Validation metrics of a saved step; empty where it was saved without validation.

    Raises:
      UserError: they are damaged.
      OSError: the disk does not give them.
    """
    return _read_json(_metrics_path(step_directory(run_directory, step)))


def step_progress(run_directory: Path, step: int) -> dict[str, Any]:
    """Tokens and seconds up to a saved step. Raises as `step_metrics`."""
    return _read_json(step_directory(run_directory, step) / PROGRESS_ITEM / "metadata")


def _metrics_path(step_folder: Path) -> Path:
    return step_folder / METRICS_ITEM / "metrics"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        step = path.parent.parent
        raise UserError(
            f"{path}: is damaged ({error}). Remove {step}, or name another step than the best (RUN@<step>)"
        ) from error


def best_step(run_directory: Path) -> int | None:
    """The saved step with the lowest val/loss, the earlier of equals; None if no saved step was validated."""
    return _best({step: step_metrics(run_directory, step) for step in saved_steps(run_directory)})


def _best(metrics: dict[int, dict[str, float]]) -> int | None:
    losses = {step: found[VALIDATION_LOSS] for step, found in metrics.items() if VALIDATION_LOSS in found}
    return min(losses, key=lambda step: (losses[step], step)) if losses else None


def keep_step(step_folder: Path) -> None:
    """Has the run that a step belongs to keep it whatever ``checkpoint.save_total_limit`` says: another rests on it.

    Raises:
      OSError: it cannot be written there.
    """
    run_directory, step = step_folder.parent.parent, int(step_folder.name)
    steps = sorted({*needed_steps(run_directory), step})
    write_whole(run_directory / NEEDED_FILE, json.dumps(steps) + "\n")


def needed_steps(run_directory: Path) -> list[int]:
    """Steps that other runs rest on. Raises UserError where the list is damaged."""
    path = run_directory / NEEDED_FILE
    try:
        return [int(step) for step in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); it lists the steps that other runs rest on, as [3, 8] (what they name as "
            "base.path in their config.json). Write it anew, or remove it if there are none"
        ) from error


def remove_old_steps(run_directory: Path, *, keep: int | None, save_best: bool) -> None:
    """Removes what nothing asks to keep.

    Kept are the newest step, the ``keep`` newest that were validated (None: all), the best with ``save_best``, and
    those that other runs rest on. So a step that was saved between two validations never drives one of those out.
    """
    steps = saved_steps(run_directory)
    metrics = {step: step_metrics(run_directory, step) for step in steps}
    validated = [step for step in steps if VALIDATION_LOSS in metrics[step]]
    kept = {*steps[-1:], *validated[-keep if keep else None :], *needed_steps(run_directory)}
    if save_best:
        kept.add(_best(metrics) or 0)
    for step in set(steps) - kept:
        folder = step_directory(run_directory, step)
        shutil.rmtree(folder.rename(folder.with_name(f"{step}{_REMOVED}")), ignore_errors=True)


def remove_unfinished(run_directory: Path, step: int | None = None) -> None:
    """Removes what a killed or failed process has left of saves and removals (of ``step`` alone, if given)."""
    folder = run_directory / CHECKPOINTS_FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) and step in (None, int(path.name.partition(".")[0])):
            shutil.rmtree(path, ignore_errors=True)


def write_checksums(folder: Path) -> None:
    """Writes down size and SHA-256 of all files below a step's folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in _UNCHECKED]
    with ThreadPoolExecutor(_THREADS) as pool:
        record = dict(zip(names, pool.map(_size_and_digest, [folder / name for name in names]), strict=True))
    (folder / CHECKSUMS_FILE).write_text(json.dumps(record, indent=0) + "\n")
    os.sync()  # all of it is on the disk before the step gets its name and older ones go


def _size_and_digest(path: Path) -> list[Any]:
    """What `CHECKSUMS_FILE` says of a file."""
    return [path.stat().st_size, sha256_of(path)]


def add_metrics(run_directory: Path, step: int, metrics: dict[str, float]) -> None:
    """Gives a saved step the metrics of a validation that was still owed to it. Raises OSError."""
    folder = step_directory(run_directory, step)
    path = _metrics_path(folder)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(metrics))
    if (folder / CHECKSUMS_FILE).is_file():
        record = json.loads((folder / CHECKSUMS_FILE).read_text())
        record[path.relative_to(folder).as_posix()] = _size_and_digest(path)
        write_whole(folder / CHECKSUMS_FILE, json.dumps(record, indent=0) + "\n")


def find_damage(folder: Path, items: Iterable[str] | None = None) -> str | None:
    """Compares a step's files with its checksums.

    Args:
      folder: of the step.
      items: which of its folders are read, e.g. ``("params",)``; None: all that is there.

    Returns:
      What is wrong, for people, naming the file; None where all is as it was written, or where there are no
      checksums (a step of an earlier version).

    Raises:
      OSError: the disk does not give the files.
    """
    try:
        made_with = dict(json.loads((folder / _METADATA_FILE).read_text())).get("custom_metadata")
        if made_with != WITH_CHECKSUMS and not (folder / CHECKSUMS_FILE).exists():
            return None
        record = dict(json.loads((folder / CHECKSUMS_FILE).read_text()))
        if not all(isinstance(size, int) and isinstance(digest, str) for size, digest in record.values()):
            raise ValueError("no sizes and digests")
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError) as error:
        return f"{_METADATA_FILE} or {CHECKSUMS_FILE} is damaged ({error})"
    if not record:
        return f"{CHECKSUMS_FILE} is empty"
    wanted = None if items is None else tuple(f"{item}/" for item in items)
    record = {name: entry for name, entry in record.items() if wanted is None or name.startswith(wanted)}
    for name, (size, _) in record.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(sha256_of, [folder / name for name in record])
        wrong = [name for name, digest in zip(record, digests, strict=True) if digest != record[name][1]]
    return f"{wrong[0]} has other contents than were written" if wrong else None


def latest_sound_step(run_directory: Path) -> int | None:
    """The newest step that is as it was written; None if there is none. Damaged newer ones are set aside, aloud.

    Raises:
      Failure: the disk does not give the files.
    """
    folder = run_directory / CHECKPOINTS_FOLDER
    steps = saved_steps(run_directory)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.isdigit() and int(path.name) not in steps:
            _set_aside(path, "it is not whole")
    for step in reversed(steps):
        path = step_directory(run_directory, step)
        try:
            damage = find_damage(path)
        except OSError as error:
            raise Failure(
                f"{path}: cannot be read ({error.strerror or error}); check the volume, and start again: nothing was "
                "changed"
            ) from error
        if damage is None:
            return step
        _set_aside(path, damage)
    return None


def _set_aside(folder: Path, damage: str) -> None:
    aside = folder.with_name(folder.name + _DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    before = [step for step in saved_steps(folder.parent.parent) if step < int(folder.name)]
    going_on = f"going on from step {before[-1]}, the one before it" if before else "there is none before it"
    err.print(
        f"[yellow]{folder} is damaged:[/] {damage}. It is kept as {aside.name}; {going_on}",
        highlight=False,
        soft_wrap=True,
    )


@functools.cache
def check_step(folder: Path) -> None:
    """Compares the weights of a step with its checksums, once in a process.

    Raises:
      UserError: they are not what was written.
    """
    damage = find_damage(folder, (PARAMS_FOLDER, ADAPTER_FOLDER))
    if damage is not None:
        raise UserError(
            f"{folder}: this checkpoint is damaged: {damage}. Name another step of its run (RUN@<step>); training that "
            "run again (the same command) sets the damaged step aside"
        )
