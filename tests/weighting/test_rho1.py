"""Rho-1 weighting: golden choices and thresholds, the quantile, soft weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import at_targets, head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.weighting.rho1 import MODES, hard_weights, selection_scores, soft_weights, thresholds


@pytest.fixture(scope="module")
def golden(objectives) -> tuple:
    """Token losses of the policy and of the reference at the targets, and which targets count."""
    segments = jnp.asarray(objectives["attention_mask"]).astype(jnp.int32)
    tokens, response = jnp.asarray(objectives["token_ids"]), jnp.asarray(objectives["response_mask"])
    targets, valid = mtp_targets(tokens, segments, response, 4)
    ce = logits_cross_entropy(objectives["policy_logits"], targets)
    reference = logits_cross_entropy(objectives["reference_logits"], targets[..., 0])
    # The loss of token u is at u - 1, where it is predicted; moved to u itself.
    return ce, at_targets(jnp.pad(reference[:, :-1], ((0, 0), (1, 0))), 4), valid


@pytest.mark.parametrize("mode", MODES)
def test_golden_choice(golden, objectives, mode: str):
    ce, reference, valid = golden
    scores = selection_scores(ce, reference, mode)
    np.testing.assert_allclose(
        thresholds(scores, valid, 0.6), objectives[f"rho1_thresholds_{mode}_k0.6"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(hard_weights(scores, valid, 0.6), objectives[f"rho1_weights_{mode}_k0.6"])


def test_golden_weighted_loss(golden, objectives):
    ce, reference, valid = golden
    weights = hard_weights(selection_scores(ce, reference, "signed"), valid, 0.6)
    loss = mean_over_heads(head_sums(ce, weights, valid), head_counts(valid))
    np.testing.assert_allclose(loss, objectives["mtp_ce_rho1_weighted"], rtol=1e-5)


def test_unknown_mode():
    with pytest.raises(ValueError, match=r"'easy'.*signed, absolute, difficult"):
        selection_scores(jnp.zeros((1, 1, 1)), jnp.zeros((1, 1, 1)), "easy")


def random_scores(seed: int, share: float) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Three heads, each with other valid targets; what stands at the others must not matter."""
    rng = np.random.default_rng(seed)
    valid = rng.random((3, 8, 3)) < share
    return jnp.asarray(np.where(valid, rng.normal(size=valid.shape), 1e4 * rng.choice([-1, 1])), jnp.float32), valid


@pytest.mark.parametrize("k_percent", [0.05, 0.5, 0.6, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_the_quantile_of_valid_targets(k_percent: float, seed: int):
    scores, valid = random_scores(seed, share=0.2 + 0.2 * seed)
    ours = np.asarray(thresholds(scores, valid, k_percent))
    weights = np.asarray(hard_weights(scores, valid, k_percent))
    for head in range(3):
        chosen_from = np.asarray(scores)[valid[..., head], head]
        expected = np.quantile(chosen_from.astype(np.float64), 1 - k_percent, method="linear")
        np.testing.assert_allclose(ours[head], expected, rtol=1e-5, atol=1e-6)
        # At or above a place p (from 0) of N ranked scores there are N - ceil(p).
        place = round((1 - k_percent) * (chosen_from.size - 1), 9)
        assert weights[..., head].sum() == chosen_from.size - np.ceil(place)
        assert set(np.unique(weights[..., head])) <= {0.0, 1.0}
    np.testing.assert_array_equal(weights[~valid], 0.0)


def test_one_valid_target_and_none():
    scores, _ = random_scores(0, share=1.0)
    valid = np.zeros(scores.shape, bool)
    valid[1, 2, 0] = valid[2, 5, 1] = True  # one each for two heads, none for the third
    for k_percent in (0.05, 0.6, 1.0):
        np.testing.assert_array_equal(thresholds(scores, valid, k_percent)[:2], [scores[1, 2, 0], scores[2, 5, 1]])
        np.testing.assert_array_equal(hard_weights(scores, valid, k_percent), valid)
    np.testing.assert_allclose(soft_weights(scores, valid, 0.5), valid, rtol=1e-6)


def test_equal_scores_are_all_at_the_threshold():
    scores = jnp.full((2, 4, 1), 0.7)
    np.testing.assert_array_equal(hard_weights(scores, jnp.ones(scores.shape, bool), 0.25), 1.0)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_soft_weights(temperature: float):
    scores, valid = random_scores(5, share=0.5)
    valid[..., 1] = False
    weights = np.asarray(soft_weights(scores, valid, temperature))
    np.testing.assert_array_equal(weights[~valid], 0.0)  # no NaN either, also for the head without a target
    for head in (0, 2):
        inside, at = weights[valid[..., head], head], np.asarray(scores, np.float64)[valid[..., head], head]
        np.testing.assert_allclose(inside.mean(), 1.0, rtol=1e-5)
        expected = np.exp(at / temperature)
        np.testing.assert_allclose(inside, expected / expected.mean(), rtol=1e-5)


def test_soft_weights_of_very_large_scores_are_finite():
    scores = jnp.array([[[1e4], [1e4], [-1e4]]])
    np.testing.assert_allclose(soft_weights(scores, jnp.ones(scores.shape, bool), 0.1)[0, :, 0], [1.5, 1.5, 0.0])


def test_a_threshold_on_a_score_keeps_its_target():
    """101 equal steps and k 0.7: the quantile is the 31st score itself, whatever float32 makes of 0.3 x 100."""
    scores = jnp.arange(101.0)[None, :, None]
    assert int(hard_weights(scores, jnp.ones(scores.shape, bool), 0.7).sum()) == 71
