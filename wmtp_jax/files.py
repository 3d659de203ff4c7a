"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from wmtp_jax.errors import Failure, UserError


@contextlib.contextmanager
def new_directory(
    directory: Path, *, overwrite: bool, is_ours: Callable[[Path], bool], what: str, source: Path | None = None
) -> Iterator[Path]:
    """A folder to write into that appears at ``directory`` when the context is left without an error.

    Until then nothing at ``directory`` changes; an error or an interruption leaves nothing behind, and what a
    kill has left is swept away by the next call for the same ``directory``.

    Args:
      directory: where the folder shall be.
      overwrite: replace what is there, if it is one of ours.
      is_ours: whether a folder may be replaced.
      what: what is written, for messages, e.g. ``"model"``.
      source: what is read meanwhile; it must not lie in ``directory``.

    Raises:
      UserError: ``directory`` exists and may not be replaced, or it cannot be written.
      Failure: the disk is full.
    """
    try:
        directory = directory.resolve() if not directory.is_symlink() else directory
        _sweep(directory)
        there = directory.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise UserError(f"{str(directory)[:100]!r}: cannot be a folder ({error}); give another destination") from error
    check_name(directory)
    if source is not None and directory in (source.resolve(), *source.resolve().parents):
        raise UserError(f"{source} lies in {directory}, which would be replaced; give another destination")
    if directory.is_symlink() or (there and not directory.is_dir()):
        raise UserError(f"{directory} is not a folder and is not replaced; give another destination")
    if there and not overwrite:
        raise UserError(f"{directory} exists; give another destination, or --overwrite to replace it")
    if there and any(directory.iterdir()) and not is_ours(directory):
        raise UserError(f"{directory} is no {what} of ours and is not replaced; give another destination")
    token = secrets.token_hex(4)
    partial = directory.with_name(f"{directory.name}.partial-{token}")
    replaced = directory.with_name(f"{directory.name}.replaced-{token}")
    with contextlib.ExitStack() as stack:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror}); give another destination") from error
        with contextlib.suppress(OSError):  # a volume without locks: then nothing is swept there either
            stack.enter_context(_locked(partial))
        try:
            yield partial
            os.sync()  # the contents are on the disk before the name is, should the machine go
            if there:
                with contextlib.suppress(OSError):
                    stack.enter_context(_locked(directory))
                directory.rename(replaced)
            partial.rename(directory)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Failure(
                    f"{directory}: the disk is full ({error.strerror}); nothing was left there. Free some space or "
                    "give a destination on another disk"
                ) from error
            raise
        finally:
            if not directory.exists() and replaced.exists():
                replaced.rename(directory)
            for left in (partial, replaced):
                shutil.rmtree(left, ignore_errors=True)


def check_name(directory: Path) -> None:
    """Raises UserError for a path that Orbax takes for a pattern: it would not find there what it has written."""
    if set("[\\") & set(str(directory.absolute())):
        raise UserError(f"{directory}: checkpoints cannot lie below a folder with [ or a backslash in its name")


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
    name = re.compile(re.escape(directory.name) + r"\.(partial|replaced)-[0-9a-f]{8}")
    if not directory.parent.is_dir():
        return
    for path in directory.parent.iterdir():
        match = name.fullmatch(path.name)
        # Whoever works on it holds its lock, on this machine or another; the lock goes with the process.
        with contextlib.suppress(OSError):
            if match and path.is_dir():
                with _locked(path):
                    if match[1] == "replaced" and not directory.exists():
                        path.rename(directory)
                    else:
                        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder. Raises OSError where somebody else does, or there are no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
