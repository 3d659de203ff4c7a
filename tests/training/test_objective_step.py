"""Every objective in the training step: accumulated and sharded equal one batch on one device, nothing leaks.

The weights are frozen where they must be, a step that is not finite changes nothing, and scores that stand beside
the tokens are those that the frozen model gives.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wmtp_jax.config import TrainingSettings
from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.mtp import mtp_targets
from wmtp_jax.losses.value import lambda_schedule
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import batch_sharding
from wmtp_jax.training.objective import Objective, ValueLoss
from wmtp_jax.training.optimizer import make_optimizer
from wmtp_jax.training.program import state_shardings
from wmtp_jax.training.scoring import make_scorer
from wmtp_jax.training.step import init_state, make_train_step
from wmtp_jax.weighting import rho1, td

CONFIG = ModelConfig(
    dim=32, n_layers=3, n_heads=8, n_kv_heads=4, vocab_size=52, ffn_dim=64, n_future_tokens=2, value_head="mlp"
)
# As in test_step.py: a small epsilon of Adam would turn rounding into steps.
SETTINGS = TrainingSettings(batch_size=1, n_epochs=1, learning_rate=1e-2, adam_eps=1e-3)
MSE = ValueLoss("mse", 0.5, 1.0, lambda_schedule("constant", 0.95, 0.95, 0.0, 10), False, 4, 0.0)
BASE = Objective(
    n_heads=2,
    scheme=None,
    reads_model=False,
    normalize="valid",
    value_loss=None,
    value_coef=1.0,
    needs_scores=False,
    needs_outcomes=False,
    draws=False,
    seed=3,
)
CRITIC = dataclasses.replace(BASE, n_heads=0, value_loss=MSE)
RHO1 = dataclasses.replace(BASE, scheme=rho1.weigh, reads_model=True, needs_scores=True, normalize="weights")
JOINT = dataclasses.replace(BASE, scheme=td.weigh, reads_model=True, value_loss=MSE, value_coef=0.5)


OBJECTIVES = {
    "critic": dataclasses.replace(
        CRITIC,
        value_loss=dataclasses.replace(
            MSE, kind="lambda_return", gae_lambda=lambda_schedule("cosine", 1.0, 0.5, 0.2, 10), include_prompt=True
        ),
    ),
    "pairwise": dataclasses.replace(CRITIC, value_loss=dataclasses.replace(MSE, kind="pairwise")),
    "verifiable, joint": dataclasses.replace(JOINT, scheme=functools.partial(td.weigh, moving=True, warmup_steps=3)),
    "verifiable, frozen": dataclasses.replace(BASE, scheme=td.weigh, needs_scores=True),
    "rho1": RHO1,
    "shuffled": dataclasses.replace(RHO1, scheme=functools.partial(rho1.weigh, control="shuffled"), draws=True),
}


def make_rows(seed: int, n_rows: int = 8, length: int = 16) -> Rows:
    """Packed rows, several documents each, prompt before response, padding behind."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(0, 4, (n_rows, length)))[:, ::-1]
    segments = np.where(segments > 0, segments.max(axis=1, keepdims=True) + 1 - segments, 0)  # 1, 2, 3, then padding
    start = np.concatenate([np.ones((n_rows, 1), bool), segments[:, 1:] != segments[:, :-1]], axis=1)
    mask = (segments > 0) & ~start
    outcomes = np.where(segments > 0, (segments + rng.integers(0, 2, (n_rows, 1))) % 2, 0).astype(np.float32)
    scores = np.where(segments > 0, rng.normal(2.0, 1.0, segments.shape), 0.0).astype(np.float32)
    tokens = rng.integers(0, 52, (n_rows, length), dtype=np.int32)
    return Rows(tokens, segments.astype(np.int32), mask, outcomes, scores)


def initial(objective: Objective, dtype=jnp.float32):
    graphdef, shapes = store.build(CONFIG)
    params = store.random_params(CONFIG, 0, "float32", make_mesh((-1, 1, 1)))
    # The value head starts at zero; here it must say something.
    head = params["value_head"]
    kernel = jax.random.normal(jax.random.key(1), head["kernel"].shape) * 0.5
    params = {**params, "value_head": {**head, "kernel": kernel}}
    return graphdef, shapes, jax.tree.map(lambda p: p.astype(dtype), params)


