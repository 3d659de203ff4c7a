"""Files and folders that appear whole or not at all, and work in parts that outlives a kill."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmtp_jax.console import err
from wmtp_jax.errors import Failure, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_JOB_FILE, WRITING = "job.json", ".writing"


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
    directory = _destination(directory, overwrite, is_ours, what, source)
    token = secrets.token_hex(4)
    partial = directory.with_name(f"{directory.name}.partial-{token}")
    with contextlib.ExitStack() as stack:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{directory}: cannot be written ({error.strerror}); give another destination") from error
        with contextlib.suppress(OSError):  # a volume without locks: then nothing is swept there either
            stack.enter_context(_locked(partial))
        try:
            yield partial
            _put(partial, directory, token)
        except OSError as error:
            if error.errno in _FULL:
                raise Failure(
                    f"{directory}: the disk is full ({error.strerror}); nothing was left there. Free some space or "
                    "give a destination on another disk"
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def resumed_directory(
    directory: Path,
    *,
    job: dict[str, Any],
    overwrite: bool,
    is_ours: Callable[[Path], bool],
    has_work: Callable[[Path], bool],
    what: str,
) -> Iterator[Path]:
    """As `new_directory`, but work that is interrupted is kept beside ``directory``, and gone on with.

    Args:
      directory, overwrite, is_ours, what: as there.
      job: what is made from what; unfinished work of another job is refused, or removed with ``overwrite``.
      has_work: whether a folder holds work that is worth keeping.

    Yields:
      A folder with what is there of the same job.

    Raises:
      UserError: ``directory`` may not be replaced or written, or somebody else is at work on it, or there is
        unfinished work of another job.
      Failure: the disk is full.
    """
    directory = _destination(directory, overwrite, is_ours, what)
    partial = directory.with_name(f"{directory.name}.partial")
    kept = "finished parts are kept, and the same command goes on from there"
    # Nothing is lost where nothing was finished.
    with open_job(partial, job, overwrite=overwrite or not has_work(partial)):
        try:
            yield partial
            _put(partial, directory, secrets.token_hex(4))
            (directory / _JOB_FILE).unlink()
        except KeyboardInterrupt:
            if has_work(partial):
                err.print(kept, highlight=False)
            raise
        except OSError as error:
            if error.errno in _FULL:
                kept = f"{kept}, once there is space" if has_work(partial) else "nothing was finished"
                raise Failure(f"{partial}: the disk is full; {kept}") from error
            raise
        finally:
            if partial.is_dir() and not has_work(partial):
                shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def open_job(folder: Path, job: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Makes a folder for work in parts, or finds the one in which the same job was interrupted; holds its lock.

    Args:
      folder: where the parts are written.
      job: what is made from what, in JSON's types.
      overwrite: remove the parts of another job.

    Raises:
      UserError: it holds something else, or cannot be written, or another process is at work in it.
    """
    note = folder / _JOB_FILE
    with contextlib.ExitStack() as stack:
        try:
            begun = {note.with_suffix(WRITING)}
            if folder.exists() and (not folder.is_dir() or (set(folder.iterdir()) - begun and not note.is_file())):
                raise UserError(f"{folder}: is in the way and nothing of ours; remove it or name another destination")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_locked(folder))
            except BlockingIOError as error:
                raise UserError(f"{folder}: another process is at work in it; wait for it, or stop it") from error
            except OSError:  # a volume without locks
                err.print(f"{folder}: cannot be locked; start no second process on it", highlight=False, soft_wrap=True)
            before = _read_job(note)
            if before != job:
                if before is not None and not overwrite:
                    changed = ", ".join(name for name in {**before, **job} if before.get(name) != job.get(name))
                    raise UserError(
                        f"{folder}: holds unfinished work that was started otherwise (different: {changed}); give the "
                        "same options to go on with it, or --overwrite to begin anew"
                    )
                _write_job(note, {})  # of no job, should the removal be cut short
                for path in set(folder.iterdir()) - {note}:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                _write_job(note, job)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}); give another destination") from error
        yield


def _write_job(note: Path, job: dict[str, Any]) -> None:
    write_whole(note, json.dumps(job))


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there as it was or as it shall be, whatever happens meanwhile. Raises OSError."""
    writing = path.with_suffix(WRITING)
    try:
        with writing.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        writing.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            writing.unlink()
        raise


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_job(note: Path) -> dict[str, Any] | None:
    """The job that a folder was made for; None where there is none yet."""
    if not note.is_file():
        return None
    try:
        return dict(json.loads(note.read_text()))
    except ValueError:
        return {}


def check_name(directory: Path) -> None:
    """Raises UserError for a path that Orbax takes for a pattern: it would not find there what it has written."""
    if set("[\\") & set(str(directory.absolute())):
        raise UserError(f"{directory}: checkpoints cannot lie below a folder with [ or a backslash in its name")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's refusal to read ``path`` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from error


def _destination(
    directory: Path, overwrite: bool, is_ours: Callable[[Path], bool], what: str, source: Path | None = None
) -> Path:
    """The folder to make, resolved. Raises UserError where it cannot be one or may not be replaced."""
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
    return directory


def _put(partial: Path, directory: Path, token: str) -> None:
    """Moves a finished folder to its place; what was there goes only when that has worked."""
    os.sync()  # the contents are on the disk before the name is, should the machine go
    replaced = directory.with_name(f"{directory.name}.replaced-{token}")
    with contextlib.ExitStack() as stack:
        try:
            if directory.exists():
                with contextlib.suppress(OSError):
                    stack.enter_context(_locked(directory))
                directory.rename(replaced)
            partial.rename(directory)
        finally:
            if not directory.exists() and replaced.exists():
                replaced.rename(directory)
            shutil.rmtree(replaced, ignore_errors=True)


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
