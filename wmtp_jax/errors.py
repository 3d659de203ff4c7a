"""The two ways a command can end badly, and the one place that turns them into exit codes."""

import os
import sys
from collections.abc import Callable

from rich.markup import escape

from wmtp_jax.console import err


class UserError(Exception):
    """A mistake the user can mend: names what was found, what was expected and the remedy.

    Commands print it on standard error, without a traceback, and exit with code 2.
    """


class Failure(Exception):
    """Something went wrong that is not a mistake in the input, and is understood: exit code 1."""


def run_command(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> None:
    """Runs ``main`` and exits: 0 or its own code, 2 on a `UserError`, 1 on a `Failure`, 130 on Ctrl-C.

    Any other exception is a failure of ours: its traceback is shown and Python exits with 1.
    """
    try:
        code = main(argv)
        sys.stdout.flush()
    except (UserError, Failure) as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        code = 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        err.print("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is flushed into the pipe at exit
        code = 1
    sys.exit(code)
