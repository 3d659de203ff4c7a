"""What a command shows: figures on standard output, everything else on standard error."""

import json
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
    """

    def __init__(self, description: str, total: int | None = None, every: float = 0.1, in_bytes: bool = False):
        self._description, self._total, self._every, self._in_bytes = description, total, every, in_bytes
        self._done, self._next_line = 0, every
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
            self._task = self._progress.add_task(description, total=total, note="")

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
        # Where the total is not known, a line every thousand.
        total = self._total or 1000 / self._every
        if self._done >= self._next_line * total:
            while self._done >= self._next_line * total:
                self._next_line += self._every
            done = self._amount(self._done)
            if self._total:
                done += f"/{self._amount(self._total)} ({100 * self._done // self._total}%)"
            err.print(f"{self._description}: {done} {note}".rstrip(), highlight=False, soft_wrap=True)

    def _amount(self, value: int) -> str:
        return f"{value / 1e6:,.1f} MB" if self._in_bytes else f"{value:,}"

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        (self._progress.console if self._progress else err).print(text, highlight=False, soft_wrap=True)