def train(objective: Objective, mesh_shape: tuple[int, int, int], accumulation: int, steps: int = 10):
    mesh = make_mesh(mesh_shape, math.prod(mesh_shape))
    graphdef, shapes, params = jax.device_get(initial(objective))
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(SETTINGS, lambda _: 1e-2)
        placement = state_shardings(shapes, optimizer, mesh, objective.trains)
        state = jax.jit(lambda p: init_state(p, optimizer, objective.trains), out_shardings=placement)(params)
        rows = make_rows(0).map(lambda x: x.reshape(accumulation, -1, x.shape[-1]))
        step = jax.jit(
            make_train_step(graphdef, optimizer, lambda _: 1e-2, objective),
            in_shardings=(placement, rows.map(lambda _: batch_sharding(mesh, 1))),
            out_shardings=(placement, NamedSharding(mesh, P())),
        )
        metrics = []
        for seed in range(steps):
            state, values = step(state, make_rows(seed).map(lambda x: x.reshape(accumulation, -1, x.shape[-1])))
            metrics.append({name: float(value) for name, value in values.items()})
    return metrics, jax.device_get(state)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "verifiable, frozen"])
def test_accumulated_and_sharded_equal_one_batch(name: str, capfd):
    objective = OBJECTIVES[name]
    metrics, state = train(objective, (1, 1, 1), 1)
    for mesh, accumulation in (((1, 4, 1), 2), ((2, 2, 1), 1), ((1, 2, 2), 2), ((1, 1, 4), 1)):
        other_metrics, other = train(objective, mesh, accumulation)
        for number, (before, after) in enumerate(zip(metrics, other_metrics, strict=True)):
            assert before.keys() == after.keys()
            # Rounding grows from update to update: norms and statistics feel it first.
            for key in (key for key in before if number < 3 or "loss" in key):
                np.testing.assert_allclose(after[key], before[key], rtol=1e-5, atol=1e-6, err_msg=f"{mesh} {key}")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5),
            (state.params, state.whitening),
            (other.params, other.whitening),
        )
    # Printed by the compiler where an activation lost its placement.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), initial(objective)[2], state.params)
    if not objective.n_heads:
        assert max(jax.tree.leaves((moved["heads"], moved["output"]))) == 0.0  # not even decayed
    if objective.value_loss is None:
        assert max(jax.tree.leaves(moved["value_head"])) == 0.0
    assert max(jax.tree.leaves(moved["trunk"])) > 1e-3


def test_no_gradient_through_weights():
    """The gradient equals that of a loss whose weights are given as constants."""
    rows = make_rows(5)
    graphdef, _, params = initial(RHO1)
    objective = dataclasses.replace(JOINT, value_coef=0.0)
    optimizer = make_optimizer(SETTINGS, lambda _: 1e-2)
    state = init_state(params, optimizer, objective.trains)
    step = make_train_step(graphdef, optimizer, lambda _: 1e-2, objective)
    _, metrics = jax.jit(step)(state, rows.map(lambda x: jnp.asarray(x)[None]))

    targets, valid = mtp_targets(*rows[:3], 2)
    del targets

    def loss(params, weights):
        model = nnx.merge(graphdef, params)
        ce, values, _ = objective.forward(model, rows)
        if weights is None:
            tokens = td.Tokens(ce, valid, values, rows.outcomes, rows.loss_mask, rows.segment_ids, None)
            return td.weigh(tokens, td.initial_whitening())[0]
        per_head = jnp.where(valid, weights * ce, 0.0).sum(axis=(0, 1)) / valid.sum(axis=(0, 1))
        return per_head.mean()

    weights = jax.jit(lambda p: loss(p, None))(params)
    constant = jax.jit(jax.grad(loss))(params, weights)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(constant))))
    assert float(metrics["train/grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(constant["value_head"])) == 0.0


@pytest.mark.parametrize("name", ["verifiable, frozen", "rho1"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counts(name: str):
    """Also where the loss stays finite: Rho-1 does not choose a target whose score is NaN."""
    objective = OBJECTIVES[name]
    graphdef, _, params = initial(objective)
    optimizer = make_optimizer(SETTINGS, lambda _: 1e-2)
    state = init_state(params, optimizer, objective.trains)
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 1e-2, objective))
    good = make_rows(0)
    bad = good._replace(scores=np.where(np.arange(16) == 6, np.nan, good.scores).astype(np.float32))
    assert good.loss_mask[:, 6].any()
    after, metrics = step(state, bad.map(lambda x: jnp.asarray(x)[None]))
    assert np.isfinite(metrics["train/loss"]) == (name == "rho1")
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 1, 1)
    same = jax.tree.map(np.array_equal, (state.params, state.opt_state), (after.params, after.opt_state))
    assert all(jax.tree.leaves(same))
    assert all(np.array_equal(a, b) for a, b in zip(state.whitening, after.whitening, strict=True))
    then, metrics = step(after, good.map(lambda x: jnp.asarray(x)[None]))
    assert np.isfinite(metrics["train/loss"])
    assert (int(then.step), int(then.skipped), int(then.skipped_in_a_row)) == (2, 1, 0)


def test_a_batch_without_a_response_token_has_no_loss():
    objective = OBJECTIVES["verifiable, joint"]
    graphdef, _, params = initial(objective)
    optimizer = make_optimizer(SETTINGS, lambda _: 1e-2)
    state = init_state(params, optimizer, objective.trains)
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 1e-2, objective))
    rows = make_rows(0)
    empty = rows._replace(loss_mask=np.zeros_like(rows.loss_mask))
    after, metrics = step(state, empty.map(lambda x: jnp.asarray(x)[None]))
    assert float(metrics["train/loss"]) == 0.0
    assert float(metrics["train/target_tokens"]) == 0.0
    assert int(after.skipped) == 0
    assert int(after.whitening.count) == 0


