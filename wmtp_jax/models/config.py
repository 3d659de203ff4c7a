"""The architecture of a multi-token-prediction LLaMA, as one frozen record.

The same fields stand under ``model.architecture`` in a settings file and in ``config.json`` of a
model directory; `wmtp_jax.config` checks their types, this module what they mean together.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

VALUE_HEADS = ("linear", "sigmoid", "mlp")


def _about(description: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with its meaning, which the settings reference shows."""
    return dataclasses.field(default=default, metadata={"description": description})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for texts longer than those of pre-training.

    ``linear`` divides every frequency by ``factor``; ``llama3`` leaves short wavelengths alone, divides long
    ones, and blends between (Llama 3.1, as in Hugging Face's ``rope_scaling``).
    """

    rope_type: str = _about("`llama3` or `linear`")
    factor: float = _about("what long wavelengths are multiplied by")
    low_freq_factor: float = _about("llama3: wavelengths above original length / this are stretched fully", 1.0)
    high_freq_factor: float = _about("llama3: wavelengths below original length / this are left alone", 4.0)
    original_max_position_embeddings: int = _about("llama3: length of the texts of pre-training, tokens", 8192)

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.rope_type not in ("llama3", "linear"):
            raise ValueError(f"rope_scaling.rope_type is {self.rope_type!r}; it must be llama3 or linear")
        for field in dataclasses.fields(self)[1:]:
            _positive(f"rope_scaling.{field.name}", getattr(self, field.name))
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("rope_scaling.high_freq_factor must be above low_freq_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of the model of Gloeckle et al. 2024 (arXiv 2404.19737) in LLaMA form.

    What each field means stands with it.

    Raises:
      ValueError: naming the field that does not fit and what would.
    """

    dim: int = _about("model width D; a multiple of n_heads unless head_dim is given")
    n_layers: int = _about(
        "number of blocks, heads included (as Meta counts them): the trunk has n_layers - n_future_tokens "
        "blocks, and each prediction head is one more"
    )
    n_heads: int = _about("attention heads N")
    n_kv_heads: int = _about("key/value heads K of grouped-query attention; divides n_heads")
    vocab_size: int = _about("vocabulary V")
    ffn_dim: int = _about("inner width F of the SwiGLU feed-forward")
    n_future_tokens: int = _about(
        "prediction heads n; head k predicts the token k places ahead, 1 is an ordinary next-token LLaMA; "
        "0 only with a value head: a model that gives values and no tokens"
    )
    norm_eps: float = _about("epsilon of RMSNorm", 1e-5)
    rope_theta: float = _about("base of the rotary frequencies", 10000.0)
    rope_scaling: RopeScaling | None = _about("stretching of the rotary frequencies", None)
    head_dim: int = _about("width H of one attention head; 0 stands for dim / n_heads", 0)
    tie_embeddings: bool = _about("the output matrix is the token embedding, transposed", False)
    value_head: str | None = _about(
        "`linear`, `sigmoid` or `mlp`: one value a position, read off the normed trunk output", None
    )

    # Read by pydantic where a settings file is checked: an unknown key is an error there too.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "ffn_dim"):
            _whole(name, getattr(self, name))
        for name in ("norm_eps", "rope_theta"):
            _positive(name, getattr(self, name))
        _whole("n_future_tokens", self.n_future_tokens, low=0)
        if isinstance(self.rope_scaling, dict):  # as it stands in a JSON file
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        if self.value_head not in (None, *VALUE_HEADS):
            raise ValueError(f"value_head is {self.value_head!r}; it must be null, {', '.join(VALUE_HEADS)}")
        if self.n_future_tokens == 0 and self.value_head is None:
            raise ValueError("n_future_tokens is 0; it must be 1 or more (0 only with a value head)")
        _whole("head_dim", self.head_dim, low=0)
        if self.head_dim * self.n_heads == self.dim:  # one way to say the same: equal models compare equal
            object.__setattr__(self, "head_dim", 0)
        if not self.head_dim and self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}; or give head_dim")
        if self.head_width % 2:
            raise ValueError(f"head_dim is {self.head_width}; rotary positions pair elements, so it must be even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.n_future_tokens > self.n_layers:
            raise ValueError(
                f"n_layers {self.n_layers} counts the prediction heads too, so it must be at least "
                f"n_future_tokens {self.n_future_tokens}"
            )

    @property
    def head_width(self) -> int:
        """Width H of one attention head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def n_trunk_layers(self) -> int:
        """Blocks that all prediction heads share."""
        return self.n_layers - self.n_future_tokens


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def _whole(name: str, value: Any, low: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 2**31:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of {low} or more, below 2**31")
