"""The controls: random weights of the same size, and the same weights in other places of their document."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weighting.documents import LENGTHS, N_HEADS, random_documents, scattered

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import mtp_targets
from wmtp_jax.weighting import controls, rho1, td
from wmtp_jax.weighting.tokens import Tokens

random_matched, shuffled = jax.jit(controls.random_matched), jax.jit(controls.shuffled)


def noise(seed: int, like) -> jax.Array:
    """Uniform numbers, as the training step draws them."""
    return jax.random.uniform(jax.random.key(seed), like.shape)


@pytest.fixture(scope="module")
def many() -> tuple:
    """Skewed weights of 65 536 tokens, half of them counted; the others hold something else altogether."""
    rng = np.random.default_rng(0)
    mask = rng.random((64, 1024)) < 0.5
    return jnp.asarray(np.where(mask, 0.4 + rng.exponential(0.7, mask.shape), 30.0), jnp.float32), mask


def test_random_weights_have_the_mean_and_std_of_the_scheme(many):
    weights, mask = many
    drawn = np.asarray(random_matched(weights, mask, noise(0, weights), 0.0, np.inf))
    np.testing.assert_array_equal(drawn[~mask], 0.0)
    goal, drawn = np.asarray(weights, np.float64)[mask], drawn[mask].astype(np.float64)
    # 32 768 draws: standard errors are 0.4% of the mean and about 1% of the standard deviation.
    np.testing.assert_allclose(drawn.mean(), goal.mean(), rtol=0.015)
    np.testing.assert_allclose(drawn.std(), goal.std(), rtol=0.04)
    # Log-normal: the logarithm is symmetric about log(mean) - variance / 2; the scheme's own weights are not.
    for x, symmetric in ((drawn, True), (goal, False)):
        logarithm = np.log(x)
        skewness = np.mean(((logarithm - logarithm.mean()) / logarithm.std()) ** 3)
        assert (abs(skewness) < 0.06) == symmetric
    # Drawn anew, not the scheme's weights in disguise.
    assert abs(np.corrcoef(drawn, goal)[0, 1]) < 0.03


def test_random_weights_are_clipped(many):
    weights, mask = many
    drawn = np.asarray(random_matched(weights, mask, noise(0, weights), 0.5, 2.0))
    assert drawn[mask].min() == 0.5
    assert drawn[mask].max() == 2.0
    assert ((drawn[mask] > 0.5) & (drawn[mask] < 2.0)).mean() > 0.5
    np.testing.assert_array_equal(drawn[~mask], 0.0)


def test_random_weights_follow_their_noise(many):
    first, again, other = (random_matched(*many, noise(i, many[0]), 0.1, 5.0) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other))[many[1]].mean() > 0.5


def test_random_weights_of_equal_or_no_weights():
    weights = jnp.full((2, 5), 1.25)
    mask = jnp.arange(5)[None] < jnp.array([[3], [0]])
    np.testing.assert_allclose(
        random_matched(weights, mask, noise(0, weights), 0.1, 5.0), jnp.where(mask, 1.25, 0.0), rtol=1e-5
    )
    nothing = random_matched(weights, jnp.zeros_like(mask), noise(0, weights), 0.1, 5.0)
    np.testing.assert_array_equal(nothing, 0.0)


def test_random_weights_at_the_ends_of_the_noise():
    # Uniform numbers include 0, where a normal quantile is infinite; times the spread of equal weights that is NaN.
    mask, noise_BS = jnp.ones((1, 3), bool), jnp.array([[0.0, 0.5, 1.0 - 2.0**-24]])
    drawn = random_matched(jnp.array([[0.5, 2.0, 1.0]]), mask, noise_BS, 0.0, np.inf)
    assert np.isfinite(drawn).all()
    assert (np.diff(drawn[0]) > 0).all()
    np.testing.assert_allclose(random_matched(jnp.ones((1, 3)), mask, noise_BS, 0.0, np.inf), 1.0, rtol=1e-6)


def test_shuffled_weights_stay_in_their_document():
    documents = random_documents(8, LENGTHS)
    layout = scattered(documents, (2, 40), seed=8)
    batch = layout.pack(documents)
    weights, mask = jnp.asarray(batch.values), jnp.asarray(batch.response)
    first, again, other = (np.asarray(shuffled(weights, mask, batch.segment_ids, noise(i, weights))) for i in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[~batch.response], 0.0)
    for document, ours in zip(documents, layout.unpack(first, documents), strict=True):
        np.testing.assert_array_equal(np.sort(ours[document.response]), np.sort(document.values[document.response]))
    for document, ours, theirs in zip(
        documents, layout.unpack(first, documents), layout.unpack(other, documents), strict=True
    ):
        if document.response.sum() > 4:  # short ones may come back as they were
            assert (ours[document.response] != document.values[document.response]).any()
            assert (ours != theirs).any()


def test_every_order_is_equally_likely():
    # Two documents of three response tokens in one row, prompts between: 6 orders each, 6 000 draws.
    segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    mask = jnp.array([[False, True, True, True, False, True, True, True, False]])
    weights = jnp.where(mask, jnp.arange(9.0), 99.0)[:1]
    draws = jax.random.uniform(jax.random.key(0), (6000, *weights.shape))
    drawn = np.asarray(jax.vmap(lambda noise_BS: shuffled(weights, mask, segments, noise_BS)[0])(draws))
    for places in ((1, 2, 3), (5, 6, 7)):
        _, counts = np.unique(drawn[:, places], axis=0, return_counts=True)
        assert counts.size == 6
        # 1 000 each with a standard deviation of 29.
        np.testing.assert_allclose(counts, 1000, atol=5 * 29)


@pytest.mark.parametrize("weigh", [td.weigh, partial(rho1.weigh, selection="soft")])
def test_controls_in_the_place_of_a_scheme(weigh):
    # Prompts as long as the furthest head looks ahead: every response token is a target of every head.
    documents = random_documents(10, [(3, 6, 0), (4, 5, 1), (3, 7, 0)])
    layout = scattered(documents, (2, 24), seed=10)
    batch = layout.pack(documents)
    targets, valid = mtp_targets(batch.tokens, batch.segment_ids, batch.response, N_HEADS)
    ce = logits_cross_entropy(batch.logits, targets)
    samples = (jnp.asarray(batch.values), batch.outcomes, batch.response, batch.segment_ids)
    tokens = Tokens(ce, valid, *samples, jax.random.uniform(jax.random.key(0), ce.shape))
    own, shuffled_, random = (
        layout.unpack(
            jnp.where(valid, jax.jit(partial(weigh, control=control))(tokens, td.initial_whitening())[0], 0.0),
            documents,
        )
        for control in (None, "shuffled", "random_matched")
    )
    for document, inside in enumerate(layout.unpack(valid, documents)):
        for head in range(N_HEADS):
            mine, moved, drawn = (x[document][inside[:, head], head] for x in (own, shuffled_, random))
            np.testing.assert_array_equal(np.sort(moved), np.sort(mine))
            assert (moved != mine).any()
            assert not np.isin(drawn, mine[(mine > 0.1) & (mine < 5.0)]).any()  # but for clipped ones
    with pytest.raises(ValueError, match=r"'reversed'.*random_matched, shuffled"):
        weigh(tokens, td.initial_whitening(), control="reversed")
