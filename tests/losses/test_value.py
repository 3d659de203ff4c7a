"""The critic's losses: golden values, lambda schedules, averages inside documents, no gradient through targets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weighting.documents import LENGTHS, Document, one_a_row, random_documents, scattered

from wmtp_jax.losses.documents import document_means
from wmtp_jax.losses.value import (
    document_mean_sums,
    huber_errors,
    lambda_returns,
    lambda_schedule,
    pairwise_sums,
    squared_errors,
)


@pytest.fixture(scope="module")
def golden(objectives) -> dict:
    """The golden inputs as one document a row."""
    values = jnp.asarray(objectives["values"])
    return {
        "values_BS": values,
        "outcomes_BS": jnp.broadcast_to(objectives["rewards"][:, None], values.shape),
        "mask_BS": jnp.asarray(objectives["response_mask"]),
        "segment_ids_BS": jnp.asarray(objectives["attention_mask"]).astype(jnp.int32),
    }


def document_mean(errors, golden):
    total, count = document_mean_sums(errors, golden["mask_BS"], golden["segment_ids_BS"], 1)
    return total / count


def test_golden_mse(golden, objectives):
    errors = squared_errors(golden["values_BS"], golden["outcomes_BS"])
    np.testing.assert_allclose(document_mean(errors, golden), objectives["value_mse_mc"], rtol=1e-5)


def test_golden_lambda_return_and_huber(golden, objectives):
    returns = jax.jit(partial(lambda_returns, gae_lambda=0.95))(**golden)
    np.testing.assert_allclose(returns, objectives["lambda_return_0.95"], rtol=1e-5)
    errors = huber_errors(golden["values_BS"], returns, 0.5)
    np.testing.assert_allclose(document_mean(errors, golden), objectives["value_lambda_huber0.5"], rtol=1e-5)


def test_golden_pairwise(objectives):
    def in_turn(correct, incorrect):
        return jnp.stack([correct, incorrect], axis=1).reshape(-1, correct.shape[-1])

    values = in_turn(objectives["values"], objectives["values_negative"])
    mask = in_turn(objectives["response_mask"], objectives["response_mask_negative"])
    total, count = pairwise_sums(values, mask, jnp.ones_like(mask, jnp.int32), 1)
    assert float(count) == 4
    np.testing.assert_allclose(total / count, objectives["pairwise_ranking"], rtol=1e-5)


def test_pairs_packed_in_two_rows_and_pairs_without_a_response():
    # Pairs beside each other; the last one has no response on one side and must not count.
    correct = random_documents(0, [(2, 5, 0), (1, 3, 0), (0, 4, 0)])
    incorrect = random_documents(1, [(3, 2, 0), (0, 6, 0), (4, 0, 0)])
    documents = [document for pair in zip(correct, incorrect, strict=True) for document in pair]
    singly = one_a_row(documents, (6, 8)).pack(documents)
    packed = one_a_row([], (2, 20))._replace(places=[(i % 2, 7 * (i // 2)) for i in range(6)]).pack(documents)
    means = [x.values[x.response].mean(dtype=np.float64) if x.response.any() else np.nan for x in documents]
    expected = sum(np.log1p(np.exp(means[i + 1] - means[i])) for i in (0, 2))
    for batch, n_documents in ((singly, 1), (packed, 3)):
        total, count = pairwise_sums(batch.values, batch.response, batch.segment_ids, n_documents)
        assert float(count) == 2
        np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_document_means_in_packed_rows():
    documents = random_documents(2, LENGTHS)
    layout = scattered(documents, (2, 40), seed=2)
    batch = layout.pack(documents)
    means, there = document_means(batch.values, batch.response, batch.segment_ids, len(documents))
    single = one_a_row(documents, (6, 12)).pack(documents)
    single_means, single_there = document_means(single.values, single.response, single.segment_ids, 1)
    for i, (row, start) in enumerate(layout.places):
        number = batch.segment_ids[row, start] - 1
        np.testing.assert_allclose(means[row, number], single_means[i, 0], rtol=1e-6)
        assert bool(there[row, number]) == bool(single_there[i, 0]) == bool(documents[i].response.any())
    # Numbers that no document has, and the document without a response: nothing to average.
    assert int(there.sum()) == 5
    np.testing.assert_array_equal(means[~there], 0.0)


def test_a_long_document_counts_as_much_as_a_short_one():
    def document(length: int, error: float) -> Document:
        base = random_documents(0, [(1, length, 0)])[0]
        return base._replace(values=np.full(1 + length, error, np.float32), outcomes=np.zeros(1 + length, np.float32))

    documents = [document(1, 1.0), document(9, 3.0)]
    batch = one_a_row(documents, (2, 12)).pack(documents)
    total, count = document_mean_sums(
        squared_errors(batch.values, batch.outcomes), batch.response, batch.segment_ids, 1
    )
    assert float(total / count) == (1.0 + 9.0) / 2


def test_no_gradient_through_the_target(golden):
    def loss(values, targets_from):
        returns = lambda_returns(**golden | {"values_BS": targets_from}, gae_lambda=0.5)
        return jnp.sum(squared_errors(values, returns)), returns

    values = golden["values_BS"]
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda v: loss(values, v)[0]))(values), 0.0)
    together, returns = jax.jit(jax.grad(lambda v: loss(v, v), has_aux=True))(values)
    np.testing.assert_allclose(together, 2 * (values - returns), rtol=1e-5, atol=1e-6)
    # The target does depend on the values: without the stop there would be a gradient.
    assert float(jnp.abs(returns - jax.jit(loss)(values, values + 0.1)[1]).max()) > 0.01


@pytest.mark.parametrize(("kind", "middle", "quarter"), [("linear", 0.7, 0.8), ("cosine", 0.7, 0.9 - 0.4 * 0.146447)])
def test_lambda_schedule_holds_then_decays(kind: str, middle: float, quarter: float):
    # 101 updates, 21 of them held: the way down is from update 20 to the last one, 100.
    schedule = lambda_schedule(kind, 0.9, 0.5, 21 / 101, 101)
    steps = np.array([float(schedule(i)) for i in range(101)])
    np.testing.assert_allclose(steps[:21], 0.9, rtol=1e-6)
    np.testing.assert_allclose(steps[[40, 60, 100]], [quarter, middle, 0.5], rtol=1e-5)
    assert (np.diff(steps[20:]) < 0).all()
    assert float(schedule(150)) == steps[100]
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(40)), quarter, rtol=1e-5)


def test_lambda_schedule_without_decay():
    constant = lambda_schedule("constant", 0.9, 0.5, 0.2, 10)
    held = lambda_schedule("linear", 0.9, 0.5, 1.0, 10)
    for i in (0, 5, 9):
        np.testing.assert_allclose([constant(i), held(i)], 0.9, rtol=1e-6)
    with pytest.raises(ValueError, match=r"'step'.*constant, linear, cosine"):
        lambda_schedule("step", 0.9, 0.5, 0.2, 10)
