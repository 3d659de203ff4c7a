"""The settings of a run, typed and checked. `wmtp_jax.settings_file` reads them.

`configs/README.md` is generated from the descriptions here (``make schema``), and so is the JSON
schema that editors use.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import PROJECTIONS, LoRAConfig


def _without_zero_byte(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path has no zero byte in it")
    return path


DType = Literal["float32", "bfloat16"]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_without_zero_byte)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ExperimentSettings(_Part):
    """What the run is called."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Run name in MLflow, and the last folder of the default run directory.",
    )
    description: str = Field("", description="Free text, logged with the run.")
    critic_checkpoint: FilePath | None = Field(
        None,
        description="Stage `verifiable`: the critic, a `critic` run (its best step; `@latest`, `@<step>`) or a model "
        "directory with a value head.",
    )
    reference_model: FilePath | None = Field(
        None, description="Stage `rho1`: the reference, a `reference` run or a model directory."
    )


class ModelSettings(_Part):
    """Which model is trained."""

    # Strict mode would refuse the mapping that becomes a `ModelConfig`.
    model_config = ConfigDict(strict=False)

    path: FilePath | None = Field(
        None,
        description="Model to start from: a model directory, a run directory (`@latest`, `@<step>`), or a "
        "PyTorch checkpoint (Meta's layout, LLaMA). Without it, training starts from random weights of `architecture`.",
    )
    architecture: ModelConfig | None = Field(
        None,
        description="Shapes of the model. With `path`: what the model is expected to be; a difference is an "
        "error, and `--dry-run` can count before the model is there.",
    )
    tokenizer: FilePath | None = Field(
        None,
        description="Tokenizer directory. Default: the one beside the model, else the data set's. It must be the one "
        "that the data set was prepared with.",
    )
    param_dtype: DType = Field(
        "float32",
        description="Type the weights are kept and updated in. Adapters are float32, and so is a value head that is "
        "trained beside frozen weights.",
    )
    compute_dtype: DType = Field(
        "bfloat16", description="Type of matrix products. Norms, softmax, losses and sums are float32."
    )
    attention: Literal["auto", "xla", "cudnn", "pallas"] = Field(
        "auto",
        description="Kernel of attention. `cudnn` and `pallas` are flash attention on NVIDIA GPUs, `xla` runs "
        "everywhere and holds all scores. `auto`: `cudnn` where a row is one document, `pallas` where it is several "
        "or in float32, `xla` elsewhere.",
    )

    @model_validator(mode="after")
    def _something_to_train(self) -> ModelSettings:
        if self.path is None and self.architecture is None:
            raise ValueError("give model.path (weights to start from) or model.architecture (random weights)")
        return self


class DatasetSettings(_Part):
    """Where the examples are and how they become rows of tokens."""

    path: FilePath = Field(description="Processed data set, as `python -m wmtp_jax.prepare` writes it.")
    max_length: int = Field(
        2048, ge=8, le=2**20, description="Tokens in a row. A longer example is left out and counted, never cut."
    )
    packing: bool = Field(
        True,
        description="Lay several examples into one row (attention, positions and targets stay inside each). "
        "Off: one example a row, the rest of it padding.",
    )


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


class DifficultySettings(_Part):
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


class CurriculumPhase(_Part):
    """A part of training and how often each bin of difficulty is drawn in it."""

    until: float = Field(gt=0, le=1, description="Fraction of training done at which the phase ends.")
    weights: Weights = Field(description="Share of each bin in the rows that are read; rescaled to sum to 1.")


class CurriculumSettings(_Part):
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


class DataSamplingSettings(_Part):
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


