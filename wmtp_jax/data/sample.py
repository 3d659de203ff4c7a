"""Which examples are used: rows are drawn from the index of a split, the corpus is not read.

A draw depends on the index and the settings alone, so any number of processes draw the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from wmtp_jax.data.sample_report import BinReport, LeftOut, Method, SampleReport
from wmtp_jax.data.store import Split
from wmtp_jax.errors import UserError

Bins = dict[str, tuple[int, int]]  # first and last difficulty of each


class _Part(NamedTuple):
    """What is drawn at once: ``n`` (None: all) of ``units`` (N, 1) rows or (N, 2) pairs; ``what`` and ``where`` (the
    setting of ``n``) are for messages.
    """

    units: np.ndarray
    n: int | None
    what: str
    where: str


def draw_samples(
    split: Split,
    method: Method,
    n_samples: int | None,
    seed: int,
    setting: str,
    *,
    max_length: int,
    correct_ratio: float = 0.5,
    max_pairs_per_problem: int | None = None,
    length_bin_tokens: int | None = None,
    bins: Bins | None = None,
    weights: dict[str, float] | None = None,
) -> tuple[np.ndarray, SampleReport]:
    """Draws solutions without replacement.

    Args:
      split: whose index is drawn from.
      method: ``correct``: correct solutions alone. ``balanced``: ``round(n_samples * correct_ratio)`` correct ones, the
        rest incorrect, of problems that have both. ``pairs``: a correct and an incorrect one of the same problem, each
        solution in one pair at most; a problem makes as many as it can.
      n_samples: how many solutions, two a pair; None for all, or as many as ``correct_ratio`` allows.
      seed: same seed, index and settings, same draw.
      setting: where ``n_samples`` comes from, e.g. ``"data_sampling.n_samples"``.
      max_length: tokens of the longest solution that may be drawn, prompt included.
      correct_ratio: for ``balanced``.
      max_pairs_per_problem: for ``pairs``; None: no limit.
      length_bin_tokens: for ``pairs``: the responses of a pair have the same number of times so many tokens, rounded
        down; None: any lengths.
      bins: what is in none of them is not drawn; None: any difficulty.
      weights: share of each bin (needs ``bins`` and ``n_samples``), kept within each kind of solution, or among pairs,
        where the correct side's bin counts. A bin that runs short is filled up from the others. None: as they come.

    Returns:
      Row numbers, (N,) in ascending order or (pairs, 2): correct, incorrect; and what was drawn.

    Raises:
      UserError: there are none, fewer than asked for, or an odd number is asked for in pairs.
    """
    if method == "pairs" and n_samples is not None and n_samples % 2:
        raise UserError(f"{setting} is {n_samples}; it must be even, because two solutions make a pair")
    names = list(bins or ())
    row_bins = np.zeros(len(split), int) if bins is None else assign_bins(split.difficulty, bins)
    shares = None if weights is None else np.array([weights[name] for name in names], float)
    of_kind = split.is_correct if method == "correct" else np.ones(len(split), bool)
    usable, left_out = _find_usable(split, of_kind, max_length, row_bins, shares, both=method != "correct")
    correct, incorrect = np.flatnonzero(usable & split.is_correct), np.flatnonzero(usable & ~split.is_correct)
    rng = np.random.default_rng(seed)
    if method == "pairs":
        pairs, n_lost = _make_pairs(split, correct, incorrect, length_bin_tokens, max_pairs_per_problem, rng)
        left_out = replace(left_out, unpaired_by_length=2 * n_lost)
        what = f"pairs of a correct and an incorrect solution of the same problem in {split.path}"
        if length_bin_tokens is not None:
            what += f", of the same length (data_sampling.length_bin_tokens {length_bin_tokens})"
        if max_pairs_per_problem is not None:
            what += f", {max_pairs_per_problem} of a problem at most"
        parts = [_Part(pairs, None if n_samples is None else n_samples // 2, what, f"half of {setting}")]
    elif method == "balanced":
        parts = _balanced(split, correct, incorrect, n_samples, correct_ratio, setting)
    else:
        parts = [_Part(correct[:, None], n_samples, f"correct solutions in {split.path}", setting)]
    parts = [part._replace(what=part.what + _describe(left_out, max_length)) for part in parts]
    drawn, asked, filled = zip(*(_draw_part(part, row_bins, shares, names, rng) for part in parts), strict=True)
    units = np.concatenate(drawn)
    got = np.bincount(row_bins[units[:, 0]], minlength=len(names)) * units.shape[1]
    wanted, others = np.sum(asked, axis=0), np.sum(filled, axis=0)
    rows = units.reshape(-1)
    lengths, n_correct = split.lengths[rows], int(split.is_correct[rows].sum())
    report = SampleReport(
        method=method,
        candidates=int(of_kind.sum()),
        correct=n_correct,
        incorrect=len(rows) - n_correct,
        pairs=len(units) if method == "pairs" else 0,
        problems=len(np.unique(split.problem[rows])),
        tokens={
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "max": int(lengths.max()),
        },
        bins={
            name: BinReport(asked=None if shares is None else int(wanted[i]), got=int(got[i]), filled=int(others[i]))
            for i, name in enumerate(names)
        },
        left_out=left_out,
    )
    return (units if method == "pairs" else np.sort(rows)), report


def draw(
    candidates: np.ndarray, n_samples: int | None, seed: int | np.random.Generator, what: str, setting: str
) -> np.ndarray:
    """Draws without replacement.

    Args:
      candidates: numbers to draw from.
      n_samples: how many; None for all.
      seed: same seed and candidates, same draw.
      what: names the candidates in an error, e.g. ``"correct solutions in storage/.../train"``.
      setting: where ``n_samples`` comes from, e.g. ``"data_sampling.n_samples"``.

    Returns:
      Some of the candidates, in ascending order.

    Raises:
      UserError: there are none, or fewer than ``n_samples``.
    """
    if not len(candidates):
        raise UserError(f"there are no {what}; choose another data set or prepare it again")
    if n_samples is None:
        return np.sort(candidates)
    if n_samples > len(candidates):
        raise UserError(
            f"{setting} asks for {n_samples:,}, but there are {len(candidates):,} {what}; ask for as many or fewer"
        )
    return np.sort(np.random.default_rng(seed).choice(candidates, n_samples, replace=False))


def assign_bins(difficulty: np.ndarray, bins: Bins) -> np.ndarray:
    """Number of the bin of each difficulty, in the order of ``bins``; -1 for what is in none."""
    result = np.full(len(difficulty), -1)
    for number, (low, high) in enumerate(bins.values()):
        result[(difficulty >= low) & (difficulty <= high)] = number
    return result


def apportion(n: int, shares: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spreads ``n`` over bins by their shares.

    Args:
      n: how many in all, at most the sum of ``there``.
      shares: (bins,) weights, 0 or more.
      there: (bins,) how many each has; 0 where the share is 0.

    Returns:
      (bins,) the number asked of each, by largest remainders (the sum is ``n``, each within 1 of its share), and the
      number taken: as asked, or all there is; what is missing then is spread over the others by their shares.
    """
    asked = _spread(n, shares)
    taken = np.minimum(asked, there)
    while missing := n - int(taken.sum()):  # each time all that is missing is found, or another bin is used up
        spare = there - taken
        taken = taken + np.minimum(_spread(missing, np.where(spare > 0, shares, 0.0)), spare)
    return asked, taken


