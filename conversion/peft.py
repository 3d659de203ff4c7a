"""An adapter in PEFT's format: ``adapter_config.json`` + ``adapter_model.safetensors``.

It fits the ``huggingface`` export of the same model: trunk and head 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from conversion import huggingface
from conversion.tensors import DTYPES, Entry, is_export, write_export_note, write_safetensors
from wmtp_jax.console import err
from wmtp_jax.errors import UserError
from wmtp_jax.files import new_directory
from wmtp_jax.load import ModelSource, stored_arrays
from wmtp_jax.models import store

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
    arrays = stored_arrays(found, store.ADAPTER_FOLDER)
    layout, values, left_out = huggingface.LAYOUT, {}, 0
    for stack, prefixes in layout.prefixes(found.config).items():
        for name, array in arrays.items():
            if not name.startswith(f"{stack}."):
                continue
            left_out += max(array.shape[0] - len(prefixes), 0)
            module, _, matrix = name.removeprefix(f"{stack}.").rpartition(".")
            theirs = layout.block[f"{module}.kernel"].removesuffix(".weight")
            for index, prefix in enumerate(prefixes):
                key = f"base_model.model.{prefix}.{theirs}.{_NAMES[matrix]}.weight"
                values[key] = np.ascontiguousarray(np.asarray(array[index].read().result()).T)
    modules = sorted({key.split(".")[-3] for key in values})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": found.adapter.rank,
        "lora_alpha": found.adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
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
