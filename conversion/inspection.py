"""What a checkpoint or model is: kind, architecture, tensors. No weight is read."""

from __future__ import annotations

import dataclasses
from typing import Any

from wmtp_jax.load import find_model, stored_arrays
from wmtp_jax.models import store


def inspect(path: str) -> dict[str, Any]:
    """Figures about a model in any form that is read.

    Returns:
      format, architecture (only what is not at its default), parameters by part, tensors (name, shape, dtype,
      bytes), adapter, source (of our own directories).

    Raises:
      UserError: nothing of that kind is there, or it is damaged or incomplete.
    """
    found = find_model(path)
    if found.foreign:
        tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in found.foreign.tensors.items()}
    else:
        arrays = stored_arrays(found)
        tensors = {name: (tuple(array.shape), array.dtype.numpy_dtype) for name, array in arrays.items()}
    listing = []
    for name, (shape, dtype) in tensors.items():
        size = dtype.itemsize
        for length in shape:
            size *= length
        listing.append({"name": name, "shape": list(shape), "dtype": dtype.name, "bytes": size})
    fields = dataclasses.fields(found.config)
    architecture = {f.name: getattr(found.config, f.name) for f in fields if getattr(found.config, f.name) != f.default}
    return {
        "format": found.foreign.layout.name if found.foreign else "wmtp_jax",
        "architecture": architecture,
        "parameters": store.count_params(store.build(found.config)[1]),
        "tensors": listing,
        "bytes": sum(item["bytes"] for item in listing),
        "adapter": dataclasses.asdict(found.adapter) if found.adapter else None,
        "source": None if found.foreign else found.description.source,
    }
