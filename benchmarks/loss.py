"""The loss that never holds the logits beside the naive one: time, memory, difference.

``python -m benchmarks.loss [--width 512] [--vocabulary 32000] [--json] [--record]``. Both give the token losses of
4 heads over 2,048 positions and the gradients of hidden states and output matrix, in one compiled program each, timed
in turn. Differences are relative, of the whole arrays (Frobenius norms). ``floor`` is the time of the three products
that any way needs, at the measured speed of a large product.
On a GPU the types are bfloat16, as in training.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import parse_arguments, show, time_in_turn
from wmtp_jax.errors import run_command
from wmtp_jax.losses.cross_entropy import logits_cross_entropy, token_cross_entropy
from wmtp_jax.training.throughput import matmul_peak

TITLE = "Loss without logits"
HEADS, POSITIONS = 4, 2048


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description=__doc__)
    parser.add_argument("--width", type=int, default=512, help="of the hidden states (default: 512; the 7B has 4096)")
    parser.add_argument("--vocabulary", type=int, default=32000, help="default: 32000")
    parser.add_argument("--rows", type=int, default=1, help="default: 1")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is run (default: 5)")
    args = parse_arguments(parser, argv)
    figures = _measure(args)
    show(args, TITLE, f"loss --width {args.width} --vocabulary {args.vocabulary} --rows {args.rows}", figures)
    return 0


def _naive(hidden_nBSD: jax.Array, output_DV: jax.Array, targets_BSn: jax.Array) -> jax.Array:
    logits_nBSV = jnp.einsum("nbsd,dv->nbsv", hidden_nBSD, output_DV, preferred_element_type=jnp.float32)
    return jnp.moveaxis(logits_cross_entropy(logits_nBSV, jnp.moveaxis(targets_BSn, -1, 0)), 0, -1)


def _measure(args: argparse.Namespace) -> dict[str, float]:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(HEADS, args.rows, POSITIONS, args.width)), dtype)
    output = jnp.asarray(0.05 * rng.normal(size=(args.width, args.vocabulary)), dtype)
    targets = jnp.asarray(rng.integers(0, args.vocabulary, (args.rows, POSITIONS, HEADS)))
    cotangent = jnp.asarray(rng.uniform(size=targets.shape), jnp.float32)
    programs: dict[str, Any] = {}
    for name, function in (("naive", _naive), ("ours", token_cross_entropy)):

        def both(hidden: Any, output: Any, targets: Any, cotangent: Any, function: Any = function) -> Any:
            losses, pull = jax.vjp(lambda h, o: function(h, o, targets), hidden, output)
            return losses, *pull(cotangent)

        programs[name] = jax.jit(both).lower(hidden, output, targets, cotangent).compile()
    results = {name: jax.block_until_ready(run(hidden, output, targets, cotangent)) for name, run in programs.items()}
    inputs = hidden, output, targets, cotangent
    times = time_in_turn({name: partial(run, *inputs) for name, run in programs.items()}, args.repeats)
    figures: dict[str, float] = {}
    for name, run in programs.items():
        figures[f"{name}_seconds"] = times[name]
        figures[f"{name}_temporaries_mib"] = run.memory_analysis().temp_size_in_bytes / 2**20
    products = 3 * 2.0 * HEADS * args.rows * POSITIONS * args.width * args.vocabulary
    figures["floor_seconds"] = products / matmul_peak(dtype)
    figures["ours_over_naive_time"] = figures["ours_seconds"] / figures["naive_seconds"]
    figures["ours_over_naive_temporaries"] = figures["ours_temporaries_mib"] / figures["naive_temporaries_mib"]
    for number, name in enumerate(("loss", "hidden_gradient", "output_gradient")):
        ours, naive = (results[form][number].astype(jnp.float32) for form in ("ours", "naive"))
        figures[f"relative_difference_{name}"] = float(jnp.linalg.norm(ours - naive) / jnp.linalg.norm(naive))
    return figures


if __name__ == "__main__":
    run_command(main)
