"""Every weighting on packed rows equals loops over documents in float64 (restated.py), weights and loss alike."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weighting import restated
from weighting.documents import LENGTHS, N_HEADS, Batch, Document, random_documents, scattered

from wmtp_jax.losses.cross_entropy import logits_cross_entropy
from wmtp_jax.losses.mtp import head_counts, head_sums, mean_over_heads, mtp_targets
from wmtp_jax.losses.value import document_mean_sums, huber_errors, lambda_returns, squared_errors
from wmtp_jax.weighting import rho1, td, uniform
from wmtp_jax.weighting.tokens import Tokens

DOCUMENTS = random_documents(3, LENGTHS)
LAYOUT = scattered(DOCUMENTS, (2, 40), seed=3)
BATCH = Batch(*map(jnp.asarray, LAYOUT.pack(DOCUMENTS)))
TARGETS, VALID = mtp_targets(BATCH.tokens, BATCH.segment_ids, BATCH.response, N_HEADS)
CE = logits_cross_entropy(BATCH.logits, TARGETS)
BETA, CLIP = 0.9, (0.5, 2.0)  # narrow enough that both ends are reached, asserted below
TD = {"beta": BETA, "clip_min": CLIP[0], "clip_max": CLIP[1]}


def tokens(scores_BS) -> Tokens:
    return Tokens(CE, VALID, scores_BS, BATCH.outcomes, BATCH.response, BATCH.segment_ids, None)


def each(function, *arguments) -> list:
    return [function(document, *arguments) for document in DOCUMENTS]


def clipped(d: list[list[float]], statistics: tuple[float, float] | None) -> list[np.ndarray]:
    weights = restated.clipped_exponentials(DOCUMENTS, d, BETA, *CLIP, statistics)
    flat = restated.over_response(DOCUMENTS, weights)
    assert min(flat) == CLIP[0]
    assert max(flat) == CLIP[1]
    return restated.per_head(DOCUMENTS, weights)


def whitened(d: list[list[float]]) -> list[np.ndarray]:
    return clipped(d, restated.mean_and_std(DOCUMENTS, d, ddof=1))


def other_values(document: Document, power: int) -> Document:
    return document._replace(values=document.values**power)


# Name: the scheme, its options, and what its weights must be.
SCHEMES = {
    "uniform": (uniform.weigh, {}, lambda: restated.per_head(DOCUMENTS, [[1.0] * len(x.tokens) for x in DOCUMENTS])),
    "td, not whitened": (td.weigh, TD | {"whiten": False}, lambda: clipped(each(restated.td_errors), None)),
    "td": (td.weigh, TD, lambda: whitened(each(restated.td_errors))),
    "td, terminal of the reference": (
        td.weigh,
        TD | {"terminal": "reference"},
        lambda: whitened(each(restated.td_errors, 1.0, "reference")),
    ),
    "td, gamma 0.9": (td.weigh, TD | {"gamma": 0.9}, lambda: whitened(each(restated.td_errors, 0.9))),
    "gae": (td.weigh, TD | {"advantage": "gae"}, lambda: whitened(each(restated.advantages, 1.0, 0.95))),
    "gae, lambda 0.5, gamma 0.9": (
        td.weigh,
        TD | {"advantage": "gae", "gae_lambda": 0.5, "gamma": 0.9},
        lambda: whitened(each(restated.advantages, 0.9, 0.5)),
    ),
    "gae, lambda 1, gamma 0.9": (
        td.weigh,  # no Monte Carlo advantage: that needs gamma 1 too
        TD | {"advantage": "gae", "gae_lambda": 1.0, "gamma": 0.9},
        lambda: whitened(each(restated.advantages, 0.9, 1.0)),
    ),
    "monte carlo": (
        td.weigh,
        TD | {"advantage": "gae", "gae_lambda": 1.0},
        lambda: whitened(each(restated.monte_carlo)),
    ),
    "rho1 signed": (rho1.weigh, {}, lambda: restated.rho1(DOCUMENTS, "signed", 0.6)),
    "rho1 absolute": (rho1.weigh, {"mode": "absolute"}, lambda: restated.rho1(DOCUMENTS, "absolute", 0.6)),
    "rho1 difficult": (
        rho1.weigh,
        {"mode": "difficult", "k_percent": 0.35},
        lambda: restated.rho1(DOCUMENTS, "difficult", 0.35),
    ),
    "rho1 soft": (
        rho1.weigh,
        {"selection": "soft", "temperature": 0.7},
        lambda: restated.rho1_soft(DOCUMENTS, 0.7),
    ),
}


def assert_weights_and_loss(ours_BSn, theirs: list[np.ndarray]):
    counted = jnp.where(VALID, ours_BSn, 0.0)  # weights of tokens also stand where no target is counted
    for mine, other in zip(LAYOUT.unpack(counted, DOCUMENTS), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    loss = mean_over_heads(head_sums(CE, ours_BSn, VALID), head_counts(VALID))
    logits = [document.logits.astype(float) for document in DOCUMENTS]
    np.testing.assert_allclose(loss, restated.weighted_ce(DOCUMENTS, logits, theirs), rtol=1e-5)


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_and_loss(name: str):
    weigh, options, theirs = SCHEMES[name]
    scores = BATCH.reference_ce if weigh is rho1.weigh else BATCH.values
    ours, _, _ = jax.jit(partial(weigh, **options))(tokens(scores), td.initial_whitening())
    assert_weights_and_loss(ours, theirs())


def test_td_with_moving_statistics():
    """Four updates with other values each; the statistics of an update come into the next one."""
    state, means, stds = td.initial_whitening(), [0.0], [1.0]
    for i, power in enumerate((1, 2, 3, 1)):
        scores = BATCH.values**power
        ours, state, _ = td.weigh(tokens(scores), state, **TD, moving=True, momentum=0.1, warmup_steps=2)
        d = [restated.td_errors(other_values(document, power)) for document in DOCUMENTS]
        if i in (0, 3):
            assert_weights_and_loss(ours, clipped(d, (means[-1], stds[-1])))
        old = (0.0, 0.5, 0.9, 0.9)[i]  # 0/2 and 1/2 in the warm-up, then momentum
        mean, std = restated.mean_and_std(DOCUMENTS, d, ddof=0)
        means.append(old * means[-1] + (1 - old) * mean)
        stds.append(old * stds[-1] + (1 - old) * std)
        np.testing.assert_allclose([state.mean, state.std], [means[-1], stds[-1]], rtol=1e-5)


@pytest.mark.parametrize(("gae_lambda", "gamma"), [(0.0, 1.0), (0.95, 1.0), (1.0, 1.0), (0.5, 0.9)])
def test_lambda_returns_and_value_losses(gae_lambda: float, gamma: float):
    samples = (BATCH.values, BATCH.outcomes, BATCH.response, BATCH.segment_ids)
    ours = jax.jit(partial(lambda_returns, gae_lambda=gae_lambda, gamma=gamma))(*samples)
    theirs = each(restated.lambda_return, gae_lambda, gamma)
    for mine, other in zip(LAYOUT.unpack(ours, DOCUMENTS), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)
    values = [document.values.astype(float) for document in DOCUMENTS]
    for errors, delta in ((squared_errors(BATCH.values, ours), None), (huber_errors(BATCH.values, ours, 0.3), 0.3)):
        total, count = document_mean_sums(errors, BATCH.response, BATCH.segment_ids, len(DOCUMENTS))
        np.testing.assert_allclose(total / count, restated.value_loss(DOCUMENTS, values, theirs, delta), rtol=1e-5)