class TrainingSettings(_Part):
    """How long, how fast, in what portions."""

    batch_size: int = Field(ge=1, le=2**20, description="Rows a device reads at once.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=2**20, description="Batches summed into one update; the result equals one large batch."
    )
    n_epochs: float = Field(
        gt=0, le=1e6, description="Passes over the rows, fractions allowed; the learning-rate schedule spans them."
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Stop after this many updates, earlier than `n_epochs`. The schedule stays as it was, so "
        "a later run with a larger value continues exactly.",
    )
    train: Literal["full", "lora", "head"] | None = Field(
        None,
        description="What is trained. `full`: all that the losses depend on. `lora`: adapters (settings `lora`), and "
        "the value head where the stage has one. `head`: the value head alone, stage `critic` only. null: `head` for "
        "stage `critic`, `full` for the others.",
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate of AdamW.")
    warmup_ratio: Fraction = Field(0.03, description="Part of all updates with linearly rising rate.")
    min_lr_ratio: Fraction = Field(0.1, description="Cosine decay ends at this part of the peak.")
    adam_b1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    adam_b2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment.")
    adam_eps: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled decay; norm scales have none.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this global norm.")
    max_skipped_steps: int = Field(
        5,
        ge=0,
        description="Updates in a row that may be skipped because a loss or gradient is not finite; one more stops "
        "the run.",
    )
    remat: Literal["none", "dots", "attention", "full"] = Field(
        "none",
        description="What the backward pass computes again instead of keeping it, from most memory to least: `none`; "
        "`dots`, all but matrix products and attention; `attention`, all but attention; `full`, whole blocks (about a "
        "third more compute). `python -m wmtp_jax.plan` says what fits.",
    )
    unroll_layers: bool = Field(
        False, description="Compile every block by itself: faster steps on a CPU, longer compilation."
    )
    moments_dtype: DType = Field("float32", description="Type AdamW's two moments are kept in.")
    offload_optimizer: bool = Field(
        False, description="Keep AdamW's moments in the host's memory, and fetch them for each update (GPU)."
    )

    @field_validator("remat", mode="before")
    @classmethod
    def _older(cls, value: object) -> object:
        return {True: "full", False: "none"}[value] if isinstance(value, bool) else value  # runs of older versions


class CriticSettings(_Part):
    """The value head: its form and its loss (stages `critic` and `verifiable`)."""

    value_head: Literal["linear", "sigmoid", "mlp"] = Field(
        "linear", description="Form of a new value head; one that the model or the critic brings is kept as it is."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout in the hidden layers of `mlp`; drawn for each micro-batch."
    )
    bias_init: float = Field(0.0, description="Bias of a new value head (before the sigmoid, where there is one).")
    loss_type: Literal["mse", "huber", "lambda_return", "pairwise"] = Field(
        "mse", description="What the values are fitted to; `docs/objectives.md` has the formulas."
    )
    huber_delta: float = Field(0.5, gt=0, description="`huber` and `lambda_return`: errors above it count linearly.")
    gamma: float = Field(1.0, ge=0, le=1, description="`lambda_return`: discount a token.")
    lambda_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="`lambda_return`: how lambda goes from `lambda_start` to `lambda_end`."
    )
    lambda_start: Fraction = Field(0.95, description="`lambda_return`: lambda at the beginning.")
    lambda_end: Fraction = Field(0.95, description="`lambda_return`: lambda of the last update.")
    lambda_hold: Fraction = Field(0.0, description="`lambda_return`: part of the run before lambda begins to change.")
    include_prompt: bool = Field(False, description="Prompt tokens count too (the older form).")
    head_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the value head. null: `training.learning_rate`."
    )


class LoRASettings(_Part):
    """Low-rank adapters (`training.train: lora`); what they stand beside is frozen."""

    rank: int = Field(64, ge=1, description="Inner width of an adapter.")
    alpha: float = Field(128.0, gt=0, description="An adapter's product is multiplied by alpha / rank.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout on an adapter's input; drawn for each micro-batch, in training only."
    )
    targets: tuple[str, ...] = Field(
        PROJECTIONS,
        strict=False,
        min_length=1,
        description="Projections that are adapted: regular expressions, searched in dotted names like "
        "`trunk.attention.wq`, `heads.feed_forward.w2`, `output`. The default is all seven of every block.",
    )

    @model_validator(mode="after")
    def _patterns(self) -> LoRASettings:
        self.record()
        return self

    def record(self) -> LoRAConfig:
        """As the model has it."""
        return LoRAConfig(rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets)


class WeightingSettings(_Part):
    """How much each token counts (stages `verifiable` and `rho1`)."""

    scheme: Literal["uniform", "td", "rho1", "random_matched", "shuffled"] | None = Field(
        None,
        description="null: the stage's own (`td` for verifiable, `rho1` for rho1). `uniform` and the controls: the "
        "same stage with weights of 1, random weights of the same mean and spread, or its own in another order.",
    )
    normalize: Literal["valid", "weights"] | None = Field(
        None,
        description="A head's loss is divided by its number of targets (`valid`) or by the sum of their weights. "
        "null: `weights` for stage rho1, else `valid`.",
    )
    critic: Literal["joint", "frozen"] = Field(
        "joint",
        description="`joint`: the value head shares the policy's trunk and goes on learning. `frozen`: the critic is a "
        "model of its own that only scores.",
    )
    value_coef: float = Field(0.5, ge=0, description="`joint`: weight of the value loss.")
    advantage: Literal["td", "gae"] = Field("td", description="TD errors, or their discounted sums.")
    terminal: Literal["outcome", "reference"] = Field(
        "outcome", description="TD error of the last token: R - V[T-1], or R - V[T] as in the PyTorch system."
    )
    gamma: float = Field(1.0, ge=0, le=1, description="Discount a token.")
    gae_lambda: Fraction = Field(0.95, description="`gae`: lambda; 1 with gamma 1 is R - V[u].")
    whiten: bool = Field(True, description="Subtract the mean and divide by the standard deviation first.")
    whiten_statistics: Literal["batch", "moving"] = Field(
        "batch", description="Of the global batch, or moving averages that are part of the checkpoint."
    )
    whiten_momentum: float = Field(0.1, gt=0, le=1, description="`moving`: share of the new batch.")
    whiten_warmup_steps: int = Field(10, ge=0, description="`moving`: updates before the momentum is constant.")
    beta: float = Field(0.9, gt=0, description="Temperature: weight = exp(d / beta).")
    weight_clip_min: float = Field(0.1, ge=0, description="Smallest weight.")
    weight_clip_max: float = Field(5.0, gt=0, description="Largest weight.")
    mode: Literal["signed", "absolute", "difficult"] = Field(
        "signed", description="Rho-1 chooses by excess loss, by its size, or by the reference's loss alone."
    )
    selection: Literal["hard", "soft"] = Field("hard", description="Rho-1: weights 0 and 1, or a softmax.")
    k_percent: float = Field(0.6, gt=0, le=1, description="Rho-1, `hard`: share of targets that is kept.")
    temperature: float = Field(1.0, gt=0, description="Rho-1, `soft`: of the softmax.")
    scores: FilePath | None = Field(
        None,
        description="File of `python -m wmtp_jax.score`: the frozen model's scores, made once. null: that model "
        "scores every batch anew.",
    )

    @model_validator(mode="after")
    def _clip(self) -> WeightingSettings:
        if self.weight_clip_min > self.weight_clip_max:
            raise ValueError("weighting.weight_clip_min is above weighting.weight_clip_max")
        return self


