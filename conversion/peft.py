"""An adapter in PEFT's format: ``adapter_config.json`` + ``adapter_model.safetensors``.

It fits the ``huggingface`` export of the model that it was trained on: trunk and head 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from conversion import huggingface
from conversion.tensors import DTYPES, Entry, is_export, write_export_note, write_safetensors
from wmtp_jax.console import err
from wmtp_jax.errors import UserError
from wmtp_jax.files import new_directory
from wmtp_jax.load import ModelSource
from wmtp_jax.stored import adapter_arrays

CONFIG = "adapter_config.json"
_NAMES = {"lora_a": "lora_A", "lora_b": "lora_B"}


def export_adapter(found: ModelSource, dst: Path, *, format: str, overwrite: bool) -> dict[str, Any]:
    """Writes the adapter of a model alone.

    Raises:
      UserError: the model has no adapter, or ``format`` has no form for one.
    """
    if found.adapter is None:
        raise UserError(f"{found.directory}: has no adapter; leave out --adapter-only")
    if format != "huggingface":
        raise UserError("--adapter-only writes PEFT's format, which goes with --format huggingface")
    arrays = adapter_arrays(found)
    layout, values, left_out = huggingface.LAYOUT, {}, 0
    prefixes = layout.prefixes(found.config)
    for name, array in arrays.items():
        module, _, matrix = name.rpartition(".")
        stack, _, inner = module.partition(".")
        if stack in prefixes:
            left_out += max(array.shape[0] - len(prefixes[stack]), 0)
            theirs = layout.block[f"{inner}.kernel"].removesuffix(".weight")
            places: dict[str, int | None] = {
                f"{prefix}.{theirs}": index for index, prefix in enumerate(prefixes[stack])
            }
        else:
            places = {layout.shared[f"{module}.kernel"].removesuffix(".weight"): None}
        for place, block in places.items():
            values[f"base_model.model.{place}.{_NAMES[matrix]}.weight"] = np.ascontiguousarray(array.read(block).T)
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": found.adapter.rank,
        "lora_alpha": found.adapter.alpha,
        "lora_dropout": found.adapter.dropout,
        "target_modules": _target_modules(values, [prefix for stack in prefixes.values() for prefix in stack]),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
    }
    entries = [Entry(key, array.shape, DTYPES[array.dtype.name]) for key, array in values.items()]
    with new_directory(dst, overwrite=overwrite, is_ours=is_export, what="export") as partial:
        write_export_note(partial, {"format": "peft", "from": str(found.directory)})
        (partial / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
        write_safetensors(partial, entries, iter(values.values()), 1, stem="adapter_model")
    if left_out:
        err.print("exported the adapter of the trunk and head 1; the other heads have no place in this layout")
    return {
        "format": "peft",
        "tensors": len(entries),
        "parameters": sum(array.size for array in values.values()),
        "bytes": sum(entry.nbytes for entry in entries),
        "adapter_merged": False,
        "output": str(dst),
    }


def _target_modules(values: Iterable[str], blocks: list[str]) -> list[str]:
    """Names of the adapted modules; in full where not all blocks have the same, or PEFT adapts the others too."""
    modules = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in values}
    inside = [{m.removeprefix(f"{block}.") for m in modules if m.startswith(f"{block}.")} for block in blocks]
    if any(names != inside[0] for names in inside):
        return sorted(modules)
    return sorted({module.rpartition(".")[2] for module in modules})
