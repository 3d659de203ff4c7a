"""GPUs that a program can be compiled for with none at hand, and what they can do by their data sheets."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from wmtp_jax.parallel.mesh import AXES

DEVICES_A_HOST = 8


@dataclass(frozen=True)
class Card:
    """A kind of GPU.

    Attributes:
      name: as in ``--device``.
      flops: dense bfloat16 products, FLOP/s, float32 sums.
      link: bytes/s one way between the cards of a host (NVLink).
    """

    name: str
    flops: float
    link: float

    @property
    def target(self) -> str:
        """What XLA compiles for: the card's constants, as XLA writes them itself."""
        return (Path(__file__).parent / "gpu_targets" / f"{self.name}.txtpb").read_text()

    @property
    def capacity(self) -> int:
        """Bytes of memory."""
        size = re.search(r"device_memory_size: (\d+)", self.target)
        assert size is not None
        return int(size[1])


CARDS = {
    card.name: card
    for card in (
        Card("a100-80gb", flops=312e12, link=300e9),
        Card("h100-80gb", flops=989e12, link=450e9),
        Card("h200", flops=989e12, link=450e9),
    )
}


def compile_only_mesh(card: Card, shape: tuple[int, int, int]) -> Mesh:
    """A mesh of cards that are not there: programs compile for it, and nothing runs on it.

    Needs the CUDA plugin of JAX (extra ``plan``), no driver.

    Raises:
      ValueError: more cards than one host has, but not whole hosts.
    """
    n_devices = math.prod(shape)
    hosts = -(-n_devices // DEVICES_A_HOST)
    if n_devices % hosts:
        raise ValueError(
            f"{n_devices} cards do not fill hosts of {DEVICES_A_HOST}; give a multiple of {DEVICES_A_HOST}"
        )
    name = f"1x{hosts}x{n_devices // hosts}"  # partitions x hosts x devices
    described = topologies.get_topology_desc(name, platform="cuda", topology=name, target_config=card.target)
    return Mesh(np.array(described.devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def silence_libraries() -> None:
    """Keeps what C++ writes to standard error away for the rest of the process; what Python writes is still shown.

    The plugin says again and again that there is no GPU. ``TF_CPP_MIN_LOG_LEVEL=0`` in the environment shows it all.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
