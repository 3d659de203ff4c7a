"""The update: accumulation equals one large batch, sharded equals single-device, it learns."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wmtp_jax.config import TrainingSettings
from wmtp_jax.data.pack import Rows
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh, resolve_shape
from wmtp_jax.parallel.sharding import (
    PARAMETER_TABLE,
    batch_sharding,
    parameter_name,
    parameter_spec,
)
from wmtp_jax.training.objective import Objective
from wmtp_jax.training.optimizer import learning_rate_schedule, make_optimizer
from wmtp_jax.training.program import state_shardings
from wmtp_jax.training.step import init_state, make_train_step
from wmtp_jax.training.validation import make_eval_step, validation_metrics
from wmtp_jax.weighting import uniform

CONFIG = ModelConfig(dim=32, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=52, ffn_dim=64, n_future_tokens=2)
# Adam divides by the gradient's size: with its usual epsilon a gradient that is zero but for rounding becomes
# a full step, and two ways of adding the same numbers would differ by it. At 1e-3 half of the parameters still
# move by more than 3e-3, thousands of tolerances, and rounding stays below a fifth of one on every CPU tried.
SETTINGS = TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1e-2, warmup_ratio=0.1, adam_eps=1e-3)
STEPS = 10
BASELINE = Objective(
    n_heads=2,
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


def make_rows(seed: int, n_rows: int = 8, length: int = 16) -> Rows:
    """Packed rows with prompts, several documents, padding, and uneven numbers of targets."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (n_rows, length)))[:, ::-1]
    mask = (rng.random((n_rows, length)) < rng.random((n_rows, 1))) & (segments > 0)
    return Rows(rng.integers(0, 52, (n_rows, length), dtype=np.int32), segments.astype(np.int32), mask)


def split(rows: Rows, accumulation: int) -> Rows:
    return rows.map(lambda field: field.reshape(accumulation, -1, field.shape[-1]))


def train(mesh_shape: tuple[int, int, int], accumulation: int = 1, steps: int = STEPS):
    """Losses and final parameters of a short training on a mesh."""
    graphdef, shapes = store.build(CONFIG)
    rate = learning_rate_schedule(SETTINGS, STEPS)
    optimizer = make_optimizer(SETTINGS, rate)
    mesh = make_mesh(mesh_shape, math.prod(mesh_shape))
    with jax.set_mesh(mesh):
        placement = state_shardings(shapes, optimizer, mesh, BASELINE.trains)
        params = store.random_params(CONFIG, 0, "float32", mesh)
        state = jax.jit(lambda p: init_state(p, optimizer, BASELINE.trains), out_shardings=placement)(params)
        step = jax.jit(
            make_train_step(graphdef, optimizer, rate, BASELINE),
            in_shardings=(placement, Rows(*[batch_sharding(mesh, 1)] * 3)),
            out_shardings=(placement, NamedSharding(mesh, P())),
        )
        metrics = []
        for i in range(steps):
            state, values = step(state, split(make_rows(i), accumulation))
            metrics.append({name: float(value) for name, value in values.items()})
    return metrics, jax.device_get(state.params)


@pytest.fixture(scope="module")
def single():
    return train((1, 1, 1))


def assert_same(one, other, rtol=1e-5):
    for before, after in zip(one[0], other[0], strict=True):
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_allclose(after[name], before[name], rtol=rtol, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6), one[1], other[1])


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_equals_one_large_batch(single, accumulation: int):
    assert_same(single, train((1, 1, 1), accumulation))


def test_gradients_of_bfloat16_parameters_are_summed_in_float32():
    """64 micro-batches: sums in bfloat16 (8 bits) would lose the small ones."""
    rows = make_rows(0, n_rows=64)
    rate = learning_rate_schedule(SETTINGS, STEPS)
    optimizer = make_optimizer(SETTINGS, rate)
    rounded = store.random_params(CONFIG, 0, "bfloat16", make_mesh((-1, 1, 1)))
    norms = {}
    for dtype, accumulation in (("float32", 1), ("bfloat16", 64)):
        graphdef, _ = store.build(CONFIG, param_dtype=dtype)
        state = init_state(jax.tree.map(lambda p, d=dtype: p.astype(d), rounded), optimizer, BASELINE.trains)
        step = jax.jit(make_train_step(graphdef, optimizer, rate, BASELINE))
        after, metrics = step(state, split(rows, accumulation))
        assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(state)]
        norms[dtype] = float(metrics["train/grad_norm"])
    assert norms["bfloat16"] == pytest.approx(norms["float32"], rel=1e-3)


