"""Value heads: one number a position, how likely the prefix leads to a program that passes its tests.

They read the trunk's output after the final norm, compute in float32, and start at a constant: a critic that
knows nothing says the same of every prefix. Shapes in names: B batch, S sequence, D width.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class ValueHead(nnx.Module):
    """``linear`` (D -> 1), ``sigmoid`` (linear, squashed into (0, 1)) or ``mlp`` (D -> D/4 -> D/8 -> 1, GELU).

    Args:
      kind: one of `VALUE_HEADS` of `wmtp_jax.models.config`.
      dim: D.
      rngs: seeds of the hidden layers of ``mlp``; the last layer starts at zero.
    """

    def __init__(self, kind: str, dim: int, *, rngs: nnx.Rngs):
        self.kind = kind
        dtypes: dict[str, Any] = {"rngs": rngs, "dtype": jnp.float32, "param_dtype": jnp.float32}
        widths = [dim, max(dim // 4, 1), max(dim // 8, 1)] if kind == "mlp" else [dim]
        self.hidden1 = nnx.Linear(widths[0], widths[1], **dtypes) if kind == "mlp" else None
        self.hidden2 = nnx.Linear(widths[1], widths[2], **dtypes) if kind == "mlp" else None
        last = nnx.Linear(widths[-1], 1, kernel_init=nnx.initializers.zeros, **dtypes)
        self.kernel, self.bias = last.kernel, last.bias

    def __call__(self, hidden_BSD: Array, dropout: float = 0.0, key: Array | None = None) -> Array:
        """Values (B, S) float32.

        Args:
          hidden_BSD: normed trunk output.
          dropout: part of the hidden units of ``mlp`` that is left out in training.
          key: of the dropout; None: nothing is left out.
        """
        x = hidden_BSD.astype(jnp.float32)
        for number, layer in enumerate((self.hidden1, self.hidden2)):
            if layer is not None:
                x = nnx.gelu(layer(x))
                if key is not None and dropout > 0:
                    kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - dropout, x.shape)
                    x = jnp.where(kept, x / (1.0 - dropout), 0.0)
        bias = cast(nnx.Param, self.bias)[...].astype(jnp.float32)
        values_BS = jnp.einsum("bsd,do->bso", x, self.kernel[...].astype(jnp.float32))[..., 0] + bias[0]
        return jax.nn.sigmoid(values_BS) if self.kind == "sigmoid" else values_BS


def with_bias(params: Any, bias: float) -> Any:
    """The parameters of a model with the bias of its value head set, e.g. to the share of correct solutions."""
    head = params["value_head"]
    return {**params, "value_head": {**head, "bias": jnp.full_like(head["bias"], bias)}}
