"""Attention kernels: which one is taken, and that all of them stay inside documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmtp_jax.models import attention
from wmtp_jax.models.attention import attend, choose_kernel, documents, keeps_attention
from wmtp_jax.parallel.mesh import make_mesh

GPU = {"dtype": jnp.bfloat16, "head_width": 128, "length": 2048, "one_document": True}


def example(B=4, S=64, N=4, K=2, H=32):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, S, heads, H)), jnp.float32) for heads in (N, K, K))
    lengths = rng.multinomial(S - 5, np.ones(3) / 3, size=B)  # three documents and padding
    segments = np.array([np.repeat([1, 2, 3, 0], [*row, 5]) for row in lengths])
    return q, k, v, jnp.asarray(segments, jnp.int32)


def with_gradients(function, q, k, v):
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32).reshape(out.shape)))


@pytest.mark.parametrize("mesh", [None, (1, 2, 2)], ids=str)
def test_pallas_equals_xla_inside_documents(monkeypatch, mesh):
    """The kernel for GPUs, its operations run one by one on the CPU, forward and backward."""
    kernel = attention._pallas
    monkeypatch.setattr(attention, "_pallas", lambda *args: kernel(*args, interpret=True))
    q, k, v, segments = example()
    results = {}
    for name in ("xla", "pallas"):
        where = documents(segments, name)
        if name == "pallas":
            assert where.mask_B1SS is None  # no S x S array
        with jax.set_mesh(make_mesh(mesh)) if mesh else jax.set_mesh(make_mesh((4, 1, 1))):
            results[name] = jax.jit(
                lambda q, k, v, name=name, where=where: with_gradients(lambda *qkv: attend(*qkv, where, name), q, k, v)
            )(q, k, v)
    for ours, theirs in zip(results["pallas"], results["xla"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_kept_kernel_does_not_run_again(monkeypatch):
    """Under ``remat: attention`` its own sums are kept: forward once, then the two kernels of the backward pass."""
    q, _, _, segments = example(K=4)
    kernel = attention._pallas
    monkeypatch.setattr(attention, "_pallas", lambda *args: kernel(*args, interpret=True))

    def calls(policy):
        def block(x):
            return attend(x * 1.5, x, x, documents(segments, "pallas"), "pallas")

        def total(x):
            return jnp.sin(jax.checkpoint(block, policy=policy)(x)).sum()

        with jax.set_mesh(make_mesh((4, 1, 1))):
            return str(jax.make_jaxpr(jax.grad(total))(q)).count("name=mha_forward")

    assert calls(keeps_attention) < calls(jax.checkpoint_policies.nothing_saveable)


def test_a_row_that_is_one_document_needs_no_numbers():
    """Causal alone is exact where padding comes last: real tokens never see it."""
    q, k, v, _ = example()
    segments = jnp.where(jnp.arange(64) < 50, 1, 0) * jnp.ones((4, 1), jnp.int32)
    masked = attend(q, k, v, documents(segments, "xla"), "xla")
    causal = attend(q, k, v, documents(None, "xla"), "xla")
    np.testing.assert_allclose(causal[:, :50], masked[:, :50], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "changes", "kernel"),
    [
        ("cpu", {}, "xla"),
        ("cuda", {}, "cudnn"),
        ("gpu", {"one_document": False}, "pallas"),
        ("cuda", {"dtype": jnp.float32}, "pallas"),
        ("cuda", {"head_width": 256}, "pallas"),
        ("cuda", {"one_document": False, "length": 2000}, "cudnn"),
        ("cuda", {"dtype": jnp.float32, "length": 2000}, "xla"),
    ],
)
def test_auto_takes_the_best_there_is(platform, changes, kernel):
    assert choose_kernel("auto", platform, **{**GPU, **changes}) == kernel


@pytest.mark.parametrize(
    ("wanted", "platform", "changes", "message"),
    [
        ("cudnn", "cpu", {}, "needs an NVIDIA GPU, and the devices are cpu"),
        ("cudnn", "cuda", {"dtype": jnp.float32}, "16-bit types, not in float32"),
        ("cudnn", "cuda", {"head_width": 160}, "at most 128 and a multiple of 8, not 160"),
        ("pallas", "cuda", {"length": 2000}, r"a multiple of 128 tokens \(or 16, 32, 64\), not 2000"),
        ("pallas", "cuda", {"length": 96}, "not 96"),
    ],
)
def test_a_kernel_that_does_not_do_it_is_refused(wanted, platform, changes, message):
    with pytest.raises(ValueError, match=message):
        choose_kernel(wanted, platform, **{**GPU, **changes})


def test_each_remat_keeps_less_than_the_one_before():
    from flax import nnx

    from wmtp_jax.models import store
    from wmtp_jax.models.config import ModelConfig

    config = ModelConfig(dim=64, n_layers=9, n_heads=4, n_kv_heads=4, vocab_size=20, ffn_dim=128, n_future_tokens=1)
    tokens = jax.ShapeDtypeStruct((4, 128), jnp.int32)
    sizes = []
    for name in ("none", "dots", "attention", "full"):
        graphdef, shapes = store.build(config, remat=name)

        def total(params, tokens, graphdef=graphdef):
            return nnx.merge(graphdef, params).trunk_hidden(tokens).sum()

        compiled = jax.jit(jax.grad(total)).lower(shapes, tokens).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]
    assert len(set(sizes)) == 4
