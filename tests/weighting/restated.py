"""The formulas of the weightings and losses once more: loops over documents in float64, none of the project's code.

Written from the formulas alone. A list has one entry a document; positions count from 0 inside the document.
"""

import math

import numpy as np
from weighting.documents import N_HEADS, Document


def response_span(document: Document) -> tuple[int, int]:
    """First and last response token, T."""
    places = [u for u in range(len(document.tokens)) if document.response[u]]
    return (places[0], places[-1]) if places else (0, -1)


def value_before(document: Document, u: int) -> float:
    """V[u-1]; before anything was read it is the neutral prior."""
    return float(document.values[u - 1]) if u > 0 else 0.5


def td_errors(document: Document, gamma: float = 1.0, terminal: str = "outcome") -> list[float]:
    d = [0.0] * len(document.tokens)
    first, last = response_span(document)
    for u in range(first, last + 1):
        if u < last:
            d[u] = gamma * float(document.values[u]) - value_before(document, u)
        elif terminal == "outcome":
            d[u] = float(document.outcomes[u]) - value_before(document, u)
        else:
            d[u] = float(document.outcomes[u]) - float(document.values[u])
    return d


def advantages(document: Document, gamma: float, lam: float) -> list[float]:
    """The marginal form, as the sum that its recursion stands for."""
    a = [0.0] * len(document.tokens)
    first, last = response_span(document)
    for u in range(first, last + 1):
        for v in range(u, last + 1):
            a[u] += (gamma * lam) ** (v - u) * (gamma * float(document.values[v]) - value_before(document, v))
    return a


def monte_carlo(document: Document) -> list[float]:
    return [
        float(r) - float(v) if inside else 0.0
        for r, v, inside in zip(document.outcomes, document.values, document.response, strict=True)
    ]


def over_response(documents: list[Document], d: list[list[float]]) -> list[float]:
    return [
        x for document, row in zip(documents, d, strict=True) for x, m in zip(row, document.response, strict=True) if m
    ]


def mean_and_std(documents: list[Document], d: list[list[float]], ddof: int) -> tuple[float, float]:
    flat = over_response(documents, d)
    mean = sum(flat) / len(flat)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - ddof))


def clipped_exponentials(
    documents: list[Document],
    d: list[list[float]],
    beta: float,
    low: float,
    high: float,
    statistics: tuple[float, float] | None,
) -> list[list[float]]:
    weights = []
    for document, row in zip(documents, d, strict=True):
        weights.append([0.0] * len(row))
        for u, x in enumerate(row):
            if document.response[u]:
                if statistics is not None:
                    x = (x - statistics[0]) / (statistics[1] + 1e-8)
                weights[-1][u] = min(max(math.exp(x / beta), low), high)
    return weights


def targets(documents: list[Document]) -> list[tuple[int, int, int, int]]:
    """Every (document, position t, head k, target u = t + k) that the loss counts."""
    return [
        (i, t, k, t + k)
        for i, document in enumerate(documents)
        for t in range(len(document.tokens))
        for k in range(1, N_HEADS + 1)
        if t + k < len(document.tokens) and document.response[t + k]
    ]


def cross_entropy(logits: np.ndarray, token: int) -> float:
    highest = max(logits)
    return math.log(sum(math.exp(x - highest) for x in logits)) + highest - logits[token]


def per_head(documents: list[Document], weights: list[list[float]]) -> list[np.ndarray]:
    """Weights of tokens as weights of targets."""
    out = [np.zeros((len(document.tokens), N_HEADS)) for document in documents]
    for i, t, k, u in targets(documents):
        out[i][t, k - 1] = weights[i][u]
    return out


def rho1(documents: list[Document], mode: str, k_percent: float) -> list[np.ndarray]:
    """``mode``: signed, absolute, difficult."""
    out = [np.zeros((len(document.tokens), N_HEADS)) for document in documents]
    for head in range(1, N_HEADS + 1):
        scores = {}
        for i, t, k, u in targets(documents):
            if k == head:
                reference = float(documents[i].reference_ce[u])
                excess = cross_entropy(documents[i].logits[t, k - 1].astype(float), documents[i].tokens[u]) - reference
                scores[i, t] = {"signed": excess, "absolute": abs(excess), "difficult": reference}[mode]
        ranked = sorted(scores.values())
        place = (1 - k_percent) * (len(ranked) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ranked) - 1)
        threshold = ranked[low] + (place - low) * (ranked[high] - ranked[low])
        for (i, t), score in scores.items():
            out[i][t, head - 1] = 1.0 if score >= threshold else 0.0
    return out


def rho1_soft(documents: list[Document], temperature: float) -> list[np.ndarray]:
    out = [np.zeros((len(document.tokens), N_HEADS)) for document in documents]
    for i, t, k, u in targets(documents):
        ce = cross_entropy(documents[i].logits[t, k - 1].astype(float), documents[i].tokens[u])
        out[i][t, k - 1] = math.exp((ce - float(documents[i].reference_ce[u])) / temperature)
    for head in range(N_HEADS):
        mean = sum(w[:, head].sum() for w in out) / sum(k == head + 1 for _, _, k, _ in targets(documents))
        for w in out:
            w[:, head] /= mean
    return out


def weighted_ce(documents: list[Document], logits: list[np.ndarray], weights: list[np.ndarray]) -> float:
    sums, counts = [0.0] * N_HEADS, [0] * N_HEADS
    for i, t, k, u in targets(documents):
        sums[k - 1] += weights[i][t, k - 1] * cross_entropy(logits[i][t, k - 1], documents[i].tokens[u])
        counts[k - 1] += 1
    means = [s / c for s, c in zip(sums, counts, strict=True) if c]
    return sum(means) / len(means)


def lambda_return(document: Document, lam: float, gamma: float) -> list[float]:
    g = [0.0] * len(document.tokens)
    first, last = response_span(document)
    for t in range(last, first - 1, -1):
        if t == last:
            g[t] = float(document.outcomes[t])
        else:
            g[t] = gamma * ((1 - lam) * float(document.values[t + 1]) + lam * g[t + 1])
    return g


def value_loss(documents: list[Document], values: list[np.ndarray], goals: list, delta: float | None) -> float:
    """Mean over documents of the mean over response tokens: squared errors, or Huber's with ``delta``.

    Huber's is divided by delta, as the golden value has it (PyTorch's smooth L1).
    """
    means = []
    for document, v, g in zip(documents, values, goals, strict=True):
        errors = []
        for t in range(len(v)):
            if document.response[t]:
                e = abs(v[t] - g[t])
                if delta is None:
                    errors.append(e * e)
                else:
                    errors.append(e * e / (2 * delta) if e <= delta else e - delta / 2)
        if errors:
            means.append(sum(errors) / len(errors))
    return sum(means) / len(means)


def pairwise(documents: list[Document], values: list[np.ndarray]) -> float:
    """Documents 0 and 1 are a pair, 2 and 3 the next one, the correct one first."""
    means = [v[document.response].mean() for document, v in zip(documents, values, strict=True)]
    losses = [math.log(1 + math.exp(means[i + 1] - means[i])) for i in range(0, len(means), 2)]
    return sum(losses) / len(losses)
