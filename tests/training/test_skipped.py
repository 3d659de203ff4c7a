"""Updates that are skipped, for a figure that is not finite or for a spike: what is left, what is told, what goes on.

Runs are of stage critic: its rows hold figures, the outcomes, that can be spoiled.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from metric_lines import untimed_metrics

import wmtp_jax
from wmtp_jax.config import TrainingSettings
from wmtp_jax.data.batches import batch_numbers
from wmtp_jax.data.pack import Rows
from wmtp_jax.data.store import Split
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.optimizer import make_optimizer
from wmtp_jax.training.records import BAD_BATCHES_FILE
from wmtp_jax.training.run import build_run
from wmtp_jax.training.spikes import SpikeGuard
from wmtp_jax.training.stages import STAGES
from wmtp_jax.training.step import init_state, make_train_step
from wmtp_jax.weighting import uniform

ROOT = Path(__file__).parent.parent.parent
CRITIC = (
    "model.path=null",
    "model.architecture={dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, ffn_dim: 64, vocab_size: 300, "
    "n_future_tokens: 0, value_head: linear}",
    "training.train=full",
    "training.gradient_accumulation_steps=4",
    "training.n_epochs=3",
    "checkpoint.save_checkpoint_every=null",
)


def expected_spikes(losses: np.ndarray, norms: np.ndarray, sigma: float, window: int) -> list[bool]:
    """The guard, restated: every update beside the finite ones before it."""
    kept: list[tuple[float, float]] = []
    result = []
    for pair in zip(losses, norms, strict=True):
        before = np.array(kept[-window:], np.float64).reshape(-1, 2)
        spike = False
        if np.isfinite(pair).all():
            if 2 * len(before) >= window:
                spike = bool((pair > before.mean(axis=0) + sigma * before.std(axis=0, ddof=1)).any())
            kept.append(pair)
        result.append(spike)
    return result


@pytest.mark.parametrize(("sigma", "window"), [(6.0, 128), (3.0, 20), (2.0, 5), (1.0, 4)])
def test_the_guard_finds_what_its_definition_calls_a_spike(sigma: float, window: int):
    guard, found = SpikeGuard(sigma, window), 0
    judge = jax.jit(guard.judge)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        losses = rng.normal(2.0, 0.1, 300) + np.linspace(1.0, 0.0, 300)
        norms = rng.lognormal(0.0, 0.2, 300)
        losses[rng.choice(300, 6)] += rng.exponential(3.0, 6)
        norms[rng.choice(300, 6)] *= 1 + rng.exponential(20.0, 6)
        losses[200:] += 30.0  # a new level, which lasts
        losses[rng.choice(300, 5)] = np.nan
        norms[rng.choice(300, 5)] = np.inf
        losses, norms = losses.astype(np.float32), norms.astype(np.float32)
        recent, spikes = guard.initial(), []
        for loss, norm in zip(losses, norms, strict=True):
            finite = np.isfinite(loss) & np.isfinite(norm)
            spike, recent, _ = judge(recent, jnp.asarray(loss), jnp.asarray(norm), jnp.asarray(finite))
            spikes.append(bool(spike))
        assert spikes == expected_spikes(losses, norms, sigma, window)
        assert int(recent.spikes) == sum(spikes)
        assert spikes[200]
        assert not all(spikes[200 : 200 + window])  # accepted after a while
        assert not any(spikes[: window // 2])
        found += sum(spikes)
    assert found >= 8


def test_an_even_loss_is_no_spike_of_itself():
    """Nor is a lower one, however much lower."""
    guard = SpikeGuard(1.0, 4)
    recent = guard.initial()
    for loss in (2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 0.1):
        spike, recent, _ = guard.judge(recent, jnp.float32(loss), jnp.float32(0.7), jnp.array(True))
        assert not spike


def test_a_spike_changes_nothing_but_counts_and_the_window():
    """In two micro-batches, whose tokens weigh a thousand times as much once."""
    config = ModelConfig(dim=16, n_layers=2, n_heads=2, n_kv_heads=2, vocab_size=20, ffn_dim=16, n_future_tokens=1)
    graphdef, _ = store.build(config)
    settings = TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1e-3)
    optimizer, guard = make_optimizer(settings, lambda _: 1e-3), SpikeGuard(6.0, 8)

    def weigh(tokens, whitening):
        """Weights 1, or 1000 where the frozen scores say so."""
        weights, _, metrics = uniform.weigh(tokens, whitening)
        return weights * tokens.scores_BS[..., None], whitening._replace(count=whitening.count + 1), metrics

    objective = Objective(
        n_heads=1,
        scheme=weigh,
        reads_model=False,
        normalize="valid",
        value_loss=None,
        value_coef=1.0,
        needs_scores=True,
        needs_outcomes=False,
        draws=False,
        seed=0,
    )
    params = jax.device_get(store.random_params(config, 0, "float32", make_mesh((-1, 1, 1))))
    plain = init_state(params, optimizer, objective.trains)
    state = init_state(params, optimizer, objective.trains, guard)
    # Without a guard the state is what it was before there was one: runs begun then go on.
    assert plain.spikes is None
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(plain)) + 3
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 1e-3, objective, guard=guard))

    def rows(seed: int, weight: float) -> Rows:
        tokens = np.random.default_rng(seed).integers(0, 20, (4, 12), dtype=np.int32)
        ones = np.ones_like(tokens)
        made = Rows(tokens, ones, ones.astype(bool), None, np.full(tokens.shape, weight, np.float32))
        return made.map(lambda field: jnp.asarray(field).reshape(2, -1, field.shape[-1]))

    for seed in range(6):
        state, metrics = step(state, rows(seed, 1.0))
        assert np.isfinite(metrics["train/loss_limit"]) == (seed >= 4)  # half of eight were there before it
    before = state
    state, metrics = step(state, rows(6, 1000.0))
    assert metrics["train/loss"] > metrics["train/loss_limit"] > metrics["train/loss_mean"]
    assert metrics["train/is_spike"] == metrics["train/spikes"] == metrics["train/skipped_in_a_row"] == 1
    for part in ("params", "opt_state", "whitening"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, part), getattr(before, part))
    assert (int(state.step), int(state.skipped), int(state.spikes.count)) == (7, 1, 7)
    window = state.spikes
    state, metrics = step(state, rows(7, np.nan))
    assert (int(metrics["train/is_spike"]), int(state.skipped), int(state.skipped_in_a_row)) == (0, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, state.spikes, window)
    state, metrics = step(state, rows(8, 1.0))
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.spikes.count)) == (2, 0, 8)
    assert not np.array_equal(jax.tree.leaves(state.params)[0], jax.tree.leaves(before.params)[0])


class Contents(NamedTuple):
    """What the steps of a run read: rows, solutions and tasks, by step from 1; arrays and lists as in the file."""

    rows: dict[int, list[int]]
    solutions: dict[int, list[int]]
    tasks: dict[int, list[str]]


@pytest.fixture
def contents(train_arguments, tmp_path) -> Contents:
    """What the steps of a `CRITIC` run are to read, from the texts of the data set."""
    overrides = train_arguments(tmp_path / "unused", *CRITIC, stage="critic")[5::2]
    run = build_run(STAGES["critic"], load_settings(ROOT / "configs/critic/micro.yaml", overrides))
    seed = run.settings.data_sampling.seed
    numbers = batch_numbers(len(run.train), rows_per_step=run.schedule.rows_per_step, accumulation=4, seed=seed)
    steps = range(1, run.schedule.last_step + 1)
    rows = {step: numbers[step - 1].reshape(-1).tolist() for step in steps}
    solutions = {step: [int(n) for row in rows[step] for n in run.train.documents(row)] for step in steps}
    tasks = {step: [example.task_id for example in run.train.split.read(solutions[step])] for step in steps}
    return Contents(rows, solutions, tasks)


@pytest.fixture
def bad_steps(contents, monkeypatch) -> list[int]:
    """The steps of a `CRITIC` run that read a solution of one problem, whose outcomes are no numbers here."""
    steps = {task: [step for step in contents.tasks if task in contents.tasks[step]] for task in contents.tasks[3]}
    bad_task = max(steps, key=lambda task: (steps[task][0], len(steps[task])))
    tokens = Split.tokens

    def damaged(self, number):
        bad = self.task_id(self.problem[number]) == bad_task
        return tokens(self, number)._replace(outcome=float("nan")) if bad else tokens(self, number)

    monkeypatch.setattr(Split, "tokens", damaged)
    return steps[bad_task]


def bad_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / BAD_BATCHES_FILE).read_text().splitlines()]


def train_lines(folder: Path) -> list[dict]:
    return [line for line in untimed_metrics(folder) if "train/skipped_steps" in line]


def test_the_batches_of_skipped_updates_are_written_down(train_command, tmp_path, contents, bad_steps):
    figures = train_command(tmp_path / "run", *CRITIC, stage="critic")
    assert figures["steps"] == len(contents.rows)
    assert figures["skipped_steps"] == len(bad_steps) >= 2
    assert np.isfinite(figures["val/loss"])
    lines = bad_lines(tmp_path / "run")
    assert [line["step"] for line in lines] == bad_steps
    for line in lines:
        step = line["step"]
        assert (line["rows"], line["solutions"]) == (contents.rows[step], contents.solutions[step])
        assert line["task_ids"] == list(dict.fromkeys(contents.tasks[step]))
        assert line["loss"] == line["grad_norm"] == "nan"
        assert line["why"].startswith("not finite: train/grad_norm, train/loss")
    last = train_lines(tmp_path / "run")[-1]
    assert last["train/skipped_steps"] == len(bad_steps)
    assert "train/spikes" not in last
    # A guard changes what the run is.
    with pytest.raises(UserError, match=r"training.spike_sigma: None there, 6.0 now"):
        train_command(tmp_path / "run", *CRITIC, "training.spike_sigma=6.0", stage="critic")


def test_too_many_skipped_say_where_and_what(train_command, tmp_path, contents, bad_steps, capsys):
    """It stops at the first bad step; the file is told of, unless it cannot be written."""
    first = bad_steps[0]
    assert first > 1
    more = ("training.max_skipped_steps=0", f"checkpoint.save_every_steps={first - 1}")
    with pytest.raises(Failure) as stopped:
        train_command(tmp_path / "run", *CRITIC, *more, stage="critic")
    message = str(stopped.value)
    rows, tasks = contents.rows[first], list(dict.fromkeys(contents.tasks[first]))
    assert len(tasks) > 8
    assert f"step {first}: train/loss is nan" in message
    assert "not finite: train/grad_norm, train/loss" in message
    assert f"The last good step is {first - 1}, the last saved one up to then {first - 1}; what is in" in message
    assert f"This batch: tasks {', '.join(tasks[:8])} and {len(tasks) - 8} more; rows " in message
    assert f"rows {', '.join(map(str, rows[:8]))} and 8 more (all skipped batches are in {BAD_BATCHES_FILE}" in message
    assert [line["task_ids"] for line in bad_lines(tmp_path / "run")] == [tasks]

    before = (tmp_path / "run" / BAD_BATCHES_FILE).read_text()
    with (tmp_path / "run" / BAD_BATCHES_FILE).open("a") as file:
        file.write('{"step": 7, "why')  # as a kill or a full disk leaves it
    with pytest.raises(Failure):
        train_command(tmp_path / "run", *CRITIC, *more, stage="critic")
    assert (tmp_path / "run" / BAD_BATCHES_FILE).read_text() == before  # its steps were made again

    (tmp_path / "run" / BAD_BATCHES_FILE).unlink()
    (tmp_path / "run" / BAD_BATCHES_FILE).mkdir()
    capsys.readouterr()
    with pytest.raises(Failure) as stopped:
        train_command(tmp_path / "run", *CRITIC, *more, stage="critic")
    assert f"{BAD_BATCHES_FILE} cannot be written (Is a directory)" in capsys.readouterr().err
    assert f"{', '.join(tasks[:8])} and" in str(stopped.value)
    assert BAD_BATCHES_FILE not in str(stopped.value)


def test_a_guarded_run_resumes_bit_for_bit(train_command, tmp_path):
    """A guard so narrow that it skips; its window is part of the checkpoint."""
    guard = ("training.spike_sigma=1", "training.spike_window=4", "training.max_skipped_steps=50")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    figures = train_command(whole, *CRITIC, *guard, stage="critic")
    train_command(parts, *CRITIC, *guard, "training.max_steps=9", stage="critic")
    assert train_command(parts, *CRITIC, *guard, stage="critic")["first_step"] == 9
    lines = train_lines(whole)
    assert train_lines(parts) == lines
    assert 0 == lines[0]["train/spikes"] < lines[-1]["train/spikes"] == figures["skipped_steps"]
    assert "train/loss_limit" not in lines[1]  # JSON has no infinity
    assert lines[2]["train/loss_limit"] > 0
    assert "train/is_spike" not in lines[-1]
    assert bad_lines(parts) == bad_lines(whole)
    for line in bad_lines(whole):
        at = lines[line["step"] - 1]
        over = [name for name in ("loss", "grad_norm") if at[f"train/{name}"] > at[f"train/{name}_limit"]]
        assert all(f"train/{name} has mean " in line["why"] for name in over)
        assert line["why"].startswith("spike: train/")
        assert over
    states = [nnx.state(wmtp_jax.load_model(f"{folder}@latest"), nnx.Param) for folder in (whole, parts)]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), *states)
