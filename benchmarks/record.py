"""Appends a benchmark's table to ``benchmarks/RESULTS.md``."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax

RESULTS = Path("benchmarks/RESULTS.md")


def record(title: str, command: str, rows: Sequence[Sequence[str]]) -> None:
    """Appends ``rows`` (name, value), with the date, the device, the versions and the commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    device = (
        f"{jax.devices()[0].device_kind} ({platform.machine()}, {jax.device_count()} device, {os.cpu_count()} cores)"
    )
    lines = [
        "",
        f"## {title}: {datetime.date.today()}",
        "",
        f"`{command}`; {device}; jax {jax.__version__}, Python {platform.python_version()}; after commit "
        f"{commit.stdout.strip() or 'unknown'}.",
        "",
        "| | |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
    ]
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines))