@pytest.mark.parametrize("kind", ["critic", "reference"])
def test_scores_are_those_of_the_model_for_each_document_alone(kind: str):
    """Packed rows and micro-batches give what a document by itself gives; a reference scores the token itself."""
    graphdef, _, params = initial(RHO1)
    rows = make_rows(1)
    score = jax.jit(make_scorer(graphdef, kind))
    packed = np.asarray(score(params, rows.tokens, rows.segment_ids))
    micro = score(params, rows.tokens.reshape(2, 4, -1), rows.segment_ids.reshape(2, 4, -1))
    np.testing.assert_allclose(np.asarray(micro).reshape(packed.shape), packed, rtol=1e-5, atol=1e-6)
    model = nnx.merge(graphdef, params)
    row, number = 0, 2
    place = np.flatnonzero(rows.segment_ids[row] == number)
    alone = rows.tokens[row, place][None]
    if kind == "critic":
        expected = model.values(alone)[0]
    else:
        logits = jax.nn.log_softmax(model(alone)[0, :, 0])
        expected = np.concatenate([[0.0], -np.asarray(logits[np.arange(len(place) - 1), alone[0, 1:]])])
    np.testing.assert_allclose(packed[row, place], expected, rtol=1e-4, atol=1e-5)


def test_the_value_head_has_a_rate_of_its_own():
    updates = {"value_head": {"kernel": jnp.ones((2, 1))}, "output": {"kernel": jnp.ones((2, 2))}}
    params = jax.tree.map(jnp.ones_like, updates)
    sizes = {}
    for head_rate in (None, 1e-4):
        optimizer = make_optimizer(SETTINGS, lambda _: 1e-2, head_rate)
        changed, _ = optimizer.update(updates, optimizer.init(params), params)
        sizes[head_rate] = {name: float(tree["kernel"][0, 0]) for name, tree in changed.items()}
    assert sizes[None]["value_head"] == pytest.approx(sizes[None]["output"])
    assert sizes[1e-4]["value_head"] == pytest.approx(sizes[None]["value_head"] / 100, rel=1e-5)
    assert sizes[1e-4]["output"] == sizes[None]["output"]


def test_dropout_only_reaches_the_loss():
    """Weights come from values without dropout: the same whatever the key."""
    objective = dataclasses.replace(JOINT, value_loss=dataclasses.replace(MSE, dropout=0.5))
    graphdef, _, params = initial(objective)
    rows = make_rows(2)
    model = nnx.merge(graphdef, params)
    _, values, noisy = objective.forward(model, rows, jax.random.key(0))
    _, again, other = objective.forward(model, rows, jax.random.key(1))
    np.testing.assert_array_equal(values, again)
    assert float(jnp.abs(noisy - other).max()) > 1e-3
    assert objective.forward(model, rows)[2] is objective.forward(model, rows)[1] or np.array_equal(
        objective.forward(model, rows)[2], values
    )
