"""The architecture of a multi-token-prediction LLaMA, as one frozen record.

The same fields stand under ``model.architecture`` in a settings file and in ``config.json`` of a
model directory; `wmtp_jax.config` checks their types, this module what they mean together.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar


def _about(description: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with its meaning, which the settings reference shows."""
    return dataclasses.field(default=default, metadata={"description": description})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of the model of Gloeckle et al. 2024 (arXiv 2404.19737) in LLaMA form.

    What each field means stands with it.

    Raises:
      ValueError: naming the field that does not fit and what would.
    """

    dim: int = _about("model width D; a multiple of n_heads")
    n_layers: int = _about(
        "number of blocks, heads included (as Meta counts them): the trunk has n_layers - n_future_tokens "
        "blocks, and each prediction head is one more"
    )
    n_heads: int = _about("attention heads N")
    n_kv_heads: int = _about("key/value heads K of grouped-query attention; divides n_heads")
    vocab_size: int = _about("vocabulary V")
    ffn_dim: int = _about("inner width F of the SwiGLU feed-forward")
    n_future_tokens: int = _about(
        "prediction heads n; head k predicts the token k places ahead, 1 is an ordinary next-token LLaMA"
    )
    norm_eps: float = _about("epsilon of RMSNorm", 1e-5)
    rope_theta: float = _about("base of the rotary frequencies", 10000.0)

    # Read by pydantic where a settings file is checked: an unknown key is an error there too.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name} is {value!r}; it must be a number above 0")
        if self.dim % self.n_heads:
            raise ValueError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(f"dim / n_heads is {self.head_dim}; rotary positions pair elements, so it must be even")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.n_future_tokens >= self.n_layers:
            raise ValueError(
                f"n_layers {self.n_layers} counts the prediction heads too, so it must be above "
                f"n_future_tokens {self.n_future_tokens}"
            )

    @property
    def head_dim(self) -> int:
        """Width H of one attention head."""
        return self.dim // self.n_heads

    @property
    def n_trunk_layers(self) -> int:
        """Blocks that all prediction heads share."""
        return self.n_layers - self.n_future_tokens
