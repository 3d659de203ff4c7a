"""The order of a curriculum: shares of the bins by fraction of training done."""

import numpy as np
import pytest

from wmtp_jax.data.curriculum import curriculum_order
from wmtp_jax.data.sample import assign_bins


def test_curriculum_order():
    bins = assign_bins(np.array([1, 2, 3, 5, 6, 9, 0]), {"low": (1, 3), "medium": (4, 7), "high": (8, 11)})
    assert bins.tolist() == [0, 0, 0, 1, 1, 2, -1]
    phases = [(0.5, np.array([1.0, 0.0, 0.0])), (1.0, np.array([0.0, 0.5, 0.5]))]
    order = curriculum_order(bins, phases, n_steps=20, per_step=6, seed=0)
    assert set(order[:60]) == {0, 1, 2}
    assert set(order[60:]) == {3, 4, 5}
    assert all(set(order[i : i + 3]) == {0, 1, 2} for i in range(0, 60, 3))  # every unit once before any comes again
    late = curriculum_order(bins, [(1.0, np.array([0.25, 0.75, 0.0]))], n_steps=200, per_step=5, seed=0)
    assert (bins[late] == 1).mean() == pytest.approx(0.75, abs=0.05)
    empty = curriculum_order(np.array([1, 1]), phases, n_steps=4, per_step=1, seed=0)
    assert set(empty) == {0, 1}  # the bin that is due has nothing: the others fill in
