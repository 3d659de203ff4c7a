"""What every benchmark does with its figures: shows them, and appends them to ``benchmarks/RESULTS.md``."""

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from wmtp_jax.console import out, print_json, table
from wmtp_jax.provenance import code_revision

RESULTS = Path("benchmarks/RESULTS.md")


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments of a benchmark, with those that all have."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--record", action="store_true", help=f"append the table to {RESULTS}")
    return parser.parse_args(argv)


def time_in_turn(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each call, over rounds in which all run: what else the machine does meets all of them alike.

    A round more comes first and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(of_call[1:]) for name, of_call in times.items()}


def show(args: argparse.Namespace, title: str, command: str, figures: dict[str, float]) -> None:
    """Shows the figures of ``command`` (what follows ``python -m benchmarks.``); records them where that is asked."""
    rows = [[name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"] for name, value in figures.items()]
    if args.json:
        print_json(figures)
    else:
        out.print(table(title, ["", ""], rows))
    if args.record:
        _record(title, f"python -m benchmarks.{command} --record", rows)


def _record(title: str, command: str, rows: Sequence[Sequence[str]]) -> None:
    """Appends ``rows`` (name, value), with the date, the device, the versions and the commit."""
    commit = (code_revision() or {"commit": "unknown"})["commit"][:7]
    device = (
        f"{jax.devices()[0].device_kind} ({platform.machine()}, {jax.device_count()} device, {os.cpu_count()} cores)"
    )
    lines = [
        "",
        f"## {title}: {datetime.date.today()}",
        "",
        f"`{command}`; {device}; jax {jax.__version__}, Python {platform.python_version()}; after commit {commit}.",
        "",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))
