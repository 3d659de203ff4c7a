"""Saving while training goes on, and restoring, beside what the disk and a plain copy do with the same bytes.

``python -m benchmarks.checkpoint [--gigabytes 2] [--directory DIR] [--repeats 3] [--json] [--record]``. A state of that
size (float32 weights and both moments, random, since zeros would compress) is trained with small steps. A save begins,
the steps go on until it is committed: what they take longer than before, and what the call itself takes, is the stall.
Reading is from the disk, not from the page cache (where the system heeds `posix_fadvise`); writing ends with `fsync`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import parse_arguments, show
from wmtp_jax.config import TrainingSettings
from wmtp_jax.data.pack import Rows
from wmtp_jax.errors import Failure, run_command
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import batch_sharding
from wmtp_jax.training.checkpoints import Checkpoints
from wmtp_jax.training.layout import CHECKPOINTS_FOLDER
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.optimizer import make_optimizer
from wmtp_jax.training.program import state_shardings
from wmtp_jax.training.step import TrainState, init_state, make_train_step
from wmtp_jax.weighting import uniform

TITLE = "Checkpoints beside the disk"
STEPS = 20  # before each save, to know what a step takes
ROW = 128  # tokens
OBJECTIVE = Objective(
    n_heads=1,
    scheme=uniform.weigh,
    reads_model=False,
    normalize="valid",
    value_loss=None,
    value_coef=1.0,
    needs_scores=False,
    needs_outcomes=False,
    draws=False,
    seed=0,
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the state, about (default: 2)")
    parser.add_argument("--directory", type=Path, help="a folder on the disk that is measured (default: temporary)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts (default: 3)")
    args = parse_arguments(parser, argv)
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        figures = _measure(Path(name), args.gigabytes, args.repeats)
    show(args, TITLE, f"checkpoint --gigabytes {args.gigabytes:g} --repeats {args.repeats}", figures)
    return 0


def _measure(folder: Path, gigabytes: float, repeats: int) -> dict[str, float]:
    mesh = make_mesh((1, -1, 1))
    rounds: list[dict[str, float]] = []
    with jax.set_mesh(mesh):
        state, step = _training(gigabytes, mesh)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
        with Checkpoints(folder, keep=1) as checkpoints:
            for _ in range(repeats):
                state, times = _save(checkpoints, state, step)
                saved = folder / CHECKPOINTS_FOLDER / str(times.pop("step"))
                total = times.pop("total")
                _forget(saved)
                times["restore_seconds"] = _restore(checkpoints, int(saved.name), target, total)
                rounds.append(times | _files(saved, folder, state))
    figures = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    rates = {
        name.replace("_seconds", "_gb_per_second"): (figures["files_gb"] if name in _OF_FILES else size) / seconds
        for name, seconds in figures.items()
        if name not in ("save_call_seconds", "step_seconds") and name.endswith("_seconds")
    }
    return {
        "state_gb": size,
        **figures,
        **rates,
        "save_over_write_time": figures["save_seconds"] / figures["write_seconds"],
        "restore_over_read_time": figures["restore_seconds"] / figures["read_seconds"],
        "hash_over_save_time": figures["hash_seconds"] / figures["save_seconds"],
    }


def _training(gigabytes: float, mesh: jax.sharding.Mesh) -> tuple[TrainState, Callable[[TrainState], Any]]:
    """A state of a size, and a step that takes its memory over, as the loop's does."""

    def config(n_layers: int) -> ModelConfig:
        return ModelConfig(
            dim=1024, n_layers=n_layers, n_heads=8, n_kv_heads=8, vocab_size=512, ffn_dim=2816, n_future_tokens=1
        )

    one, two = (store.count_params(store.build(config(n))[1])["total"] for n in (1, 2))
    n_layers = max(1, round((gigabytes * 1e9 / 12 - (2 * one - two)) / (two - one)))  # 4 bytes, three times
    graphdef, shapes = store.build(config(n_layers))
    optimizer = make_optimizer(TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1e-6), lambda _: 1e-6)
    places = state_shardings(shapes, optimizer, mesh, OBJECTIVE.trains)

    def fresh(params: Any) -> TrainState:
        state = init_state(params, optimizer, OBJECTIVE.trains)
        keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(state.opt_state))))
        filled = jax.tree.map(
            lambda x: jnp.abs(jax.random.normal(next(keys), x.shape, x.dtype)) if x.ndim else x, state.opt_state
        )
        return state._replace(opt_state=filled)

    params = store.random_params(config(n_layers), 0, "float32", mesh)
    state = jax.jit(fresh, out_shardings=places, donate_argnums=0)(params)
    shape = (1, math.prod(mesh.devices.shape), ROW)
    tokens = np.random.default_rng(0).integers(0, 512, shape, dtype=np.int32)
    rows = Rows(tokens, np.ones(shape, np.int32), np.ones(shape, bool))
    rows = jax.device_put(rows, rows.map(lambda _: batch_sharding(mesh, 1)))
    update = make_train_step(graphdef, optimizer, lambda _: 1e-6, OBJECTIVE)
    step = jax.jit(lambda state: update(state, rows), out_shardings=(places, None), donate_argnums=0)
    return step(state)[0], step


