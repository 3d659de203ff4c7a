"""The disk that something is written to: whether it takes files, has room, and who is at work there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wmtp_jax.console import err
from wmtp_jax.errors import Failure, UserError

LOCK_FILE = "run.lock"  # in a run directory


def check_free_space(directory: Path, needed: int) -> None:
    """Raises Failure where the disk of ``directory`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise Failure(
            f"{directory.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; free some space or "
            "give a destination on another disk"
        )


def check_writable(directory: Path, setting: str) -> None:
    """Writes and removes a small file in ``directory``, or in the nearest folder above it that exists.

    Raises:
      UserError: it cannot be written there: a volume is read-only, full or away, or there is no right to.
    """
    nearest = directory
    try:
        above = (directory, *directory.absolute().parents)
        nearest = next(path for path in above if path.exists() or path.is_symlink())
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        away = f" ({nearest} leads to {os.readlink(nearest)}, which is not there)" if os.path.islink(nearest) else ""
        raise UserError(
            f"{directory}: cannot be written: {error.strerror or error}{away}. Is the volume there, writable, and not "
            f"full? See {setting}"
        ) from error


@contextlib.contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Makes a run directory if there is none, and holds its lock; one that was made here and stayed empty goes again.

    Raises:
      UserError: another process is at work in it, or it cannot be made.
    """
    made = not directory.exists()
    handle = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # A file, open for writing: NFS gives an exclusive lock for nothing less.
        handle = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        assert handle is not None
        os.close(handle)
        raise UserError(
            f"{directory}: another process is at work on this run; wait for it, or stop it (kill -TERM: it saves "
            "first), or name another checkpoint.save_dir"
        ) from error
    except OSError as error:
        if handle is None:
            raise UserError(f"{directory}: cannot be written ({error.strerror}); see checkpoint.save_dir") from error
        err.print(f"{directory}: cannot be locked; start no second process on it", highlight=False, soft_wrap=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds a run
            if made and [path.name for path in directory.iterdir()] == [LOCK_FILE]:
                (directory / LOCK_FILE).unlink()
                directory.rmdir()
        os.close(handle)
