"""The multi-token objective: golden value, masks, packing, splitting into micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets


def test_golden_uniform_loss(objectives):
    labels = jnp.asarray(objectives["labels"])
    mask = labels >= 0
    targets, valid = mtp_targets(jnp.where(mask, labels, 0), jnp.ones_like(labels), mask, 4)
    ce = logits_cross_entropy(objectives["policy_logits"], targets)
    loss = mean_over_heads(head_sums(ce, jnp.ones_like(ce), valid), head_counts(valid))
    np.testing.assert_allclose(loss, objectives["mtp_ce_uniform"], rtol=1e-5)


def brute_force_targets(tokens, segments, mask, n):
    B, S = tokens.shape
    targets, valid = np.zeros((B, S, n), int), np.zeros((B, S, n), bool)
    for b in range(B):
        for t in range(S):
            for k in range(1, n + 1):
                u = t + k
                if u < S and segments[b, t] and segments[b, u] == segments[b, t] and mask[b, u]:
                    targets[b, t, k - 1], valid[b, t, k - 1] = tokens[b, u], True
    return targets, valid


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10_000))
def test_targets_stay_in_their_document(S: int, n: int, seed: int):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 9, (2, S))
    segments = np.sort(rng.integers(0, 3, (2, S)))[:, ::-1].copy()
    mask = rng.random((2, S)) < 0.7
    for ours, theirs in zip(
        mtp_targets(tokens, segments, mask, n), brute_force_targets(tokens, segments, mask, n), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_head_without_a_target_does_not_count():
    loss = mean_over_heads(jnp.array([6.0, 0.0]), jnp.array([3.0, 0.0]))
    assert float(loss) == 2.0
    assert float(mean_over_heads(jnp.zeros(2), jnp.zeros(2))) == 0.0


def test_non_finite_losses_without_a_target_do_not_leak():
    ce = jnp.array([[[1.0], [jnp.inf]]])
    valid = jnp.array([[[True], [False]]])
    assert float(head_sums(ce, jnp.ones_like(ce), valid)[0]) == 1.0
    grad = jax.grad(lambda x: head_sums(x, jnp.ones_like(x), valid).sum())(ce)
    assert np.isfinite(grad).all()
