"""Which examples are used: rows are drawn from the index of a split, the corpus is not read."""

from __future__ import annotations

import numpy as np

from wmtp_jax.data.store import Split
from wmtp_jax.errors import UserError


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
            f"{setting} asks for {n_samples:,}, but there are {len(candidates):,} {what}; ask for as many or fewer "
            "(null: all)"
        )
    return np.sort(np.random.default_rng(seed).choice(candidates, n_samples, replace=False))


def draw_correct(
    split: Split, n_samples: int | None, seed: int, setting: str, usable: np.ndarray | None = None
) -> np.ndarray:
    """Correct solutions alone, as row numbers in ascending order.

    Args:
      split: whose index is drawn from.
      n_samples: how many, without replacement; None for all.
      seed: same seed and split, same draw.
      setting: where ``n_samples`` comes from, e.g. ``"data_sampling.n_samples"``.
      usable: bool, the rows that may be drawn; None: all.

    Raises:
      UserError: there are none, or fewer than ``n_samples``.
    """
    return draw(np.flatnonzero(_masked(split.is_correct, usable)), n_samples, seed, _what(split, True), setting)


def draw_balanced(
    split: Split,
    n_samples: int | None,
    seed: int,
    setting: str,
    usable: np.ndarray | None = None,
    *,
    correct_ratio: float = 0.5,
) -> np.ndarray:
    """``round(n_samples * correct_ratio)`` correct solutions and the rest incorrect ones, of the same problems.

    Args: as `draw_correct`; ``n_samples`` None takes as many as the ratio allows.

    Raises:
      UserError: there are not as many of a kind.
    """
    correct, incorrect = _of_problems_with_both(split, usable)
    if n_samples is None:
        n_samples = int(min(len(correct) / correct_ratio, len(incorrect) / (1 - correct_ratio)))
    n_correct = round(n_samples * correct_ratio)
    rng = np.random.default_rng(seed)
    parts = [
        draw(rows, count, rng, f"{_what(split, kind)}, of problems with both kinds", setting)
        for rows, count, kind in ((correct, n_correct, True), (incorrect, n_samples - n_correct, False))
        if count or not len(rows)
    ]
    return np.sort(np.concatenate(parts))


def draw_pairs(
    split: Split,
    n_samples: int | None,
    seed: int,
    setting: str,
    usable: np.ndarray | None = None,
    *,
    max_pairs_per_problem: int | None = None,
) -> np.ndarray:
    """Pairs of a correct and an incorrect solution of the same problem, each solution in one pair at most.

    Args: as `draw_correct`; ``n_samples`` counts solutions, two a pair.

    Returns:
      (pairs, 2) row numbers: correct, incorrect.

    Raises:
      UserError: there are none, fewer than asked for, or an odd number is asked for.
    """
    if n_samples is not None and n_samples % 2:
        raise UserError(f"{setting} is {n_samples}; it must be even, because two solutions make a pair")
    correct, incorrect = _of_problems_with_both(split, usable)
    rng = np.random.default_rng(seed)
    correct, incorrect = rng.permutation(correct), rng.permutation(incorrect)
    pairs = []
    of_correct, of_incorrect = split.problem[correct], split.problem[incorrect]
    # Stable: inside a problem the order stays random.
    correct, incorrect = (
        correct[np.argsort(of_correct, kind="stable")],
        incorrect[np.argsort(of_incorrect, kind="stable")],
    )
    problems = np.unique(of_correct)
    ends = (np.searchsorted(np.sort(rows), problems, side="right") for rows in (of_correct, of_incorrect))
    start_c = start_i = 0
    for end_c, end_i in zip(*ends, strict=True):
        count = min(end_c - start_c, end_i - start_i, max_pairs_per_problem or len(split))
        pairs.append(np.stack([correct[start_c : start_c + count], incorrect[start_i : start_i + count]], axis=1))
        start_c, start_i = end_c, end_i
    found = np.concatenate(pairs) if pairs else np.zeros((0, 2), int)
    what = f"pairs of a correct and an incorrect solution in {split.path}"
    return found[
        draw(np.arange(len(found)), None if n_samples is None else n_samples // 2, rng, what, f"half of {setting}")
    ]


def assign_bins(difficulty: np.ndarray, bins: dict[str, tuple[int, int]]) -> np.ndarray:
    """Number of the bin of each difficulty, in the order of ``bins``; -1 for what is in none."""
    result = np.full(len(difficulty), -1)
    for number, (low, high) in enumerate(bins.values()):
        result[(difficulty >= low) & (difficulty <= high)] = number
    return result


def curriculum_order(
    bins: np.ndarray, phases: list[tuple[float, np.ndarray]], n_steps: int, per_step: int, seed: int
) -> np.ndarray:
    """The units that each step reads, easy bins first.

    Args:
      bins: number of the bin of each unit (a row, or a pair of rows).
      phases: (fraction of training done at which it ends, weight of each bin).
      n_steps: updates of the whole training.
      per_step: units a step.
      seed: same seed, same order.

    Returns:
      (n_steps * per_step,) numbers of units. Each bin is read in random order, every unit once before any comes
      again. A bin without units is made up for by the others.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(bins == number) for number in range(len(phases[0][1]))]
    there = np.array([len(units) > 0 for units in members])
    steps = np.arange(n_steps)
    choices = np.empty(n_steps * per_step, int)
    start = 0
    for until, weights in phases:
        end = max(int(np.searchsorted(steps / n_steps, until)), start)
        weights = np.where(there, weights, 0.0)
        weights = weights if weights.sum() > 0 else there.astype(float)
        size = (end - start) * per_step
        choices[start * per_step : end * per_step] = rng.choice(len(members), size, p=weights / weights.sum())
        start = end
    order = np.empty(len(choices), int)
    for number, units in enumerate(members):
        places = np.flatnonzero(choices == number)
        passes = -(-len(places) // len(units)) if len(units) else 0
        shuffled = [rng.permutation(units) for _ in range(passes)]
        order[places] = np.concatenate(shuffled)[: len(places)] if shuffled else 0
    return order


def _masked(rows: np.ndarray, usable: np.ndarray | None) -> np.ndarray:
    return rows if usable is None else rows & usable


def _of_problems_with_both(split: Split, usable: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of correct and of incorrect solutions, of problems that have both."""
    n_problems = len(split.task_ids)
    both = np.ones(n_problems, bool)
    for kind in (True, False):
        both &= np.bincount(split.problem[split.is_correct == kind], minlength=n_problems) > 0
    rows = _masked(both[split.problem], usable)
    if not rows.any():
        raise UserError(
            f"no problem of {split.path} has both correct and incorrect solutions"
            f"{'' if usable is None else ' and a difficulty in a bin'}; choose another data set or prepare it again"
        )
    return np.flatnonzero(rows & split.is_correct), np.flatnonzero(rows & ~split.is_correct)


def _what(split: Split, correct: bool) -> str:
    return f"{'correct' if correct else 'incorrect'} solutions in {split.path}"
