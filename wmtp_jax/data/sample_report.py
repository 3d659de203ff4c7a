"""What was drawn from a data set: figures for the table at the start of a run and for its ``samples.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

from wmtp_jax.console import table

Method = Literal["correct", "balanced", "pairs"]


@dataclass(frozen=True)
class LeftOut:
    """Solutions that could not be drawn, each counted once, for the first of these reasons.

    Attributes:
      too_long: longer than a row.
      in_no_bin: their difficulty is in no bin, or in one of weight 0.
      one_kind_only: their problem has none of the other kind (``balanced``, ``pairs``).
      one_kind_only_problems: how many problems that are.
      unpaired_by_length: there is a partner left for them in their problem, but none of their length (``pairs``).
    """

    too_long: int
    in_no_bin: int
    one_kind_only: int
    one_kind_only_problems: int
    unpaired_by_length: int = 0


@dataclass(frozen=True)
class BinReport:
    """Solutions of one bin of difficulty.

    Attributes:
      asked: its share of all that are drawn; None where no shares were asked for.
      got: those drawn.
      filled: of the asked, those that it did not have and that other bins made up for.
    """

    asked: int | None
    got: int
    filled: int


@dataclass(frozen=True)
class SampleReport:
    """What was drawn from a split.

    Attributes:
      method: as in ``data_sampling.method``.
      candidates: solutions of the kinds that the method uses.
      correct, incorrect: solutions drawn.
      pairs: pairs drawn; 0 with another method.
      problems: problems that the drawn solutions belong to.
      tokens: ``min``, ``median``, ``mean`` and ``max`` of the lengths of the drawn solutions, prompts included.
      bins: by name of the bin of difficulty; empty without bins.
      left_out: which candidates could not be drawn.
    """

    method: Method
    candidates: int
    correct: int
    incorrect: int
    pairs: int
    problems: int
    tokens: dict[str, float]
    bins: dict[str, BinReport]
    left_out: LeftOut


def sample_table(reports: dict[str, SampleReport]) -> Table:
    """A column a split; a row is there where a split has something to say in it."""
    columns = [dict(_lines(report)) for report in reports.values()]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in names]
    return table("Examples drawn", ["", *reports], rows)


def _lines(report: SampleReport) -> list[tuple[str, str]]:
    left_out = report.left_out
    counts = [
        ("candidates", report.candidates),
        ("left out: too long", left_out.too_long),
        ("left out: difficulty in no bin", left_out.in_no_bin),
        ("left out: problem with one kind only", left_out.one_kind_only),
        ("  such problems", left_out.one_kind_only_problems),
        ("left out: no partner of its length", left_out.unpaired_by_length),
        ("correct solutions", report.correct),
        ("incorrect solutions", report.incorrect),
        ("pairs", report.pairs),
        ("problems", report.problems),
    ]
    lengths = report.tokens
    lines = [(name, f"{count:,}") for name, count in counts if count]
    lines += [(f"tokens, {name}", f"{lengths[name]:,.0f}") for name in ("min", "median", "mean", "max")]
    for name, of_bin in report.bins.items():
        asked = "" if of_bin.asked is None else f" (asked: {of_bin.asked:,})"
        lines.append((f"difficulty {name}", f"{of_bin.got:,}{asked}"))
        if of_bin.filled:
            lines.append((f"  too few in {name}, others taken", f"{of_bin.filled:,}"))
    return lines
