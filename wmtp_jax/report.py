"""Compares runs in one table: ``python -m wmtp_jax.report RUN [RUN ...]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from wmtp_jax.console import err, out, print_json, table
from wmtp_jax.errors import UserError, run_command

EPILOG = """examples:
  python -m wmtp_jax.report storage/checkpoints/baseline/baseline-micro storage/checkpoints/rho1/rho1-micro
  python -m wmtp_jax.report storage/checkpoints/*/*-micro --json

val/loss is the unweighted loss of the heads, so that runs with different weightings compare; that of a critic is its
own. "pairs right" is the pairwise accuracy of the critic (0.5 is chance), "V ~ position" the correlation of its values
with the place of a token. Weights are means over the last tenth of the updates; "w. entropy" is 1 for equal weights."""
_WEIGHTS = {
    "train/weight_mean": "weight mean",
    "train/weight_entropy": "w. entropy",
    "train/weight_clipped_fraction": "w. clipped",
    "train/selected_fraction": "selected",
}
_VALUES = {
    "val/pairwise_accuracy": "pairs right",
    "val/explained_variance": "expl. var.",
    "val/position_correlation": "V ~ position",
}


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    runs = [run for path in args.runs if (run := _read(path))]
    if not runs:
        raise UserError("none of the runs has saved a checkpoint yet")
    if args.json:
        print_json({"runs": runs})
        return 0
    n_heads = max((len(run["head_ce_loss"]) for run in runs), default=0)
    stages = [run["stage"] for run in runs]
    rows: list[list[str]] = [
        *([["run", *(run["name"] for run in runs)]] if len(set(stages)) < len(stages) else []),
        ["steps", *(f"{run['steps']:,}" for run in runs)],
        ["best step", *(f"{run['best_step']:,}" for run in runs)],
        ["val/loss", *(f"{run['val/loss']:.4f}" for run in runs)],
    ]
    for k in range(n_heads):
        rows.append([f"head {k + 1} CE", *(_cell(dict(enumerate(run["head_ce_loss"])).get(k)) for run in runs)])
    for name, text in {**_VALUES, **_WEIGHTS}.items():
        cells = [_cell(run.get(name)) for run in runs]
        if any(cells):
            rows.append([text, *cells])
    out.print(table("Runs (validation at the best step)", ["", *stages], rows))
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.report",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args(argv)


def _read(directory: Path) -> dict[str, Any] | None:
    """Figures of one run; None, and a line that says so, where it has no checkpoint yet."""
    from wmtp_jax.training.manifest import read_stage
    from wmtp_jax.training.metrics_file import read_metrics
    from wmtp_jax.training.saved import best_step, saved_steps, step_metrics

    stage = read_stage(directory)
    best = best_step(directory)
    if best is None:
        err.print(f"{directory}: the run has not saved a validated checkpoint yet", highlight=False, soft_wrap=True)
        return None
    validation = step_metrics(directory, best)
    updates = [line for line in read_metrics(directory) if "train/loss" in line]
    last = updates[-max(len(updates) // 10, 1) :]
    weights = {
        name: float(np.mean([line[name] for line in last if name in line]))
        for name in _WEIGHTS
        if any(name in line for line in last)
    }
    heads = [validation[name] for k in range(1, 65) if (name := f"val/head_{k}_ce_loss") in validation]
    return {
        "name": directory.name,
        "stage": stage,
        "steps": max(saved_steps(directory)),
        "best_step": best,
        "val/loss": validation["val/loss"],
        "head_ce_loss": heads,
        **{name: validation[name] for name in _VALUES if name in validation},
        **weights,
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    run_command(main)