class CheckpointSettings(_Part):
    """What is kept of a run."""

    save_dir: FilePath | None = Field(
        None, description="The run directory. Default: storage/checkpoints/<stage>/<experiment.name>."
    )
    save_checkpoint_every: float | None = Field(
        1.0,
        gt=0,
        description="Validate and save every so many epochs, fractions allowed. null: not by epochs.",
    )
    save_every_steps: int | None = Field(
        None,
        ge=1,
        description="Validate and save every so many updates; takes the place of the epochs' rule.",
    )
    save_best: bool = Field(True, description="Keep the step with the lowest val/loss whatever its age.")
    save_total_limit: int | None = Field(
        3, ge=1, description="Newest checkpoints that are kept, beside the best. null: all."
    )


class MeshSettings(_Part):
    """Sizes of the device mesh; -1 stands for the rest of the devices, on one axis at most."""

    data: int = Field(-1, ge=-1, description="Copies of the model, each reading other rows.")
    fsdp: int = Field(1, ge=-1, description="Devices that share parameters and optimizer state, and rows.")
    tensor: int = Field(1, ge=-1, description="Devices that share each matrix product.")

    @model_validator(mode="after")
    def _sizes(self) -> MeshSettings:
        if 0 in self.shape or self.shape.count(-1) > 1:
            raise ValueError("runtime.mesh sizes are 1 or more; -1 (the rest) may stand on one axis only")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor


class RuntimeSettings(_Part):
    """What the run runs on."""

    seed: Seed = Field(42, description="Seed of random weights and of everything random in a step.")
    mesh: MeshSettings = Field(MeshSettings(), description="The device mesh.")
    compilation_cache: FilePath | None = Field(
        Path("storage/cache/xla"),
        description="Folder of compiled programs, so that a second start is quick. null: none.",
    )


class TrackingSettings(_Part):
    """Where metrics go beside metrics.jsonl."""

    mlflow: bool = Field(True, description="Log the run to MLflow.")
    uri: str | None = Field(
        None,
        description="MLflow server. Default: MLFLOW_TRACKING_URI of the environment or .env, else a SQLite "
        "file in the run directory. User and password go into .env, never here.",
    )
    experiment: str = Field("weighted-mtp/production", min_length=1, description="MLflow experiment.")
    log_every_steps: int = Field(1, ge=1, description="Updates between two records of train/* metrics.")

    @model_validator(mode="after")
    def _no_secret(self) -> TrackingSettings:
        if self.uri and "@" in self.uri.split("?")[0]:
            raise ValueError(
                "tracking.uri holds a user or password; put them into .env as MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return self


class Settings(_Part):
    """All settings of a training run."""

    experiment: ExperimentSettings
    model: ModelSettings
    dataset: DatasetSettings
    data_sampling: DataSamplingSettings = DataSamplingSettings()
    training: TrainingSettings
    critic: CriticSettings = CriticSettings()
    lora: LoRASettings = LoRASettings()
    weighting: WeightingSettings = WeightingSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    tracking: TrackingSettings = TrackingSettings()


class Environment(BaseSettings):
    """Credentials and addresses, from the environment or from ``.env`` in the current folder."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    mlflow_tracking_uri: str | None = None
    mlflow_tracking_username: SecretStr | None = None
    mlflow_tracking_password: SecretStr | None = None


def read_environment() -> Environment:
    """The credentials. Raises UserError where ``.env`` is no text or holds something else."""
    try:
        return Environment()
    except (UnicodeDecodeError, ValidationError, OSError) as error:
        # Not the message: it may repeat what stands in the file.
        raise UserError(f".env: cannot be read ({type(error).__name__}); see .env.example") from None
