"""The settings `data_sampling`: which examples a run has, and when it reads them."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from wmtp_jax.config_types import Part, Seed


def _apart(bins: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    ranges = sorted(bins.values())
    if any(low > high for low, high in ranges) or any(
        before[1] >= after[0] for before, after in itertools.pairwise(ranges)
    ):
        raise ValueError("bins must be [first, last] ranges that do not overlap")
    return bins


def _check_weights(weights: dict[str, float], bins: dict[str, tuple[int, int]], what: str) -> None:
    """Raises ValueError where the weights are not those of the bins; ``what`` names them, e.g. ``the phase ...``."""
    if set(weights) != set(bins):
        named = ", ".join(sorted(weights))
        raise ValueError(f"{what} has weights for {named}; each bin needs one: {', '.join(sorted(bins))}")
    if not any(weights.values()):
        raise ValueError(f"{what} has no weight above 0")


# Of the source's difficulty: first and last value of each bin.
Bins = Annotated[
    dict[str, Annotated[tuple[int, int], Field(strict=False)]], Field(min_length=1), AfterValidator(_apart)
]
Weights = dict[str, Annotated[float, Field(ge=0)]]
_BINS = {"low": (1, 3), "medium": (4, 7), "high": (8, 11)}


class DifficultySettings(Part):
    """How the examples are spread over difficulties."""

    bins: Bins = Field(
        _BINS, description="Bins of the source's difficulty, first and last value. What is in no bin is not drawn."
    )
    weights: Weights = Field(
        description="Share of each bin in `n_samples`; rescaled to sum to 1. A bin of weight 0 is not drawn from."
    )

    @model_validator(mode="after")
    def _fits(self) -> DifficultySettings:
        _check_weights(self.weights, self.bins, "data_sampling.difficulty")
        return self


class CurriculumPhase(Part):
    """A part of training and how often each bin of difficulty is drawn in it."""

    until: float = Field(gt=0, le=1, description="Fraction of training done at which the phase ends.")
    weights: Weights = Field(description="Share of each bin in the rows that are read; rescaled to sum to 1.")


class CurriculumSettings(Part):
    """Easy problems first: which difficulties are drawn, by fraction of training done."""

    bins: Bins = Field(
        _BINS,
        description="Bins of the source's difficulty, first and last value. What is in no bin is left out. With "
        "`data_sampling.difficulty`: its bins.",
    )
    phases: tuple[CurriculumPhase, ...] = Field(
        (
            CurriculumPhase(until=0.3, weights={"low": 0.7, "medium": 0.3, "high": 0.0}),
            CurriculumPhase(until=0.7, weights={"low": 0.3, "medium": 0.6, "high": 0.1}),
            CurriculumPhase(until=1.0, weights={"low": 0.1, "medium": 0.5, "high": 0.4}),
        ),
        strict=False,
        min_length=1,
        description="Phases in order; the last one ends at 1.",
    )

    @model_validator(mode="after")
    def _fits(self) -> CurriculumSettings:
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError("data_sampling.curriculum.phases must have rising `until`, the last one 1.0")
        for phase in self.phases:
            _check_weights(phase.weights, self.bins, f"data_sampling.curriculum: the phase until {phase.until}")
        return self


class DataSamplingSettings(Part):
    """Which examples are used."""

    n_samples: int | None = Field(
        None, ge=1, description="Training examples, drawn without replacement. null: all there are."
    )
    method: Literal["correct", "balanced", "pairs"] | None = Field(
        None,
        description="`correct`: correct solutions alone. `balanced`: correct and incorrect ones of the same problems. "
        "`pairs`: a correct and an incorrect one of the same problem, each solution once. null: what the stage needs "
        "(`correct` for baseline, rho1 and reference; `balanced` for critic and verifiable; `pairs` for a pairwise "
        "critic).",
    )
    correct_ratio: float = Field(0.5, gt=0, lt=1, description="`balanced`: share of correct solutions.")
    max_pairs_per_problem: int | None = Field(None, ge=1, description="`pairs`: at most so many of one problem.")
    length_balanced: bool = Field(
        False,
        description="`pairs`: only two solutions of about the same length (the same bin of `length_bin_tokens`) make "
        "a pair, so that a critic cannot win by length.",
    )
    length_bin_tokens: int = Field(
        64, ge=1, description="`length_balanced`: width of a bin, in tokens of the response (end of sequence included)."
    )
    difficulty: DifficultySettings | None = Field(
        None,
        description="Shares of difficulties in `n_samples`, which must be set: `bins` (default: low 1-3, medium 4-7, "
        "high 8-11) and the `weights` of the bins, such as `{weights: {low: 0.3, medium: 0.5, high: 0.2}}`. Each kind "
        "of solution, or the pairs, are drawn in these shares; a bin that runs short is filled up from the others, "
        "which the table at the start and `samples.json` tell. Examples in no bin are not drawn. null: as they come.",
    )
    curriculum: CurriculumSettings | None = Field(
        None,
        description="Easy problems first: `bins` of difficulty, and the `weights` of the bins in each of the `phases`. "
        "`{}` takes the defaults: low 1-3, medium 4-7, high 8-11; until 0.3 of the run .7/.3/0, until 0.7 .3/.6/.1, "
        "then .1/.5/.4. Examples in no bin are not drawn. `difficulty` says which examples a run has, `curriculum` "
        "when it reads them: where both are set, their bins are the same. null: any order.",
    )
    n_validation_samples: int | None = Field(
        None, ge=1, description="Examples of the split `valid` that val/* is computed on. null: all."
    )
    seed: Seed = Field(42, description="Seed of the draw, of which examples share a row, and of the order of rows.")

    @model_validator(mode="after")
    def _fits(self) -> DataSamplingSettings:
        difficulty, curriculum = self.difficulty, self.curriculum
        if difficulty is None:
            return self
        if self.n_samples is None:
            raise ValueError(
                "data_sampling.difficulty gives shares of data_sampling.n_samples, which is null; set it, or leave "
                "data_sampling.difficulty out"
            )
        if curriculum is None:
            return self
        if difficulty.bins != curriculum.bins:
            raise ValueError(
                "data_sampling.difficulty.bins and data_sampling.curriculum.bins differ; where both are set, they must "
                f"be the same: {_ranges(difficulty.bins)} and {_ranges(curriculum.bins)}"
            )
        for name, weight in difficulty.weights.items():
            if not weight and any(phase.weights[name] for phase in curriculum.phases):
                raise ValueError(
                    f"data_sampling.difficulty.weights.{name} is 0, so no such example is drawn, but a phase of "
                    "data_sampling.curriculum reads some; raise the one or set the other to 0"
                )
        return self


def _ranges(bins: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {low}-{high}" for name, (low, high) in bins.items())
