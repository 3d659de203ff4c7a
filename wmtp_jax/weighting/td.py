"""TD weighting (stage ``verifiable``): a token weighs more where choosing it raised the critic's value.

The critic's value V[t] is what it expects, after reading ``x[..t]``, of the outcome R (1: the tests pass, 0: they
do not). The weight of token u comes from d[u], the change in value that u made (temporal difference:
Sutton & Barto 2018, section 6.1; generalised advantages: Schulman et al. 2016, arXiv 1506.02438).
Shapes in names: B rows, S positions; everything stays inside a document.
"""

import jax.numpy as jnp
from jax import Array

from wmtp_jax.losses.documents import before, goes_on, reverse_affine_scan
from wmtp_jax.losses.mtp import at_targets
from wmtp_jax.weighting.controls import replaced
from wmtp_jax.weighting.tokens import Metrics, Tokens, Whitening, masked_mean, weight_metrics

NEUTRAL_VALUE = 0.5  # V before anything was read
TERMINALS = ("outcome", "reference")
_EPSILON = 1e-8


def initial_whitening() -> Whitening:
    """Before the first update: d is taken as it is."""
    return Whitening(jnp.zeros(()), jnp.ones(()), jnp.zeros((), jnp.int32))


def td_errors(
    values_BS: Array,
    outcomes_BS: Array,
    response_BS: Array,
    segment_ids_BS: Array,
    *,
    gamma: float = 1.0,
    terminal: str = "outcome",
) -> Array:
    """``d[u] = gamma * V[u] - V[u-1]`` on response tokens before the last one, T; there the outcome comes in.

    Args:
      values_BS: V[t].
      outcomes_BS: R of the document, at each of its positions.
      response_BS: bool.
      segment_ids_BS: document numbers.
      gamma: discount a token.
      terminal: ``outcome``: ``d[T] = R - V[T-1]``. ``reference``: ``d[T] = R - V[T]``, as the PyTorch system has it.

    Returns:
      (B, S) float32, 0 outside the response.

    Raises:
      ValueError: ``terminal`` is unknown.
    """
    if terminal not in TERMINALS:
        raise ValueError(f"terminal is {terminal!r}; it must be one of {', '.join(TERMINALS)}")
    previous_BS = before(values_BS, segment_ids_BS, NEUTRAL_VALUE)
    final_BS = outcomes_BS - (previous_BS if terminal == "outcome" else values_BS)
    inner_BS = gamma * values_BS - previous_BS
    return jnp.where(response_BS, jnp.where(goes_on(response_BS, segment_ids_BS), inner_BS, final_BS), 0.0)


