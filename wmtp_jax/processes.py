"""What the processes of a run agree on: one speaks, and what one finds wrong ends all of them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

import jax

from wmtp_jax.console import err, out
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.parallel import distributed

A_DAY = 86_400.0
_GONE = "If another process has gone, its output says why; start all again, and they continue from the last checkpoint"


def join_processes() -> None:
    """Starts `jax.distributed` where the environment speaks of several processes; from here on process 0 speaks.

    Raises:
      UserError: the environment contradicts itself, or that of another process.
      Failure: not all processes have come.
    """
    try:
        cluster = distributed.find_cluster()
        if cluster is None:
            return
        distributed.start(cluster)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"several processes: {error} (docs/scaling.md)") from error
    except OSError as error:  # a TimeoutError is one
        raise Failure(f"several processes: {error} (docs/scaling.md)") from error
    out.quiet = err.quiet = not distributed.is_first()
    # Figures alone go to standard output; what libraries write there (Gloo does) goes to standard error.
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


def refuse_processes(command: str) -> None:
    """Raises UserError where the environment speaks of several processes and ``command`` works in one."""
    try:
        cluster = distributed.find_cluster()
    except ValueError as error:
        raise UserError(f"several processes: {error} (docs/scaling.md)") from error
    if cluster:
        raise UserError(
            f"{command} runs as one process, on all devices of its host; the environment speaks of "
            f"{cluster.n_processes} processes. Start it once, with JAX_NUM_PROCESSES=1"
        )


@contextlib.contextmanager
def agreed(what: str, wait_s: float = A_DAY) -> Iterator[None]:
    """What follows must succeed in every process: an error in one is an error in all; process 0 tells it.

    Args:
      what: a name for messages, e.g. ``"reading the data"``.
      wait_s: how long a process with an error waits for the others before it goes alone: they may stand where the
        processes work on one array together, and do not come. They end when jax misses it.
    """
    mine: UserError | Failure | None = None
    try:
        yield
    except (UserError, Failure) as error:
        mine = error
    except jax.errors.JaxRuntimeError as error:
        if not distributed.is_several():
            raise
        raise _alone(what, Failure(f"{_first_line(error)}. {_GONE}")) from error
    said = [type(mine).__name__, str(mine)] if mine else None
    try:
        wrong = {n: error for n, error in enumerate(distributed.exchange(said, wait_s if mine else A_DAY)) if error}
    except TimeoutError:
        if mine is None:
            raise
        raise _alone(what, mine) from mine
    if not wrong:
        return
    process, (kind, text) = next(iter(wrong.items()))
    if not distributed.is_first():
        sys.exit(2 if kind == UserError.__name__ else 1)
    if mine:
        raise mine
    raise (UserError if kind == UserError.__name__ else Failure)(f"process {process}, {what}: {text}")


def _alone(what: str, error: UserError | Failure) -> UserError | Failure:
    """An error that no other process tells."""
    err.quiet = False
    return type(error)(f"process {distributed.process_id()} ({socket.gethostname()}), {what}: {error}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
