"""The training step of the micro preset: ours beside PyTorch, and packed rows beside padded ones.

``python -m benchmarks.training_step [--steps 8] [--json] [--record]``. Both sides train the same model on the
same tokens: AdamW, gradient clipping, float32. Times are medians of whole updates after one to warm up;
``floor`` is what the update would take at the measured speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import parse_arguments, show, time_in_turn
from wmtp_jax.config import Settings
from wmtp_jax.console import err
from wmtp_jax.data.batches import RowSource
from wmtp_jax.data.pack import Rows
from wmtp_jax.data.sample import draw
from wmtp_jax.data.store import open_split
from wmtp_jax.errors import run_command
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.objective import make_objective
from wmtp_jax.training.optimizer import learning_rate_schedule, make_optimizer
from wmtp_jax.training.stages import STAGES
from wmtp_jax.training.step import init_state, make_train_step
from wmtp_jax.training.throughput import device_memory_gb, forward_flops, matmul_peak, update_flops


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="updates that are timed (default: 8)")
    parser.add_argument("--data", type=Path, default=Path("storage/datasets_v2/mini"), help="a processed data set")
    args = parse_arguments(parser, argv)
    settings = load_settings(Path("configs/baseline/micro.yaml"))
    config = settings.model.architecture
    assert config is not None
    sources = [_read(settings, args.data, packing) for packing in (True, False)]
    batch = np.arange(settings.training.batch_size)
    packed, padded = (source[batch] for source in sources)
    full = packed._replace(segment_ids=np.ones_like(packed.segment_ids), loss_mask=np.ones_like(packed.loss_mask))
    err.print("ours, packed rows", highlight=False)
    compile_s, packed_s = _time_ours(settings, config, packed, args.steps)
    err.print("ours, padded rows", highlight=False)
    _, padded_s = _time_ours(settings, config, padded, args.steps)
    err.print("ours and PyTorch, full rows of one document", highlight=False)
    _, full_s = _time_ours(settings, config, full, args.steps)
    torch_s = _time_torch(settings, config, full, args.steps)
    figures = {
        "compile_seconds": compile_s,
        "step_seconds": packed_s,
        "floor_seconds": update_flops(forward_flops(config, sources[0].lengths(batch), config.n_future_tokens))
        / matmul_peak("float32"),
        "useful_tokens_per_second_packed": packed.n_tokens / packed_s,
        "useful_tokens_per_second_padded": padded.n_tokens / padded_s,
        "packed_over_padded": (packed.n_tokens / packed_s) / (padded.n_tokens / padded_s),
        "tokens_per_second_ours": full.tokens.size / full_s,
        "tokens_per_second_torch_eager": full.tokens.size / torch_s,
        "ours_over_torch_eager": torch_s / full_s,
        "peak_memory_gb_both": device_memory_gb(),
    }
    show(args, "Training step, micro preset", f"training_step --steps {args.steps}", figures)
    return 0


def _read(settings: Settings, data: Path, packing: bool) -> RowSource:
    """Rows of real documents, packed or one a row."""
    split, max_length = open_split(data, "train"), settings.dataset.max_length
    usable = np.flatnonzero(split.is_correct & (split.lengths <= max_length))
    return RowSource(
        split, draw(usable, 400, 0, "correct solutions", "the benchmark"), max_length, packing=packing, seed=0
    )


def _time_ours(settings: Settings, config: ModelConfig, rows: Rows, steps: int) -> tuple[float, float]:
    """Seconds to compile, and of one update."""
    graphdef, _ = store.build(config, unroll=settings.training.unroll_layers)
    rate = learning_rate_schedule(settings.training, 1000)
    optimizer = make_optimizer(settings.training, rate)
    objective = make_objective(STAGES["baseline"], settings, config.n_future_tokens, total_steps=1000, n_documents=1)
    params = store.random_params(config, 0, "float32", make_mesh((-1, 1, 1)))
    state = init_state(params, optimizer, objective.trains)
    batch = rows.map(lambda field: jnp.asarray(field)[None])
    update = make_train_step(graphdef, optimizer, rate, objective)
    start = time.perf_counter()
    step = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def once() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return compile_seconds, time_in_turn({"step": once}, steps)["step"]


def _time_torch(settings: Settings, config: ModelConfig, rows: Rows, steps: int) -> float:
    """Seconds of one update of the same model in eager PyTorch (the reference of `conversion verify`)."""
    import torch

    from conversion.layout import places
    from conversion.meta_mtp import LAYOUT
    from conversion.torch_reference import forward, loss

    params = {**vars(config)}
    tensors = {n: torch.nn.Parameter(0.02 * torch.randn(shape)) for n, (_, _, shape) in places(LAYOUT, config).items()}
    training = settings.training
    optimizer = torch.optim.AdamW(
        tensors.values(),
        lr=training.learning_rate,
        betas=(training.adam_b1, training.adam_b2),
        weight_decay=training.weight_decay,
    )
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))

    def once() -> None:
        optimizer.zero_grad()
        loss(forward(tensors, params, tokens), tokens, first_target=1).backward()
        torch.nn.utils.clip_grad_norm_(tensors.values(), training.max_grad_norm)
        optimizer.step()

    return time_in_turn({"step": once}, steps)["step"]


if __name__ == "__main__":
    run_command(main)
