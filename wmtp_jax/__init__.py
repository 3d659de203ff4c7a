"""Token-weighted fine-tuning of multi-token-prediction language models in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wmtp_jax.load import load_model

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Not at import: commands that need no model (prepare, --help) start without jax.
    if name == "load_model":
        from wmtp_jax.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
