"""The settings of a run, typed and checked. `wmtp_jax.settings_file` reads them.

`configs/README.md` is generated from the descriptions here and in `wmtp_jax.config_sampling` (``make schema``), and
so is the JSON schema that editors use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from wmtp_jax.config_sampling import DataSamplingSettings
from wmtp_jax.config_types import DType, FilePath, Fraction, Part, Seed
from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.lora import PROJECTIONS, LoRAConfig


class ExperimentSettings(Part):
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


class ModelSettings(Part):
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


class DatasetSettings(Part):
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


class TrainingSettings(Part):
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
        description="Updates in a row that may be skipped because a loss or gradient is not finite, or is a spike; one "
        "more stops the run.",
    )
    spike_sigma: float | None = Field(
        None,
        ge=1,
        description="Skip an update whose loss or gradient norm is more than this many standard deviations above the "
        "mean of the last `spike_window`; 6 is usual. null: no update is skipped for its size.",
    )
    spike_window: int = Field(
        128,
        ge=4,
        le=2**20,
        description="`spike_sigma`: updates that a new one is compared with; until half of them are there, none is a "
        "spike.",
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


class CriticSettings(Part):
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


class LoRASettings(Part):
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


class WeightingSettings(Part):
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


class CheckpointSettings(Part):
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
    save_every_minutes: float | None = Field(
        None,
        gt=0,
        description="Save (without validating) when so many minutes have passed since the last save, beside the rules "
        "above: what a machine that is lost without a warning costs at most. Of these the newest alone is kept.",
    )
    save_best: bool = Field(True, description="Keep the step with the lowest val/loss whatever its age.")
    save_total_limit: int | None = Field(
        3,
        ge=1,
        description="Newest validated checkpoints that are kept, beside the best and the newest of all. null: all.",
    )


class MeshSettings(Part):
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


class RuntimeSettings(Part):
    """What the run runs on."""

    seed: Seed = Field(42, description="Seed of random weights and of everything random in a step.")
    mesh: MeshSettings = Field(MeshSettings(), description="The device mesh.")
    compilation_cache: FilePath | None = Field(
        Path("storage/cache/xla"),
        description="Folder of compiled programs, so that a second start is quick. null: none.",
    )


class TrackingSettings(Part):
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
        if self.uri and without_credentials(self.uri) != self.uri:
            raise ValueError(
                "tracking.uri holds a user, a password or a query; put them into .env as MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or the whole address as MLFLOW_TRACKING_URI"
            )
        return self


def without_credentials(uri: str) -> str:
    """An address as it may stand in a file: without user, password and query. A password may hold any character."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.startswith(("sqlite", "file")):  # a path on this machine
        return uri
    return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2], maxsplit=1)[0]}"


class Settings(Part):
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
    mlflow_s3_endpoint_url: str | None = None
    aws_access_key_id: SecretStr | None = None
    aws_secret_access_key: SecretStr | None = None
    aws_default_region: str | None = None

    def exported(self) -> dict[str, str]:
        """What MLflow and boto3 look for in the environment, by the names they look for."""
        values = {name.upper(): value for name, value in self if value is not None and name != "mlflow_tracking_uri"}
        texts = {n: v.get_secret_value() if isinstance(v, SecretStr) else v for n, v in values.items()}
        return {name: text for name, text in texts.items() if text}


def read_environment() -> Environment:
    """The credentials. Raises UserError where ``.env`` is no text or holds something else."""
    try:
        return Environment()
    except (UnicodeDecodeError, ValidationError, OSError) as error:
        # Not the message: it may repeat what stands in the file.
        raise UserError(f".env: cannot be read ({type(error).__name__}); see .env.example") from None
