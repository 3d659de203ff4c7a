"""Adapters in the training step: equal to merged kernels, without ever making one or the gradient of one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wmtp_jax.data.pack import Rows
from wmtp_jax.losses.value import lambda_schedule
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import ADAPTER, Adapter, LoRAConfig, attach, merge
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import batch_sharding, parameter_spec
from wmtp_jax.training.objective import Objective, ValueLoss
from wmtp_jax.training.program import state_shardings
from wmtp_jax.training.step import init_state, make_train_step, split_params
from wmtp_jax.weighting import rho1, uniform
from wmtp_jax.weighting.td import initial_whitening
from wmtp_jax.weighting.tokens import Tokens

CONFIG = ModelConfig(
    dim=32, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=52, ffn_dim=64, n_future_tokens=2, value_head="linear"
)
LORA = LoRAConfig(rank=3, alpha=6.0, targets=(r"\.w[qovk]$", r"^heads\..*w1$", r"^trunk\..*w[23]$", "^output$"))
OBJECTIVE = Objective(
    n_heads=2,
    scheme=uniform.weigh,
    reads_model=False,
    normalize="valid",
    value_loss=ValueLoss("mse", 0.5, 1.0, lambda_schedule("constant", 0.95, 0.95, 0.0, 10), False, 2, 0.0),
    value_coef=0.5,
    needs_scores=False,
    needs_outcomes=True,
    draws=False,
    seed=3,
    part="lora",
    lora=LORA,
)


class Merged(Objective):
    """The same objective with the adapter worked into float32 kernels in every step."""

    frozen = False  # a gradient through the merged output matrix too

    def model(self, graphdef, params, key=None):
        base = jax.tree.map(lambda x: x.astype(jnp.float32), {n: p for n, p in params.items() if n != ADAPTER})
        return nnx.merge(graphdef, merge(base, params[ADAPTER], self.lora))


def make_rows(seed: int, n_rows: int = 8, length: int = 16) -> Rows:
    """Two documents a row, prompt before response."""
    rng = np.random.default_rng(seed)
    segments = np.broadcast_to(np.where(np.arange(length) < length // 2, 1, 2), (n_rows, length)).astype(np.int32)
    mask = np.broadcast_to(np.arange(length) % (length // 2) > 1, (n_rows, length))
    outcomes = ((segments + np.arange(n_rows)[:, None]) % 2).astype(np.float32)
    scores = rng.normal(4.0, 0.3, segments.shape).astype(np.float32)
    return Rows(rng.integers(0, 52, (n_rows, length), dtype=np.int32), segments, mask, outcomes, scores)


@functools.cache
def initial(objective: Objective, param_dtype: str = "float32"):
    """Structure and parameters (numpy); the adapter and the value head say something from the beginning."""
    graphdef, _ = store.build(CONFIG, param_dtype=param_dtype)
    params = store.random_params(CONFIG, 0, param_dtype, make_mesh((-1, 1, 1)))
    adapter = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), objective.fresh_adapter(params)
    )
    head = jax.tree.map(lambda x: jnp.full(x.shape, 0.1), params["value_head"])
    return graphdef, jax.device_get({**params, "value_head": head, ADAPTER: adapter})


def train(objective: Objective, mesh_shape: tuple[int, int, int], accumulation: int, param_dtype: str = "float32"):
    """An update of plain gradient descent with rate 1: what moves is the gradient."""
    mesh = make_mesh(mesh_shape)
    with jax.set_mesh(mesh):
        graphdef, params = initial(objective, param_dtype)
        optimizer = optax.sgd(1.0)
        placement = state_shardings(params, optimizer, mesh, objective.trains)
        state = jax.jit(lambda p: init_state(p, optimizer, objective.trains), out_shardings=placement)(params)
        rows = make_rows(0).map(lambda x: x.reshape(accumulation, -1, x.shape[-1]))
        step = jax.jit(
            make_train_step(graphdef, optimizer, lambda _: 1.0, objective),
            in_shardings=(placement, rows.map(lambda _: batch_sharding(mesh, 1))),
            out_shardings=(placement, NamedSharding(mesh, P())),
        )
        state, metrics = step(state, rows)
    return jax.device_get(state.params), {name: float(value) for name, value in metrics.items()}


def test_gradients_equal_those_of_merged_kernels(capfd):
    """Also accumulated and sharded, on a bfloat16 base, which stays as it is bit for bit."""
    _, before = initial(OBJECTIVE, "bfloat16")
    merged, merged_metrics = train(Merged(**vars(OBJECTIVE)), (4, 1, 1), 1, "bfloat16")
    for mesh_shape, accumulation in (((4, 1, 1), 1), ((1, 2, 2), 2)):
        params, metrics = train(OBJECTIVE, mesh_shape, accumulation, "bfloat16")
        for part in ("trunk", "heads", "output", "norm", "tok_embeddings"):
            assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params[part]))
            jax.tree.map(np.testing.assert_array_equal, before[part], params[part])
        for part in (ADAPTER, "value_head"):
            assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params[part]))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params[part], merged[part])
            moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before[part], params[part])
            assert min(jax.tree.leaves(moved)) > 1e-5, moved
        for name in metrics:
            assert metrics[name] == pytest.approx(merged_metrics[name], rel=1e-5, abs=1e-6), name
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def made_like_kernels(objective: Objective, shapes: set[tuple[int, ...]]) -> set[str]:
    """Operations of a step whose result has the shape of an adapted kernel, or of a block of it."""
    graphdef, params = initial(objective)
    optimizer = optax.adam(1e-2)
    state = init_state(params, optimizer, objective.trains)
    rows = make_rows(0).map(lambda x: jnp.asarray(x).reshape(2, 4, -1))
    found = set()

    def visit(jaxpr) -> None:
        for equation in jaxpr.eqns:
            if any(tuple(getattr(v.aval, "shape", ())) in shapes for v in equation.outvars):
                found.add(equation.primitive.name)
            jax.tree.map(
                lambda x: visit(getattr(x, "jaxpr", x)) if hasattr(x, "eqns") or hasattr(x, "jaxpr") else None,
                list(equation.params.values()),
                is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
            )

    visit(jax.make_jaxpr(make_train_step(graphdef, optimizer, lambda _: 1e-2, objective))(state, rows).jaxpr)
    return found


def test_no_array_like_a_kernel_is_made():
    """No gradient, sum of gradients, moment or merged copy of a kernel: nothing a step computes has its shape.

    With merged kernels there are such arrays.
    """
    _, params = initial(OBJECTIVE)
    kernels = flatten_dict(params, sep=".")
    names = {name.removeprefix(f"{ADAPTER}.").rpartition(".")[0] for name in kernels if name.startswith(ADAPTER)}
    shapes = {kernels[f"{name}.kernel"].shape[at:] for name in names for at in (0, -2)}
    assert (2, 32, 64) in shapes
    assert made_like_kernels(OBJECTIVE, shapes) == set()
    assert {"dot_general", "scan"} <= made_like_kernels(Merged(**vars(OBJECTIVE)), shapes)


def test_an_adapter_lies_as_its_kernel_does():
    assert parameter_spec("lora.trunk.attention.wq.lora_a", (2, 32, 3)) == P(None, "fsdp", None)
    assert parameter_spec("lora.trunk.attention.wq.lora_b", (2, 3, 32)) == P(None, None, "tensor")
    assert parameter_spec("heads.feed_forward.w2.lora_a", (2, 64, 3)) == P(None, "tensor", None)
    assert parameter_spec("heads.feed_forward.w2.lora_b", (2, 3, 32)) == P(None, None, "fsdp")
    assert parameter_spec("output.lora_a", (32, 3)) == P("fsdp", None)
    with pytest.raises(KeyError, match=r"mystery\.lora_a"):
        parameter_spec("mystery.lora_a", (1, 1))


def test_a_model_with_adapters_equals_the_merged_one():
    graphdef, params = initial(OBJECTIVE)
    tokens = make_rows(0).tokens

    @jax.jit
    def outputs(params):
        """Logits and values without adapters, with them, and with them worked in."""
        base, _ = split_params(params, lambda name: not name.startswith(ADAPTER))
        models = [nnx.merge(graphdef, base) for _ in range(2)]
        models.append(nnx.merge(graphdef, merge(base, params[ADAPTER], LORA)))
        attach(models[1], params[ADAPTER], LORA)
        return [(model(tokens), model.values(tokens)) for model in models]

    plain, attached, merged = outputs(params)
    for at in range(2):
        assert float(jnp.abs(attached[at] - plain[at]).max()) > 0.01
        np.testing.assert_allclose(attached[at], merged[at], rtol=0, atol=1e-5)


def test_dropout_acts_in_training_alone_and_not_on_the_weights():
    """Rho-1 chooses the tokens by what the model says without dropout; their losses are those with it."""
    objective = dataclasses.replace(
        OBJECTIVE,
        scheme=rho1.weigh,
        reads_model=True,
        needs_scores=True,
        value_loss=None,
        lora=dataclasses.replace(LORA, dropout=0.5),
    )
    graphdef, params = initial(objective)
    rows = make_rows(0)
    optimizer = optax.sgd(1.0)
    state = init_state(params, optimizer, objective.trains)
    step = jax.jit(make_train_step(graphdef, optimizer, lambda _: 1.0, objective))
    first, again = (step(state, rows.map(lambda x: jnp.asarray(x)[None]))[1] for _ in range(2))
    other = step(state._replace(step=jnp.ones((), jnp.int32)), rows.map(lambda x: jnp.asarray(x)[None]))[1]

    @jax.jit
    def without_dropout(params):
        base, _ = split_params(params, lambda name: not name.startswith(ADAPTER))
        ce = objective.forward(nnx.merge(graphdef, merge(base, params[ADAPTER], LORA)), rows)[0]
        _, valid = objective.targets(rows)
        tokens = Tokens(ce, valid, rows.scores, rows.outcomes, rows.loss_mask, rows.segment_ids, None)
        loss = (jnp.where(valid, ce, 0).sum((0, 1)) / valid.sum((0, 1))).mean()
        return rho1.weigh(tokens, initial_whitening())[2], loss

    expected, loss = without_dropout(params)
    for name, value in expected.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(first[name], other[name])
    seen = [float(metrics["train/unweighted_ce_loss"]) for metrics in (first, again, other)]
    assert seen[0] == seen[1]  # drawn by the number of the step
    assert min(abs(seen[0] - seen[2]), *(abs(value - float(loss)) for value in seen)) > 1e-4


def test_dropout_draws_anew_in_every_block_and_keeps_the_mean():
    graphdef, params = initial(OBJECTIVE)
    base, _ = split_params(params, lambda name: not name.startswith(ADAPTER))
    model = nnx.merge(graphdef, base)
    dropping = dataclasses.replace(LORA, dropout=0.25)
    attach(model, params[ADAPTER], dropping, jax.random.key(0))
    keys = [m.adapter.key[...] for m in (model.trunk.attention.wq, model.trunk.attention.wk, model.heads.attention.wq)]
    assert len(np.unique(jax.random.key_data(jnp.concatenate(keys)), axis=0)) == 6
    lora_a = params[ADAPTER]["output"]["lora_a"]
    adapter = Adapter(lora_a, params[ADAPTER]["output"]["lora_b"], dropping, jax.random.key(2))
    np.testing.assert_allclose(
        adapter.down(jnp.ones((20_000, 32))).mean(axis=0), LORA.scale * lora_a.sum(axis=0), atol=0.02
    )
