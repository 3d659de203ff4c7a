"""How documents lie in rows changes nothing; weights carry no gradient; gradients equal finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weighting import restated
from weighting.documents import N_HEADS, VOCAB, Batch, one_a_row, random_documents, scattered

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.losses.value import document_mean_sums, huber_errors, lambda_returns, pairwise_sums, squared_errors
from wmtp_jax.weighting import rho1, td
from wmtp_jax.weighting.tokens import Tokens

MOST = 6  # documents in a batch
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
# Two shapes only, so that everything compiles twice: a row for each document, and long rows with room to move.
SINGLE, LONG = (MOST, 12), (4, 48)


def target_weights(kind: str, logits, values, reference_ce, batch: Batch):
    """Weights of targets, before anything stops their gradient; the token losses, their mask, and the metrics."""
    targets, valid = mtp_targets(batch.tokens, batch.segment_ids, batch.response, N_HEADS)
    ce = logits_cross_entropy(logits, targets)
    weigh, scores, options = {
        "td": (td.weigh, values, {}),
        "hard": (rho1.weigh, reference_ce, {}),
        "soft": (rho1.weigh, reference_ce, {"selection": "soft", "temperature": 0.8}),
    }[kind]
    tokens = Tokens(ce, valid, scores, batch.outcomes, batch.response, batch.segment_ids, None)
    weights, _, metrics = weigh(tokens, td.initial_whitening(), **options)
    return weights, ce, valid, metrics


def weighted_loss(kind: str, logits, values, reference_ce, batch: Batch, stop=jax.lax.stop_gradient):
    weights, ce, valid, _ = target_weights(kind, logits, values, reference_ce, batch)
    return mean_over_heads(head_sums(ce, stop(weights), valid), head_counts(valid))


KINDS = ("td", "hard", "soft")


@jax.jit
def everything(batch: Batch) -> tuple[dict, dict]:
    """What belongs to positions, and what to the whole batch."""
    samples = (batch.values, batch.outcomes, batch.response, batch.segment_ids)
    d = td.td_errors(*samples)
    statistics = td.moments(d, batch.response, ddof=1)
    weights = td.td_weights(d, batch.response, beta=0.9, clip_min=0.1, clip_max=5.0, statistics=statistics)
    positions, whole = {"td errors": d, "td weights": weights}, {}
    for kind in KINDS:
        weights, _, valid, metrics = target_weights(kind, batch.logits, batch.values, batch.reference_ce, batch)
        whole |= {f"{kind} {name}": x for name, x in metrics.items()}
        positions[f"{kind} target weights"] = jnp.where(valid, weights, 0.0)
        whole[f"{kind} loss"], positions[f"{kind} gradient"] = jax.value_and_grad(
            lambda logits, kind=kind: weighted_loss(kind, logits, batch.values, batch.reference_ce, batch)
        )(batch.logits)
    returns = lambda_returns(*samples, gae_lambda=0.9)
    positions["lambda returns"] = returns
    for name, errors in (
        ("mse", squared_errors(batch.values, batch.outcomes)),
        ("huber", huber_errors(batch.values, returns, 0.3)),
    ):
        whole[f"{name} sum"], whole[f"{name} count"] = document_mean_sums(
            errors, batch.response, batch.segment_ids, MOST
        )
    return positions, whole


lengths = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 1)).filter(any), min_size=1, max_size=MOST
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(lengths, st.integers(0, 10_000))
def test_rows_padding_and_packing_change_nothing(lengths: list[tuple[int, int, int]], seed: int):
    documents = random_documents(seed, lengths)
    layouts = [one_a_row(documents, SINGLE), scattered(documents, LONG, seed), scattered(documents, LONG, seed + 1)]
    results = [everything(layout.pack(documents)) for layout in layouts]
    expected_positions, expected_whole = results[0]
    for layout, (positions, whole) in zip(layouts, results, strict=True):
        padding = layout.pack(documents).segment_ids == 0
        for name, x in positions.items():
            np.testing.assert_array_equal(np.asarray(x)[padding], 0.0, err_msg=f"{name} in padding")
            expected = layouts[0].unpack(expected_positions[name], documents)
            for i, (ours, theirs) in enumerate(zip(layout.unpack(x, documents), expected, strict=True)):
                np.testing.assert_allclose(ours, theirs, **CLOSE, err_msg=f"{name} of document {i}")
        for name, x in whole.items():
            np.testing.assert_allclose(x, expected_whole[name], **CLOSE, err_msg=name)
    # Not by being nothing: with two documents' worth of response tokens there is a loss and a gradient.
    if sum(document.response.sum() for document in documents) > 6:
        assert float(expected_whole["td loss"]) > 0.1
        assert float(jnp.abs(expected_positions["td gradient"]).max()) > 1e-3


DOCUMENTS = random_documents(9, [(2, 4, 0), (0, 3, 0), (3, 2, 1), (1, 3, 0)])
LAYOUT = scattered(DOCUMENTS, (2, 24), seed=9)
BATCH = Batch(*map(jnp.asarray, LAYOUT.pack(DOCUMENTS)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_through_weights(kind: str):
    def loss(logits, values, reference_ce, stop=jax.lax.stop_gradient):
        return weighted_loss(kind, logits, values, reference_ce, BATCH, stop)

    at = (BATCH.logits, BATCH.values, BATCH.reference_ce)
    to_logits, to_values, to_reference = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*at)
    np.testing.assert_array_equal(to_values, 0.0)
    np.testing.assert_array_equal(to_reference, 0.0)
    weights, _, valid, _ = target_weights(kind, *at, BATCH)

    def with_numbers(logits):
        ce = logits_cross_entropy(logits, mtp_targets(BATCH.tokens, BATCH.segment_ids, BATCH.response, N_HEADS)[0])
        return mean_over_heads(head_sums(ce, weights, valid), head_counts(valid))

    np.testing.assert_allclose(to_logits, jax.jit(jax.grad(with_numbers))(BATCH.logits), **CLOSE)
    if kind != "hard":  # a choice has no slope; the others do without the stop, so that the test can fail
        leaking = jax.jit(jax.grad(lambda *x: loss(*x, stop=lambda w: w), argnums=(0, 1, 2)))(*at)
        assert float(jnp.abs(leaking[1 if kind == "td" else 2]).max()) > 1e-3


def finite_differences(function, documents_of_numbers: list[np.ndarray], step: float = 1e-5) -> list[np.ndarray]:
    """Central differences of a float64 function, one number at a time; off by about 1e-10."""
    numbers = [x.astype(np.float64) for x in documents_of_numbers]
    slopes = [np.zeros_like(x) for x in numbers]
    for x, slope in zip(numbers, slopes, strict=True):
        for place in np.ndindex(x.shape):
            was = x[place]
            x[place] = was + step
            above = function(numbers)
            x[place] = was - step
            slope[place] = (above - function(numbers)) / (2 * step)
            x[place] = was
    return slopes


def assert_gradients(gradient, expected: list[np.ndarray]):
    for ours, theirs in zip(LAYOUT.unpack(gradient, DOCUMENTS), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    np.testing.assert_array_equal(np.asarray(gradient)[np.asarray(BATCH.segment_ids) == 0], 0.0)
    assert max(np.abs(x).max() for x in expected) > 1e-2


def test_weighted_cross_entropy_slope():
    at = (BATCH.values, BATCH.reference_ce, BATCH)
    weights = np.asarray(target_weights("td", BATCH.logits, *at)[0], np.float64)
    fixed = LAYOUT.unpack(weights, DOCUMENTS)
    gradient = jax.jit(jax.grad(lambda logits: weighted_loss("td", logits, *at)))(BATCH.logits)
    assert gradient.shape[-1] == VOCAB
    expected = finite_differences(
        lambda logits: restated.weighted_ce(DOCUMENTS, logits, fixed), [x.logits for x in DOCUMENTS]
    )
    assert_gradients(gradient, expected)


@pytest.mark.parametrize("delta", [None, 0.3])
def test_value_loss_slope(delta: float | None):
    def loss(values):
        goals = lambda_returns(values, BATCH.outcomes, BATCH.response, BATCH.segment_ids, gae_lambda=0.9)
        errors = squared_errors(values, goals) if delta is None else huber_errors(values, goals, delta)
        total, count = document_mean_sums(errors, BATCH.response, BATCH.segment_ids, len(DOCUMENTS))
        return total / count

    goals = [restated.lambda_return(document, 0.9, 1.0) for document in DOCUMENTS]  # fixed: no gradient through them
    expected = finite_differences(
        lambda values: restated.value_loss(DOCUMENTS, values, goals, delta), [x.values for x in DOCUMENTS]
    )
    assert_gradients(jax.jit(jax.grad(loss))(BATCH.values), expected)


def test_pairwise_slope():
    layout = one_a_row(DOCUMENTS, (len(DOCUMENTS), 8))
    batch = layout.pack(DOCUMENTS)

    def loss(values):
        total, count = pairwise_sums(values, batch.response, batch.segment_ids, 1)
        return total / count

    expected = finite_differences(lambda values: restated.pairwise(DOCUMENTS, values), [x.values for x in DOCUMENTS])
    for ours, theirs in zip(layout.unpack(jax.jit(jax.grad(loss))(batch.values), DOCUMENTS), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
        assert np.abs(theirs).max() > 1e-2