def _save(checkpoints: Checkpoints, state: TrainState, step: Any) -> tuple[TrainState, dict[str, Any]]:
    """Saves while steps go on; the state then, and what was saved and how long it all took."""

    def timed_step() -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = step(state)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - started

    usual = statistics.median(timed_step() for _ in range(STEPS))
    number, total = int(state.step), _total(state)
    started = time.perf_counter()
    checkpoints.save(state, {"val/loss": 1.0}, {"tokens": 0, "seconds": 0.0})
    call = time.perf_counter() - started
    waiting = threading.Thread(target=checkpoints.wait)
    waiting.start()
    slower = 0.0
    while waiting.is_alive():
        slower += timed_step() - usual
    seconds = time.perf_counter() - started
    return state, {
        "step": number,
        "total": total,
        "step_seconds": usual,
        "save_seconds": seconds,
        "save_call_seconds": call,
        "save_call_share": call / seconds,
        "stall_share": (call + max(slower, 0.0)) / seconds,
    }


def _restore(checkpoints: Checkpoints, step: int, target: TrainState, total: jax.Array) -> float:
    """Seconds to restore a step, which must be what was saved."""
    started = time.perf_counter()
    state = jax.block_until_ready(checkpoints.restore(step, target, {})[0])
    seconds = time.perf_counter() - started
    if float(_total(state)) != float(total):
        raise Failure("what is restored is not what was saved: it was overwritten while it was being written")
    return seconds


@jax.jit
def _total(state: TrainState) -> jax.Array:
    """A figure that another state has not."""
    return sum((jnp.sum(jnp.abs(leaf), dtype=jnp.float32) for leaf in jax.tree.leaves(state)), jnp.zeros(()))


_OF_FILES = ("copy_seconds", "read_seconds", "hash_seconds")  # the others are of the state's own bytes


def _files(saved: Path, folder: Path, state: TrainState) -> dict[str, float]:
    """Seconds for the files of a step: copied by ``cp``, read, hashed; and for the state's bytes, written to a file."""
    files = [path for path in saved.rglob("*") if path.is_file()]
    copy, raw = folder / "copy", folder / "raw"

    def copied() -> None:
        subprocess.run(["cp", "-r", str(saved), str(copy)], check=True)
        for path in copy.rglob("*"):
            if path.is_file():
                _sync(path)

    def written() -> None:
        with raw.open("wb") as file:
            for leaf in leaves:
                file.write(leaf.data)
        _sync(raw)

    def read() -> None:
        for path in files:
            with path.open("rb", buffering=0) as file:
                while file.read(2**24):
                    pass

    def hashed() -> None:
        for path in files:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]
    times = {"files_gb": sum(path.stat().st_size for path in files) / 1e9}
    for name, call in (("copy", copied), ("write", written), ("read", read), ("hash", hashed)):
        _forget(saved)
        times[f"{name}_seconds"] = _time(call)
    shutil.rmtree(copy)
    raw.unlink()
    return times


def _time(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _forget(folder: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run_command(main)
