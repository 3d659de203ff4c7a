"""What a checkpoint or model is: kind, architecture, tensors. No weight is read."""

from __future__ import annotations

import dataclasses
from typing import Any

from wmtp_jax.load import find_model
from wmtp_jax.models import store
from wmtp_jax.stored import stored_arrays


def inspect(path: str) -> dict[str, Any]:
    """Figures about a model in any form that is read.

    Returns:
      format, architecture (only what is not at its default), parameters by part, tensors (name, shape, dtype,
      bytes; those of a base too), adapter, base, source (of our own directories).

    Raises:
      UserError: nothing of that kind is there, it is damaged or incomplete, or its base is absent or has changed.
    """
    found = find_model(path)
    if found.foreign:
        tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in found.foreign.tensors.items()}
    else:
        tensors = {name: (array.shape, array.dtype) for name, array in stored_arrays(found).items()}
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
        "base": found.description.base._asdict() if found.description.base else None,
        "source": None if found.foreign else found.description.source,
    }
