"""The stages of training, as data. One step function and one loop serve them all."""

from collections.abc import Callable
from dataclasses import dataclass

from jax import Array

from wmtp_jax.weighting.uniform import uniform_weights


@dataclass(frozen=True)
class Stage:
    """What makes a stage different from the others.

    Attributes:
      name: as in ``--stage``.
      summary: one line for people.
      correct_only: train on correct solutions alone.
      weights: ``(token losses, valid targets) -> weights``, all (B, S, n).
    """

    name: str
    summary: str
    correct_only: bool
    weights: Callable[[Array, Array], Array]


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="baseline",
            summary="every token of a correct solution weighs the same",
            correct_only=True,
            weights=uniform_weights,
        ),
    )
}
