"""Frozen scores read from a file beside a frozen model that scores every batch: step time and memory.

``python -m benchmarks.scores [--steps 20] [--json] [--record]``. Trains the micro Rho-1 policy (random weights) with a
reference of the same size, both ways, each in a process of its own, on the embedded problems (made if they are not
there). The floor is the same step with uniform weights, which needs no reference at all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.record import parse_arguments, show
from wmtp_jax.console import err
from wmtp_jax.errors import Failure, run_command
from wmtp_jax.training.metrics_file import read_metrics

TITLE = "Rho-1 with frozen scores from a file"
DATA = Path("storage/datasets_v2/mini")
SKIPPED = 3  # first steps, which warm up


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="updates that are timed (default: 20)")
    args = parse_arguments(parser, argv)
    if not DATA.exists():
        _run("wmtp_jax.prepare", "--dataset", "mini", "--output", str(DATA))
    with tempfile.TemporaryDirectory() as name:
        figures = _measure(Path(name), args.steps)
    show(args, TITLE, f"scores --steps {args.steps}", figures)
    return 0


def _measure(folder: Path, steps: int) -> dict[str, float]:
    policy = yaml.safe_load(Path("configs/baseline/micro.yaml").read_text())["model"]["architecture"]
    reference, scores = folder / "reference", folder / "scores.arrow"
    # As deep as the policy, all blocks in front of its one head.
    architecture = {**policy, "n_future_tokens": 1}
    _train("reference", folder, reference, 1, {"model.architecture": architecture})
    common = {
        "model.path": None,
        "model.architecture": policy,
        "experiment.reference_model": str(reference),
        "data_sampling.n_samples": 1500,
    }
    sampled = ["--stage", "rho1", "--config", "configs/rho1/micro.yaml"]
    sampled += [part for key, value in common.items() for part in ("--override", f"{key}={json.dumps(value)}")]
    err.print("scoring", highlight=False)
    _run("wmtp_jax.score", "--model", str(reference), "--data", str(DATA), "--output", str(scores), *sampled)
    figures = {}
    forms: dict[str, dict[str, Any]] = {
        "uniform": {"weighting.scheme": "uniform"},
        "model": {},
        "file": {"weighting.scores": str(scores)},
    }
    for form, more in forms.items():
        _train("rho1", folder, folder / form, SKIPPED + steps, {**common, **more})
        lines = [line for line in read_metrics(folder / form) if "train/loss" in line][SKIPPED:]
        figures[f"{form}_step_seconds"] = float(np.median([line["perf/step_seconds"] for line in lines]))
        figures[f"{form}_memory_gb"] = max(line["system/device_memory_gb"] for line in lines)
        figures[f"{form}_loss"] = lines[-1]["train/loss"]
    if abs(figures["file_loss"] - figures["model_loss"]) > 1e-5 * abs(figures["model_loss"]):
        raise Failure("scores from the file do not train as the frozen model does")
    for form in ("file", "uniform"):
        figures[f"{form}_over_model_time"] = figures[f"{form}_step_seconds"] / figures["model_step_seconds"]
        figures[f"{form}_over_model_memory"] = figures[f"{form}_memory_gb"] / figures["model_memory_gb"]
    return figures


def _train(stage: str, folder: Path, save_dir: Path, steps: int, overrides: dict[str, Any]) -> None:
    err.print(f"training {save_dir.name}", highlight=False)
    settings = {
        "checkpoint.save_dir": str(save_dir),
        "training.max_steps": steps,
        "tracking.mlflow": False,
        "runtime.compilation_cache": str(folder / "xla"),
        **overrides,
    }
    changes = [part for key, value in settings.items() for part in ("--override", f"{key}={json.dumps(value)}")]
    _run("wmtp_jax.train", "--stage", stage, "--config", f"configs/{stage}/micro.yaml", *changes)


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{module} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    run_command(main)