def gae(
    values_BS: Array,
    outcomes_BS: Array,
    response_BS: Array,
    segment_ids_BS: Array,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> Array:
    """Marginal advantages: ``A[u] = d[u] + gamma * lambda * A[u+1]`` with ``d[u] = gamma * V[u] - V[u-1]``, T included.

    With ``gamma = gae_lambda = 1`` it is the Monte Carlo advantage ``R - V[u]``, the only case in which the outcome
    itself comes in.

    Args and returns: as `td_errors`.
    """
    if gamma == 1.0 and gae_lambda == 1.0:
        return jnp.where(response_BS, outcomes_BS - values_BS, 0.0)
    d_BS = gamma * values_BS - before(values_BS, segment_ids_BS, NEUTRAL_VALUE)
    slope_BS = jnp.where(goes_on(response_BS, segment_ids_BS), gamma * gae_lambda, 0.0)
    return jnp.where(response_BS, reverse_affine_scan(slope_BS, jnp.where(response_BS, d_BS, 0.0)), 0.0)


def moments(d_BS: Array, response_BS: Array, ddof: int) -> tuple[Array, Array]:
    """Mean and standard deviation over all response tokens of the batch, float32 (); 0 and 0 where there are none.

    Args:
      d_BS: differences.
      response_BS: bool.
      ddof: 1: unbiased, 0: of the population.
    """
    count = jnp.sum(response_BS, dtype=jnp.float32)
    mean = jnp.sum(jnp.where(response_BS, d_BS, 0.0), dtype=jnp.float32) / jnp.maximum(count, 1.0)
    square = jnp.sum(jnp.where(response_BS, jnp.square(d_BS - mean), 0.0), dtype=jnp.float32)
    return mean, jnp.sqrt(square / jnp.maximum(count - ddof, 1.0))


def update_whitening(
    state: Whitening, d_BS: Array, response_BS: Array, *, momentum: float = 0.1, warmup_steps: int = 10
) -> Whitening:
    """The moving averages after this batch.

    Update i of the first ``warmup_steps`` mixes ``(i - 1) / warmup_steps`` of the old with the rest new; afterwards
    ``momentum`` new. A batch with one response token or none leaves them as they are.
    """
    mean, std = moments(d_BS, response_BS, ddof=0)
    done = state.count.astype(jnp.float32)
    old = jnp.where(state.count < warmup_steps, done / max(warmup_steps, 1), 1.0 - momentum)
    mixed = Whitening(old * state.mean + (1.0 - old) * mean, old * state.std + (1.0 - old) * std, state.count + 1)
    enough = jnp.sum(response_BS) > 1
    return Whitening(*(jnp.where(enough, new, kept) for new, kept in zip(mixed, state, strict=True)))


def td_weights(
    d_BS: Array,
    response_BS: Array,
    *,
    beta: float,
    clip_min: float,
    clip_max: float,
    statistics: tuple[Array, Array] | None = None,
) -> Array:
    """``clip(exp(d / beta), clip_min, clip_max)`` on response tokens, 0 elsewhere; (B, S) float32.

    Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177), token by token.

    Args:
      d_BS: from `td_errors` or `gae`.
      response_BS: bool.
      beta: temperature.
      clip_min, clip_max: bounds of a weight.
      statistics: mean and standard deviation that d is whitened with; None: not at all. With one response token
        or none in the batch there is nothing to compare, and every weight is 1.
    """
    if statistics is not None:
        mean, std = statistics
        d_BS = (d_BS - mean) / (std + _EPSILON)
    weights_BS = jnp.clip(jnp.exp(d_BS / beta), clip_min, clip_max)
    if statistics is not None:
        weights_BS = jnp.where(jnp.sum(response_BS) > 1, weights_BS, 1.0)
    return jnp.where(response_BS, weights_BS, 0.0)


def weigh(
    tokens: Tokens,
    state: Whitening,
    *,
    control: str | None = None,
    advantage: str = "td",
    terminal: str = "outcome",
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    whiten: bool = True,
    moving: bool = False,
    momentum: float = 0.1,
    warmup_steps: int = 10,
    beta: float = 0.9,
    clip_min: float = 0.1,
    clip_max: float = 5.0,
) -> tuple[Array, Whitening, Metrics]:
    """TD weights of a batch, at the places that predict the tokens: (B, S, n) float32.

    Args:
      tokens: with values as scores.
      state: moving averages; read before they are updated, whether they are used or not.
      control: `wmtp_jax.weighting.controls.CONTROLS`, or None.
      advantage: ``td`` or ``gae``.
      whiten, moving: with statistics of this batch, or with the moving averages.
      terminal, gamma, gae_lambda, momentum, warmup_steps, beta, clip_min, clip_max: of the functions above.
    """
    response_BS = tokens.response_BS
    batch = tokens.scores_BS, tokens.outcomes_BS, response_BS, tokens.segment_ids_BS
    if advantage == "gae":
        d_BS = gae(*batch, gamma=gamma, gae_lambda=gae_lambda)
    else:
        d_BS = td_errors(*batch, gamma=gamma, terminal=terminal)
    statistics = (state.mean, state.std) if moving else moments(d_BS, response_BS, ddof=1)
    weights_BS = td_weights(
        d_BS, response_BS, beta=beta, clip_min=clip_min, clip_max=clip_max, statistics=statistics if whiten else None
    )
    noise_BS = None if tokens.noise_BSn is None else tokens.noise_BSn[..., 0]
    weights_BS = replaced(control, weights_BS, response_BS, tokens.segment_ids_BS, noise_BS, clip_min, clip_max)
    mean, std = moments(d_BS, response_BS, ddof=0)
    clipped_BS = (weights_BS <= clip_min) | (weights_BS >= clip_max)
    metrics = {
        "train/td_error_mean": mean,
        "train/td_error_std": std,
        "train/weight_clipped_fraction": masked_mean(clipped_BS, response_BS),
        **weight_metrics(weights_BS, response_BS),
    }
    state = update_whitening(state, d_BS, response_BS, momentum=momentum, warmup_steps=warmup_steps)
    return at_targets(weights_BS, tokens.valid_BSn.shape[-1]), state, metrics