@pytest.mark.parametrize("mesh", [(1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)], ids=str)
def test_sharded_equals_single_device(single, mesh, capfd):
    assert_same(single, train(mesh, accumulation=2))
    # Printed by the compiler where an activation lost its placement.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_metrics(single):
    first = single[0][0]
    rows = make_rows(0)
    assert first["train/tokens"] == rows.n_tokens
    assert first["train/loss"] == pytest.approx(first["train/unweighted_ce_loss"])  # uniform weights
    assert first["train/loss"] == pytest.approx(np.log(52), rel=0.02)  # random weights know nothing
    assert first["train/learning_rate"] == pytest.approx(1e-2)  # one step of warm-up reaches the peak
    heads = [first[f"train/head_{k}_ce_loss"] for k in (1, 2)]
    assert first["train/loss"] == pytest.approx(np.mean(heads), rel=1e-5)


def test_it_learns_a_repeated_batch():
    graphdef, _ = store.build(CONFIG)
    optimizer = make_optimizer(SETTINGS, lambda _: 1e-2)
    params = store.random_params(CONFIG, 0, "float32", make_mesh((-1, 1, 1)))
    state = init_state(params, optimizer, BASELINE.trains)
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 1e-2, BASELINE))
    rows = split(make_rows(0, n_rows=2), 1)
    losses = []
    for _ in range(60):
        state, metrics = step(state, rows)
        losses.append(float(metrics["train/loss"]))
    assert losses[-1] < 0.2 * losses[0]


def test_validation_equals_the_loss_of_all_rows_at_once():
    graphdef, _ = store.build(CONFIG)
    params = store.random_params(CONFIG, 0, "float32", make_mesh((-1, 1, 1)))
    evaluate = jax.jit(make_eval_step(graphdef, BASELINE))
    rows = make_rows(3)
    whole = validation_metrics(evaluate(params, rows)[0])
    halves = [evaluate(params, rows.map(lambda x, p=part: x[p]))[0] for part in (slice(0, 3), slice(3, 8))]
    parts = validation_metrics(jax.tree.map(jnp.add, *halves))
    for name, value in whole.items():
        assert parts[name] == pytest.approx(value, rel=1e-5)


def test_schedule():
    rate = learning_rate_schedule(
        TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1.0, warmup_ratio=0.2, min_lr_ratio=0.1), 100
    )
    values = [float(rate(i)) for i in range(101)]
    assert values[0] == pytest.approx(1 / 20)
    assert values[19] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(values[:20]))
    assert all(a >= b for a, b in itertools.pairwise(values[20:]))
    assert values[100] == pytest.approx(0.1)
    flat = learning_rate_schedule(TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1.0, warmup_ratio=0.0), 10)
    assert float(flat(0)) == 1.0


def test_norm_scales_do_not_decay():
    settings = TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1.0, weight_decay=0.5)
    optimizer = make_optimizer(settings, lambda _: 1.0)
    params = {"norm": {"scale": jnp.ones(2)}, "output": {"kernel": jnp.ones((2, 2))}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert float(jnp.abs(updates["norm"]["scale"]).max()) == 0.0
    np.testing.assert_allclose(updates["output"]["kernel"], -0.5)


def test_every_parameter_has_a_line_in_the_table():
    _, shapes = store.build(CONFIG)
    used = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        spec = parameter_spec(parameter_name(path), leaf.shape)
        assert len(spec) <= len(leaf.shape)
        used |= {name for name in spec if name}
    assert used == {"fsdp", "tensor"}
    assert len(PARAMETER_TABLE) == len({pattern for pattern, _ in PARAMETER_TABLE})
    with pytest.raises(KeyError, match=r"mystery\.weight"):
        parameter_spec("mystery.weight", (1,))


def test_mesh_shapes():
    assert resolve_shape((-1, 1, 1), 4) == (4, 1, 1)
    assert resolve_shape((1, -1, 2), 4) == (1, 2, 2)
    for shape in ((1, 1, 1), (3, -1, 1), (8, 1, 1)):
        with pytest.raises(ValueError, match="number of devices, which is 4"):
            resolve_shape(shape, 4)
