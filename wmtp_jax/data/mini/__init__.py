"""The embedded data set: small programming problems in CodeContests' own schema, made here.

`generate` gives the rows; `wmtp_jax.data.mini.generator` says how they come about.
"""

from collections.abc import Callable, Iterator
from typing import Any

from wmtp_jax.data.mini import generator
from wmtp_jax.data.mini.families import FAMILIES


def generate(
    n_solutions: int = 20_000,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of all families, see `wmtp_jax.data.mini.generator.generate`."""
    return generator.generate(FAMILIES, n_solutions, seed, workers, on_progress)
