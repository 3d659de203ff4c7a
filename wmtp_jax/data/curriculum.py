"""In which order a run reads its examples: easy ones first."""

from __future__ import annotations

import numpy as np


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
