"""The controls: random weights of the same size, and the same weights in other places of their document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weighting.documents import LENGTHS, random_documents, scattered

from wmtp_jax.weighting.controls import random_matched, shuffled


def noise(key, like) -> jax.Array:
    """Uniform numbers, as the training step draws them."""
    return jax.random.uniform(jax.random.key(key) if isinstance(key, int) else key, like.shape)


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
    changed = first != np.where(batch.response, batch.values, 0.0)
    assert {int(x) for row in range(2) for x in batch.segment_ids[row][changed[row]]}  # something moved
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
    keys = jax.random.split(jax.random.key(0), 6000)
    drawn = np.asarray(jax.vmap(lambda key: shuffled(weights, mask, segments, noise(key, weights))[0])(keys))
    for places in ((1, 2, 3), (5, 6, 7)):
        _, counts = np.unique(drawn[:, places], axis=0, return_counts=True)
        assert counts.size == 6
        # 1 000 each with a standard deviation of 29.
        np.testing.assert_allclose(counts, 1000, atol=5 * 29)