def _spread(n: int, shares: np.ndarray) -> np.ndarray:
    exact = shares / shares.max()
    exact = n * (exact / exact.sum())
    whole = np.floor(exact).astype(int)
    by_remainder = np.argsort(whole - exact, kind="stable")
    whole[by_remainder[: n - whole.sum()]] += 1
    return whole


def _draw_part(
    part: _Part, row_bins: np.ndarray, shares: np.ndarray | None, names: list[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The units drawn, in ascending order; solutions asked of each bin; those of them that other bins made up for."""
    bin_of = row_bins[part.units[:, 0]]
    if shares is None or part.n is None:
        chosen = draw(np.arange(len(bin_of)), part.n, rng, part.what, part.where)
        return part.units[chosen], np.zeros(len(names), int), np.zeros(len(names), int)
    members = [np.flatnonzero(bin_of == number) for number in range(len(names))]
    there = np.array([len(units) for units in members])
    if part.n > len(bin_of):
        listing = ", ".join(f"{name} {count:,}" for name, count in zip(names, there, strict=True))
        draw(np.arange(len(bin_of)), part.n, rng, f"{part.what}, all bins together ({listing})", part.where)  # raises
    asked, taken = apportion(part.n, shares, there)
    chosen = np.concatenate([rng.choice(units, n, replace=False) for units, n in zip(members, taken, strict=True)])
    per_unit = part.units.shape[1]
    return part.units[np.sort(chosen)], asked * per_unit, np.maximum(asked - taken, 0) * per_unit


def _find_usable(
    split: Split, of_kind: np.ndarray, max_length: int, row_bins: np.ndarray, shares: np.ndarray | None, *, both: bool
) -> tuple[np.ndarray, LeftOut]:
    """Which rows may be drawn, (N,) bool, and why others may not; ``both``: their problem must have both kinds."""
    if not of_kind.any():
        raise UserError(f"there are no correct solutions in {split.path}; choose another data set or prepare it again")
    usable = of_kind & (split.lengths <= max_length)
    n_short = int(usable.sum())
    left_out = LeftOut(int(of_kind.sum()) - n_short, 0, 0, 0)
    if not n_short:
        raise UserError(
            f"all {of_kind.sum():,} examples of {split.path} are longer than dataset.max_length {max_length} (the "
            f"shortest has {split.lengths[of_kind].min()} tokens); raise it"
        )
    difficulty = split.difficulty[usable]
    usable &= row_bins >= 0
    if shares is not None:
        usable &= shares[row_bins] > 0  # -1, in no bin, is out already
    left_out = replace(left_out, in_no_bin=n_short - int(usable.sum()))
    if not usable.any():
        raise UserError(
            f"no example of {split.path} has a difficulty in any bin that is drawn from (there are {difficulty.min()} "
            f"to {difficulty.max()}; 0 is unknown); change the bins of data_sampling.difficulty and "
            "data_sampling.curriculum, or leave these out"
        )
    if both:
        n_problems = split.n_problems
        kinds = [usable & split.is_correct, usable & ~split.is_correct]
        has = [np.bincount(split.problem[kind], minlength=n_problems) > 0 for kind in kinds]
        alone = has[0] != has[1]
        n_usable = int(usable.sum())
        usable &= ~alone[split.problem]
        left_out = replace(
            left_out, one_kind_only=n_usable - int(usable.sum()), one_kind_only_problems=int(alone.sum())
        )
        if not usable.any():
            raise UserError(
                f"no problem of {split.path} has both correct and incorrect solutions"
                f"{_describe(left_out, max_length)}; choose another data set or prepare it again"
            )
    return usable, left_out


def _describe(left_out: LeftOut, max_length: int) -> str:
    """Why candidates are fewer than one may think, for messages."""
    reasons = [
        (left_out.too_long, f"longer than dataset.max_length {max_length}"),
        (left_out.in_no_bin, "of a difficulty in no bin, or in one of weight 0"),
        (left_out.unpaired_by_length, "without a partner of their length"),
    ]
    named = ", ".join(f"{count:,} {reason}" for count, reason in reasons if count)
    return f" (left out: {named})" if named else ""


def _balanced(
    split: Split, correct: np.ndarray, incorrect: np.ndarray, n_samples: int | None, ratio: float, setting: str
) -> list[_Part]:
    if n_samples is None:
        n_samples = int(min(len(correct) / ratio, len(incorrect) / (1 - ratio)))
    n_correct = round(n_samples * ratio)
    which = f"in {split.path}, of problems with both kinds ({len(correct):,} correct, {len(incorrect):,} incorrect)"
    where = f"{setting} {n_samples:,} with data_sampling.correct_ratio {ratio:g}"
    kinds = ("correct", correct, n_correct), ("incorrect", incorrect, n_samples - n_correct)
    return [_Part(rows[:, None], n, f"{kind} solutions {which}", where) for kind, rows, n in kinds if n]


def _make_pairs(
    split: Split,
    correct: np.ndarray,
    incorrect: np.ndarray,
    length_bin_tokens: int | None,
    limit: int | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """As many pairs as there can be, (pairs, 2), by problem; and how many more there would be if lengths did not
    matter (with no ``limit`` of pairs a problem).
    """
    group = problem = split.problem
    if length_bin_tokens is not None:
        length_bin = ((split.lengths - split.n_prompt) // length_bin_tokens).astype(np.int64)
        group = np.unique(problem * (length_bin.max() + 1) + length_bin, return_inverse=True)[1]

    def count(group: np.ndarray) -> np.ndarray:
        n_groups = int(group.max()) + 1
        return np.minimum(*(np.bincount(group[rows], minlength=n_groups) for rows in (correct, incorrect)))

    possible = count(group)
    sides = []
    for rows in (correct, incorrect):
        rows = rng.permutation(rows)
        rows = rows[np.argsort(group[rows], kind="stable")]  # inside a group the order stays random
        sides.append(rows[_rank(group[rows]) < possible[group[rows]]])
    pairs = np.stack(sides, axis=1)
    n_lost = 0 if length_bin_tokens is None else int(count(problem).sum()) - len(pairs)
    if limit is not None:
        pairs = rng.permutation(pairs)  # of all groups of a problem
        pairs = pairs[np.argsort(problem[pairs[:, 0]], kind="stable")]
        pairs = pairs[_rank(problem[pairs[:, 0]]) < limit]
    return pairs, n_lost


def _rank(group: np.ndarray) -> np.ndarray:
    """For each element of an ascending array: how many before it are the same."""
    return np.arange(len(group)) - np.searchsorted(group, group)
