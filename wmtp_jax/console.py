"""What a command shows: figures on standard output, everything else on standard error."""

import datetime
import json
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console()
err = Console(stderr=True)


def table(title: str, columns: list[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A summary table: the first column is text, the others are right-aligned figures."""
    result = Table(title=title, title_justify="left", title_style="bold", min_width=len(title))
    for i, column in enumerate(columns):
        result.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*[str(cell) for cell in row])
    return result


def print_json(figures: dict[str, Any]) -> None:
    """Writes one JSON object, on one line, to standard output (``--json``)."""
    print(json.dumps(figures, ensure_ascii=False, default=str))


class Steps:
    """Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

    Args:
      description: what is being done, e.g. ``"running programs"``.
      total: how many units there are; None where it is not known.
      every: off a terminal, a line is printed each time another ``every`` fraction is done.
      in_bytes: units are bytes, and are shown as MB or GB.
      done: units that were done before.
    """

    def __init__(
        self,
        description: str,
        total: int | None = None,
        every: float = 0.1,
        in_bytes: bool = False,
        done: int = 0,
    ):
        self._description, self._every, self._in_bytes = description, every, in_bytes
        # Where the total is not known, a line every thousand.
        self._total, self._per_line = total, (total or 1000 / every) * every
        self._done, self._before, self._started = done, done, time.monotonic()
        self._progress: Progress | None = None
        if err.is_terminal and not err.quiet:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),  # all columns fit into 80 characters
                DownloadColumn() if in_bytes else MofNCompleteColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=err,
            )
            self._task = self._progress.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> "Steps":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Counts ``amount`` more units as done; ``note`` is shown beside the bar."""
        self._done += amount
        if self._progress:
            self._progress.update(self._task, advance=amount, note=note)
            return
        # The small part is for sums like 20 x 0.05, which are a little above 1.
        if (self._done + 1e-6) // self._per_line > (self._done - amount + 1e-6) // self._per_line:
            done = self._amount(self._done)
            if self._total:
                done += f"/{self._amount(self._total)} ({100 * self._done // self._total}%){self._left()}"
            err.print(f"{self._description}: {done} {note}".rstrip(), highlight=False, soft_wrap=True)

    def _left(self) -> str:
        assert self._total is not None
        seconds = (time.monotonic() - self._started) * (self._total - self._done) / max(self._done - self._before, 1)
        return f" {datetime.timedelta(seconds=round(seconds))} left" if seconds >= 1 else ""

    def _amount(self, value: int) -> str:
        return f"{value / 1e6:,.1f} MB" if self._in_bytes else f"{value:,}"

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        (self._progress.console if self._progress else err).print(text, highlight=False, soft_wrap=True)
