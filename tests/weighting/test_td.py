"""TD weighting: golden values, what the terminal forms mean, documents in packed rows, batches without statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weighting.documents import LENGTHS, one_a_row, random_documents, scattered

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import at_targets, head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.weighting.td import (
    gae,
    initial_whitening,
    moments,
    td_errors,
    td_weights,
    update_whitening,
)
from wmtp_jax.weighting.tokens import Whitening

SEED = {"beta": 0.9, "clip_min": 0.1, "clip_max": 5.0}


@pytest.fixture(scope="module")
def golden(objectives) -> tuple:
    """Values, outcomes, response mask and document numbers: one document a row."""
    values = jnp.asarray(objectives["values"])
    return (
        values,
        jnp.broadcast_to(objectives["rewards"][:, None], values.shape),
        jnp.asarray(objectives["response_mask"]),
        jnp.asarray(objectives["attention_mask"]).astype(jnp.int32),
    )


# Differences of values near each other lose digits in any order of subtraction: 1e-6 absolute beside 1e-5 relative.
@pytest.mark.parametrize(
    ("function", "options", "key"),
    [
        (td_errors, {"terminal": "reference"}, "td_errors"),
        (td_errors, {"terminal": "reference", "gamma": 0.99}, "td_errors_gamma0.99"),
        (gae, {"gae_lambda": 0.0}, "marginal_gae_lam0.0"),
        (gae, {"gae_lambda": 0.95}, "marginal_gae_lam0.95"),
        (gae, {"gae_lambda": 1.0}, "mc_advantage"),
    ],
)
def test_golden_advantages(golden, objectives, function, options, key):
    ours = jax.jit(partial(function, **options))(*golden)
    np.testing.assert_allclose(ours, objectives[key], rtol=1e-5, atol=1e-6)


def test_golden_weights(golden, objectives):
    response, d = golden[2], jnp.asarray(objectives["td_errors"])
    weights = td_weights(d, response, **SEED, statistics=moments(d, response, ddof=1))
    np.testing.assert_allclose(weights, objectives["td_weights_beta0.9_clip0.1_5"], rtol=1e-5)
    weights = td_weights(d, response, beta=1.0, clip_min=0.1, clip_max=3.0, statistics=(0.02, 0.4))
    np.testing.assert_allclose(weights, objectives["td_weights_beta1_clip0.1_3_mean0.02_std0.4"], rtol=1e-5)


def test_golden_moving_statistics(golden, objectives):
    state, means, stds = initial_whitening(), [], []
    for d in objectives["ema_inputs"]:
        state = update_whitening(state, d, golden[2], momentum=0.1, warmup_steps=3)
        means.append(state.mean)
        stds.append(state.std)
    np.testing.assert_allclose(means, objectives["ema_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stds, objectives["ema_std"], rtol=1e-5)
    assert int(state.count) == 6


def test_golden_weighted_loss(golden, objectives):
    targets, valid = mtp_targets(jnp.asarray(objectives["token_ids"]), golden[3], golden[2], 4)
    ce = logits_cross_entropy(objectives["policy_logits"], targets)
    weights = at_targets(jnp.asarray(objectives["td_weights_beta0.9_clip0.1_5"]), 4)
    loss = mean_over_heads(head_sums(ce, weights, valid), head_counts(valid))
    np.testing.assert_allclose(loss, objectives["mtp_ce_td_weighted"], rtol=1e-5)


def packed(documents, seed: int = 1):
    layout = scattered(documents, (2, 40), seed)
    batch = layout.pack(documents)
    return layout, (batch.values, batch.outcomes, batch.response, batch.segment_ids)


def test_outcome_form_telescopes_to_outcome_minus_value_before_the_response():
    documents = random_documents(4, LENGTHS)
    layout, samples = packed(documents)
    for document, d in zip(documents, layout.unpack(td_errors(*samples), documents), strict=True):
        places = np.flatnonzero(document.response)
        np.testing.assert_array_equal(d[~document.response], 0.0)
        if places.size:
            before = document.values[places[0] - 1] if places[0] else 0.5
            np.testing.assert_allclose(d.sum(), document.outcomes[0] - before, rtol=1e-5, atol=1e-6)


def test_terminals_differ_at_the_last_response_token_only():
    documents = random_documents(5, LENGTHS)
    layout, samples = packed(documents)
    outcome, reference = (td_errors(*samples, gamma=0.9, terminal=name) for name in ("outcome", "reference"))
    for document, difference in zip(documents, layout.unpack(outcome - reference, documents), strict=True):
        expected = np.zeros(len(document.tokens))
        if document.response.any():
            last = np.flatnonzero(document.response)[-1]
            expected[last] = document.values[last] - (document.values[last - 1] if last else 0.5)
        np.testing.assert_allclose(difference, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"'last'.*outcome, reference"):
        td_errors(*samples, terminal="last")


def test_the_first_token_of_a_document_comes_after_the_neutral_value():
    # Both documents start with their response; the second one must not look at the last value of the first.
    documents = random_documents(6, [(0, 3, 0), (0, 4, 0)])
    batch = one_a_row(documents, (1, 9))._replace(places=[(0, 0), (0, 3)]).pack(documents)
    samples = (batch.values, batch.outcomes, batch.response, batch.segment_ids)
    for d in (td_errors(*samples), jax.jit(partial(gae, gae_lambda=0.0))(*samples)):
        np.testing.assert_allclose(d[0, [0, 3]], batch.values[0, [0, 3]] - 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (td_errors, {"gamma": 0.9}),
        (td_errors, {"terminal": "reference"}),
        (gae, {"gae_lambda": 0.95}),
        (gae, {"gae_lambda": 1.0}),
        (gae, {"gae_lambda": 1.0, "gamma": 0.9}),
    ],
)
def test_packed_rows_equal_separate_rows(function, options):
    documents = random_documents(7, LENGTHS)
    compiled = jax.jit(partial(function, **options))
    singly = one_a_row(documents, (len(documents), 12))
    results = []
    for layout in (singly, scattered(documents, (2, 40), seed=7)):
        batch = layout.pack(documents)
        d = compiled(batch.values, batch.outcomes, batch.response, batch.segment_ids)
        np.testing.assert_array_equal(d[~batch.response], 0.0)
        results.append(layout.unpack(d, documents))
    for alone, together in zip(*results, strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_too_few_response_tokens_for_statistics(tokens: int):
    response = jnp.arange(8)[None] < tokens
    d = jnp.where(response, jnp.arange(8.0)[None] - 0.3, 0.0)
    weights = td_weights(d, response, **SEED, statistics=moments(d, response, ddof=1))
    state = Whitening(jnp.float32(0.25), jnp.float32(2.0), jnp.int32(4))
    with_moving = td_weights(d, response, **SEED, statistics=(state.mean, state.std))
    updated = update_whitening(state, d, response)
    if tokens < 2:
        np.testing.assert_array_equal(weights, response)  # 1 inside, 0 outside
        np.testing.assert_array_equal(with_moving, response)
        assert [float(x) for x in updated] == [0.25, 2.0, 4.0]
    else:
        assert not np.isin(weights[response], [0.0, 1.0]).any()
        assert not np.isin(with_moving[response], [0.0, 1.0]).any()
        assert int(updated.count) == 5
        assert float(updated.mean) != 0.25
        assert float(updated.std) != 2.0
    # Without whitening a single token keeps its weight.
    plain = td_weights(d, response, **SEED)
    np.testing.assert_allclose(plain, jnp.where(response, jnp.clip(jnp.exp(d / 0.9), 0.1, 5.0), 0.0), rtol=1e-5)
