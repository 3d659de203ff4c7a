"""Conversion of a full-size 7B checkpoint beside copying the file, and beside PyTorch loading and saving it.

``python -m benchmarks.conversion [--folder DIR] [--layers 32] [--json] [--record]``. A synthetic checkpoint in
Meta's layout (bfloat16, random values, the published shapes; 13.5 GB) is made in a new folder below ``--folder``
and removed with everything else at the end. Every command runs in a process of its own; ``memory`` is the
largest resident set of that process, mapped pages of files included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.record import parse_arguments, show
from conversion.layout import places
from conversion.meta_mtp import CHECKPOINT, LAYOUT, PARAMS, params_of
from conversion.tensors import DTYPES, Entry, open_files, write_torch
from wmtp_jax.console import err
from wmtp_jax.errors import Failure, run_command
from wmtp_jax.models.config import ModelConfig

TITLE = "Conversion, Meta's layout at width 4096 in bfloat16"
_REST_SECONDS = 15
# Runs a command and prints the largest resident set among its processes, in bytes.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""
_TORCH = """
import sys, torch
torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("."), help="disk to measure; 45 GB are needed (default: .)")
    parser.add_argument("--layers", type=int, default=32, help="blocks of the model (default: 32, the 7B)")
    args = parse_arguments(parser, argv)
    config = ModelConfig(
        dim=4096, n_layers=args.layers, n_heads=32, n_kv_heads=32, vocab_size=32000, ffn_dim=11008, n_future_tokens=4
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        figures = _measure(config, Path(name))
    show(args, TITLE, f"conversion --layers {args.layers}", figures)
    return 0


def _measure(config: ModelConfig, folder: Path) -> dict[str, float]:
    source = folder / "source"
    n_bytes = _make(config, source)
    checkpoint = source / CHECKPOINT
    python = sys.executable
    figures: dict[str, float] = {"gigabytes": n_bytes / 1e9}
    export = [python, "-m", "conversion", "export", str(folder / "ours")]
    commands = {
        "copy": ["cp", str(checkpoint), str(folder / "copy")],
        "torch_load_save": [python, "-c", _TORCH, str(checkpoint), str(folder / "torch")],
        "import": [python, "-m", "conversion", "import", str(source), str(folder / "ours")],
        "export_meta": [*export, str(folder / "meta"), "--format", "meta-mtp"],
        "export_huggingface": [*export, str(folder / "hf"), "--format", "huggingface"],
        # Once more: the speed of a virtual disk changes by the minute, and the ratios are to the mean of both.
        "copy_again": ["cp", str(checkpoint), str(folder / "copy")],
    }
    for name, command in commands.items():
        err.print(name, highlight=False)
        seconds, memory = _run(command)
        figures[f"{name}_seconds"] = seconds
        figures[f"{name}_mb_per_second"] = n_bytes / 1e6 / seconds
        figures[f"{name}_memory_gib"] = memory / 2**30
        if name == "export_meta" and (differences := _differences(checkpoint, folder / "meta" / CHECKPOINT)):
            raise Failure(f"{differences} tensors are not the same after the round trip")
        for made in ("copy", "torch", "meta", "hf"):  # the disk holds no more than three at once
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder / made) if (folder / made).is_dir() else (folder / made).unlink()
    largest = max(int(np.prod(place.shape)) * 2 for place in places(LAYOUT, config).values())
    figures["memory_allowed_gib"] = 2 + largest / 2**30
    copy = (figures["copy_seconds"] + figures["copy_again_seconds"]) / 2
    for name in ("import", "export_meta", "export_huggingface"):
        figures[f"{name}_over_copy_speed"] = copy / figures[f"{name}_seconds"]
        figures[f"{name}_over_torch_speed"] = figures["torch_load_save_seconds"] / figures[f"{name}_seconds"]
    return figures


def _make(config: ModelConfig, folder: Path) -> int:
    """Writes the synthetic checkpoint; returns its size in bytes."""
    err.print("making the checkpoint", highlight=False)
    folder.mkdir()
    (folder / PARAMS).write_text(json.dumps(params_of(config)))
    entries = [Entry(name, place.shape, DTYPES["bfloat16"]) for name, place in places(LAYOUT, config).items()]

    def values() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for entry in entries:
            # Random bits with a small exponent: finite values of about 0.02, which no compression shortens.
            bits = rng.integers(0, 2**16, entry.shape, dtype=np.uint16)
            yield ((bits & 0x80FF) | 0x3C00).view(entry.dtype)

    write_torch(folder / CHECKPOINT, entries, values())
    return sum(entry.nbytes for entry in entries)


def _run(command: list[str]) -> tuple[float, int]:
    """Seconds from the disk to the disk, and bytes of the largest resident set."""
    os.sync()
    with contextlib.suppress(OSError):  # as root: the source is read from the disk, not from memory
        Path("/proc/sys/vm/drop_caches").write_text("3")
    # A virtual machine's host takes free memory back within seconds, and giving it again costs more than the
    # copying itself. Without this rest a short command runs in memory that is still there, a longer one does not.
    time.sleep(_REST_SECONDS)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=False)
    os.sync()
    seconds = time.perf_counter() - start
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return seconds, int(done.stdout.split()[-1])


def _differences(first: Path, second: Path) -> int:
    """Tensors that are not the same, bit for bit."""
    ours, theirs = open_files([first]), open_files([second])
    pairs = ((tensor, theirs[name]) for name, tensor in ours.items())
    return sum(not np.array_equal(a.read().view(np.uint16), b.read().view(np.uint16)) for a, b in pairs)


if __name__ == "__main__":
    run_command(main)
