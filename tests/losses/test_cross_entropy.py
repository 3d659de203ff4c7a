"""The loss that never holds the logits: equal to the naive one in value and gradient, in a tenth of its memory."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wmtp_jax.losses import cross_entropy
from wmtp_jax.losses.cross_entropy import logits_cross_entropy, token_cross_entropy
from wmtp_jax.parallel.mesh import make_mesh


def naive(hidden_nBSD, output_DV, targets_BSn):
    logits = jnp.einsum("nbsd,dv->bsnv", hidden_nBSD, output_DV, preferred_element_type=jnp.float32)
    return logits_cross_entropy(logits, targets_BSn)


def with_gradients(function, hidden, output, targets, cotangent):
    """Losses and gradients under an arbitrary cotangent."""

    def both(hidden, output, targets, cotangent):
        losses, pull = jax.vjp(lambda h, o: function(h, o, targets), hidden, output)
        return losses, *pull(cotangent)

    return jax.jit(both)(hidden, output, targets, cotangent)


def example(n=3, B=4, S=10, D=8, V=24, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    hidden, output = rng.normal(size=(n, B, S, D)), rng.normal(size=(D, V))
    targets, cotangent = rng.integers(0, V, (B, S, n)), rng.normal(size=(B, S, n))
    return jnp.asarray(hidden, dtype), jnp.asarray(output, dtype), jnp.asarray(targets), jnp.asarray(cotangent, "f4")


def relative(a, b):
    return float(jnp.abs(a.astype("f4") - b.astype("f4")).max() / jnp.abs(b.astype("f4")).max())


@pytest.mark.parametrize("in_flight", [2**24, 4 * 24 * 3, 1], ids=["whole", "three at a time", "one at a time"])
def test_equals_naive_whatever_the_parts(monkeypatch, in_flight):
    # 10 positions do not divide into parts of 3: the last one is filled up.
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_FLIGHT", in_flight)
    for ours, theirs in zip(
        with_gradients(token_cross_entropy, *example()), with_gradients(naive, *example()), strict=True
    ):
        assert relative(ours, theirs) < 1e-6


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4), (2, 1, 2)], ids=str)
def test_sharded_equals_naive(monkeypatch, shape):
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_FLIGHT", 60)
    expected = with_gradients(naive, *example())
    with jax.set_mesh(make_mesh(shape)):
        ours = with_gradients(token_cross_entropy, *example())
    for got, wanted in zip(ours, expected, strict=True):
        assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("shape", [None, (2, 2, 1), (1, 2, 2)], ids=str)
def test_an_adapter_beside_a_frozen_matrix(monkeypatch, shape):
    """Loss and gradients of hidden states and adapter equal those of the merged matrix, which has no gradient."""
    monkeypatch.setattr(cross_entropy, "LOGITS_IN_FLIGHT", 60)
    hidden, output, targets, cotangent = example()
    down, b = (jnp.asarray(np.random.default_rng(1).normal(size=size), "f4") for size in ((3, 4, 10, 2), (2, 24)))

    def adapted(frozen):
        def both(hidden, output, down, b):
            def losses(h, o, d, b):
                return token_cross_entropy(h, o, targets, (d, b), frozen=frozen)

            ce, pull = jax.vjp(losses, hidden, output, down, b)
            return ce, *pull(cotangent)

        return jax.jit(both)(hidden, output, down, b)

    def losses(h, o, d, b):
        joined = jnp.concatenate([h, d], axis=-1), jnp.concatenate([o, b])
        return naive(*joined, targets)

    ce, pull = jax.vjp(losses, hidden, output, down, b)
    expected = (ce, *pull(cotangent))
    with jax.set_mesh(make_mesh(shape)) if shape else contextlib.nullcontext():
        for frozen in (False, True):
            for at, (got, wanted) in enumerate(zip(adapted(frozen), expected, strict=True)):
                if frozen and at == 2:
                    assert float(jnp.abs(got).max()) == 0.0
                else:
                    assert relative(got, wanted) < 1e-6, (frozen, at)


def test_sixteen_bit_products_with_float32_sums():
    ours = with_gradients(token_cross_entropy, *example(S=64, dtype=jnp.bfloat16))
    exact = with_gradients(
        naive, *(x.astype("f4") if x.dtype == jnp.bfloat16 else x for x in example(S=64, dtype="bfloat16"))
    )
    assert ours[0].dtype == jnp.float32
    assert ours[2].dtype == jnp.bfloat16
    assert relative(ours[0], exact[0]) < 1e-6  # products of 16-bit numbers are exact in float32
    assert max(relative(got, wanted) for got, wanted in zip(ours[1:], exact[1:], strict=True)) < 2**-7


@pytest.mark.parametrize(("vocabulary", "rows"), [(32000, 1), (32000, 4), (128256, 1)], ids=str)
def test_memory_is_at_most_a_tenth_of_the_naive_loss(vocabulary, rows):
    n, S, D = 4, 2048, 128
    shapes = [
        jax.ShapeDtypeStruct((n, rows, S, D), jnp.float32),
        jax.ShapeDtypeStruct((D, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((rows, S, n), jnp.int32),
        jax.ShapeDtypeStruct((rows, S, n), jnp.float32),
    ]

    def temporaries(function):
        def both(hidden, output, targets, cotangent):
            losses, pull = jax.vjp(lambda h, o: function(h, o, targets), hidden, output)
            return losses, *pull(cotangent)

        return jax.jit(both).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(token_cross_entropy) < temporaries(naive) / 10
