"""What all settings have in common: their base, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _without_zero_byte(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("a path has no zero byte in it")
    return path


DType = Literal["float32", "bfloat16"]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_without_zero_byte)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A group of settings: unknown ones are errors, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
