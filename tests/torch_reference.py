"""The PyTorch side of comparisons: checkpoints with random weights in Meta's layout, and the loss."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

Tensors = dict[str, torch.Tensor]


def random_checkpoint(directory: Path, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Tensors:
    """Writes a small checkpoint with random weights in Meta's layout and returns its tensors."""
    params = {
        "dim": 48,
        "n_layers": 5,
        "n_heads": 4,
        "n_kv_heads": 4,
        "vocab_size": 61,
        "multiple_of": 16,
        "norm_eps": 1e-5,
        "n_future_tokens": 3,
        "rope_theta": 10000.0,
    } | changes
    from conversion.layout import places
    from conversion.meta_mtp import LAYOUT, read_config

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, place in places(LAYOUT, read_config(directory)).items():
        noise = torch.randn(place.shape, generator=generator)
        tensors[name] = (1 + 0.1 * noise if len(place.shape) == 1 else 0.15 * noise).to(dtype)
    torch.save(tensors, directory / "consolidated.pth")
    return tensors


def loss(logits: torch.Tensor, tokens: torch.Tensor, first_target: int) -> torch.Tensor:
    """Mean over heads of the mean cross-entropy of targets at positions >= ``first_target``."""
    means = []
    for k in range(1, logits.shape[2] + 1):
        start = max(first_target - k, 0)
        predicted = logits[:, start : tokens.shape[1] - k, k - 1]
        means.append(F.cross_entropy(predicted.flatten(0, 1), tokens[:, start + k :].flatten()))
    return torch.stack(means).mean()
