"""Attention kernels on packed rows and on rows of one document: time and memory, forward and backward.

``python -m benchmarks.attention [--rows 4] [--length 2048] [--heads 32] [--json] [--record]``. Every kernel that the
device has is timed beside XLA's, which holds all scores. On a CPU there is XLA's alone: with documents as a mask beside
the plain causal form.
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
from wmtp_jax.models.attention import KERNELS, attend, choose_kernel, documents

TITLE = "Attention"
WIDTH = 128


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--rows", type=int, default=4, help="default: 4")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a row (default: 2048)")
    parser.add_argument("--heads", type=int, default=32, help=f"of width {WIDTH} (default: 32)")
    parser.add_argument("--repeats", type=int, default=10, help="times that each is run (default: 10)")
    args = parse_arguments(parser, argv)
    figures = _measure(args)
    show(args, TITLE, f"attention --rows {args.rows} --length {args.length} --heads {args.heads}", figures)
    return 0


def _measure(args: argparse.Namespace) -> dict[str, float]:
    platform = jax.devices()[0].platform
    dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16
    rng = np.random.default_rng(0)
    shape = (args.rows, args.length, args.heads, WIDTH)
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4))
    parts = np.sort(rng.integers(1, args.length, (args.rows, 5)), axis=1)  # six documents a row
    segments = jnp.asarray(1 + np.sum(np.arange(args.length)[:, None] >= parts[:, None], axis=-1), jnp.int32)
    programs: dict[str, Any] = {}
    for packed in (False, True):
        for kernel in KERNELS:
            try:
                choose_kernel(
                    kernel, platform, dtype=dtype, head_width=WIDTH, length=args.length, one_document=not packed
                )
            except ValueError:
                continue

            def both(q: Any, k: Any, v: Any, cotangent: Any, kernel: str = kernel, packed: bool = packed) -> Any:
                where = documents(segments if packed else None, kernel)
                result, pull = jax.vjp(lambda q, k, v: attend(q, k, v, where, kernel), q, k, v)
                return result, *pull(cotangent)

            name = f"{kernel}_{'packed' if packed else 'one_document'}"
            programs[name] = jax.jit(both).lower(q, k, v, cotangent).compile()
    inputs = q, k, v, cotangent
    times = time_in_turn({name: partial(run, *inputs) for name, run in programs.items()}, args.repeats)
    figures: dict[str, float] = {}
    for name, run in programs.items():
        figures[f"{name}_milliseconds"] = 1e3 * times[name]
        figures[f"{name}_temporaries_mib"] = run.memory_analysis().temp_size_in_bytes / 2**20
    for name in programs:
        naive = f"xla_{name.partition('_')[2]}"
        if name != naive:
            ratio = figures[f"{name}_milliseconds"] / figures[f"{naive}_milliseconds"]
            figures[f"{name}_over_xla_time"] = ratio
    figures["xla_one_document_over_packed_time"] = (
        figures["xla_one_document_milliseconds"] / figures["xla_packed_milliseconds"]
    )
    return figures


if __name__ == "__main__":
    run_command(main)
