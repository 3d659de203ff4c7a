"""How long the examples of a data set are: figures, and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmtp_jax.data.store import Index

_SHOWN = 2048  # tokens; the length of a row in the production presets


def length_figures(indices: dict[str, Index]) -> dict[str, dict[str, int]]:
    """Percentiles of the lengths of each split, and how many are longer than a row of 2,048 tokens."""
    figures = {}
    for split, index in indices.items():
        lengths = index.lengths
        shares = {"median": 50, "90%": 90, "99%": 99, "longest": 100}
        figures[split] = {name: int(np.percentile(lengths, share)) for name, share in shares.items()}
        figures[split][f"above {_SHOWN:,}"] = int((lengths > _SHOWN).sum())
    return figures


def draw_lengths(indices: dict[str, Index], path: Path, title: str) -> None:
    """A histogram of lengths, incorrect solutions on top of correct ones, one panel a split."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.6 * len(indices)), layout="constrained")
    for axes, (split, index) in zip(
        np.ravel(figure.subplots(len(indices), squeeze=False)), indices.items(), strict=True
    ):
        lengths = index.lengths
        edges = np.linspace(0, max(np.percentile(lengths, 99.5), 1), 60)
        kinds = {"correct": lengths[index.is_correct], "incorrect": lengths[~index.is_correct]}
        axes.hist(list(kinds.values()), edges, stacked=True, label=[f"{k}: {len(of):,}" for k, of in kinds.items()])
        axes.set(xlabel="tokens", ylabel="solutions", title=f"{title}, {split}")
        axes.legend()
    figure.savefig(path, dpi=120)
