"""Lines of ``metrics.jsonl`` as tests compare them."""

from pathlib import Path

from wmtp_jax.training.metrics_file import read_metrics

_TIMING = ("time", "perf/", "system/")


def untimed_metrics(run_directory: Path) -> list[dict]:
    """The lines without what differs between two equal runs: when they were written, and how long steps took."""
    return [{k: v for k, v in line.items() if not k.startswith(_TIMING)} for line in read_metrics(run_directory)]
