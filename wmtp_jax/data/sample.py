"""Which examples are used: rows are drawn from the index, the corpus is not read."""

import numpy as np

from wmtp_jax.errors import UserError


def draw(candidates: np.ndarray, n_samples: int | None, seed: int, what: str, setting: str) -> np.ndarray:
    """Draws rows without replacement.

    Args:
      candidates: row numbers to draw from.
      n_samples: how many; None for all.
      seed: same seed and candidates, same draw.
      what: names the candidates in an error, e.g. ``"correct solutions in storage/.../train"``.
      setting: where ``n_samples`` comes from, e.g. ``"data_sampling.n_samples"``.

    Returns:
      Row numbers in ascending order.

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
