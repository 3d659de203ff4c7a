"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from wmtp_jax.errors import Failure, UserError


@contextlib.contextmanager
def new_directory(directory: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """A folder to write into that appears at ``directory`` when the context is left without an error.

    Until then nothing at ``directory`` changes; an error or an interruption leaves nothing behind, and what a
    kill has left is swept away by the next call for the same ``directory``.

    Args:
      directory: where the folder shall be.
      overwrite: replace what is there, if it is one of ours.
      is_ours: whether a folder may be replaced.
      what: what is written, for messages, e.g. ``"model"``.

    Raises:
      UserError: ``directory`` exists and may not be replaced, or it cannot be written.
      Failure: the disk is full.
    """
    try:
        _sweep(directory)
        there = directory.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise UserError(f"{str(directory)[:100]!r}: cannot be a folder ({error}); give another destination") from error
    if directory.is_symlink() or (there and not directory.is_dir()):
        raise UserError(f"{directory} is not a folder and is not replaced; give another destination")
    if directory.exists() and not overwrite:
        raise UserError(f"{directory} exists; give another destination, or --overwrite to replace it")
    if directory.exists() and any(directory.iterdir()) and not is_ours(directory):
        raise UserError(f"{directory} is not a {what} of ours and is not replaced; give another destination")
    partial = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    replaced = directory.with_name(f"{directory.name}.replaced-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror}); give another destination") from error
    try:
        yield partial
        os.sync()  # the contents are on the disk before the name is, should the machine go
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Failure(
                f"{directory}: the disk is full ({error.strerror}); nothing was left there. Free some space or "
                "give a destination on another disk"
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free_space(directory: Path, needed: int) -> None:
    """Raises Failure where the disk of ``directory`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Failure(
            f"{directory.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; free some space or "
            "give a destination on another disk"
        )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's refusal to read ``path`` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from error


def _sweep(directory: Path) -> None:
    """Removes what killed processes have left; puts back a folder that was being replaced."""
    name = re.compile(re.escape(directory.name) + r"\.(partial|replaced)-(\d+)")
    if not directory.parent.is_dir():
        return
    for path in directory.parent.iterdir():
        match = name.fullmatch(path.name)
        if not match or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not directory.exists():
            path.rename(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
