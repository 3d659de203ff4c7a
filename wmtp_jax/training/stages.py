"""The stages of training, as data. One step function and one loop serve them all."""

from dataclasses import dataclass
from typing import Literal

from wmtp_jax.errors import UserError


@dataclass(frozen=True)
class Stage:
    """What makes a stage different from the others.

    Attributes:
      name: as in ``--stage``.
      summary: one line for people.
      trains: the prediction heads (``tokens``) or the value head (``values``).
      samples: which solutions are used unless ``data_sampling.method`` says otherwise.
      schemes: weightings that may be chosen, the stage's own first; empty where tokens are not weighted.
      scorer: the model that scores the tokens: ``critic`` (values) or ``reference`` (cross-entropy).
      next_token_only: the model has one prediction head.
    """

    name: str
    summary: str
    trains: Literal["tokens", "values"] = "tokens"
    samples: Literal["correct", "balanced"] = "correct"
    schemes: tuple[str, ...] = ("uniform",)
    scorer: Literal["critic", "reference"] | None = None
    next_token_only: bool = False


STAGES = {
    stage.name: stage
    for stage in (
        Stage(name="baseline", summary="every token of a correct solution weighs the same"),
        Stage(
            name="critic",
            summary="a value head learns which prefixes lead to programs that pass their tests",
            trains="values",
            samples="balanced",
            schemes=(),
        ),
        Stage(
            name="verifiable",
            summary="tokens weigh by the critic's TD errors",
            samples="balanced",
            schemes=("td", "uniform", "random_matched", "shuffled"),
            scorer="critic",
        ),
        Stage(
            name="rho1",
            summary="tokens weigh by their excess loss over a reference model",
            schemes=("rho1", "uniform", "random_matched", "shuffled"),
            scorer="reference",
        ),
        Stage(
            name="reference",
            summary="next-token fine-tuning of the model that rho1 compares with",
            next_token_only=True,
        ),
    )
}


def find_stage(name: str) -> Stage:
    """The stage of that name. Raises UserError where there is none."""
    if name not in STAGES:
        raise UserError(f"--stage {name}: unknown stage; there is: {', '.join(STAGES)}")
    return STAGES[name]
