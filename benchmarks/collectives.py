"""What the 7B training step sends between 4 x A100 beside the least it could, read off the program compiled for them.

``python -m benchmarks.collectives [--json] [--record]``. No GPU is needed, but the CUDA plugin of JAX is (extra
``plan``). The floor of a micro-step is two gathers of all weights (forward and backward) and one scatter of their
gradients, in the type of the computation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from benchmarks.record import parse_arguments, show
from wmtp_jax.errors import Failure, run_command
from wmtp_jax.models import store
from wmtp_jax.settings_file import load_settings, production_preset

TITLE = "Traffic of the 7B baseline on 4 x A100"
BYTES = {"float32": 4, "bfloat16": 2}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collectives", description=__doc__)
    args = parse_arguments(parser, argv)
    figures = _measure()
    show(args, TITLE, "collectives", figures)
    return 0


def _measure() -> dict[str, float]:
    command = [sys.executable, "-m", "wmtp_jax.plan", "--stage", "baseline", "--json"]  # for 4 x a100-80gb
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"wmtp_jax.plan failed:\n{done.stderr[-2000:]}")
    plan = json.loads(done.stdout)
    if plan["compiled_for"] != "a100-80gb":
        raise Failure("the CUDA plugin of JAX is missing, and CPU devices send other things: pip install '.[plan]'")
    settings = load_settings(production_preset("baseline"))
    assert settings.model.architecture is not None
    weights = store.count_params(store.build(settings.model.architecture)[1])["total"]
    micro_steps = settings.training.gradient_accumulation_steps
    floor = 3 * weights * BYTES[settings.model.compute_dtype] / 1e9
    moved = {part["kind"]: part["bytes"] / micro_steps / 1e9 for part in plan["collectives"]}
    figures = {f"{kind}_gb_per_micro_step".replace("-", "_"): size for kind, size in moved.items()}
    total = moved["all-gather"] + moved["reduce-scatter"]
    return {**figures, "floor_gb_per_micro_step": floor, "gathers_and_scatters_over_floor": total / floor}


if __name__ == "__main__":
    run_command(main)
