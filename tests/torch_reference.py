"""The model in PyTorch, as Meta's layout defines it: the independent side of the comparisons.

Written from the layout's description (rotary positions on neighbouring pairs, head 1 = last of
``layers``, one shared norm and output matrix), one document a row.
"""

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
    from conversion.meta_mtp import meta_shapes, read_config

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(params))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in meta_shapes(read_config(directory)).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (1 + 0.1 * noise if len(shape) == 1 else 0.15 * noise).to(dtype)
    torch.save(tensors, directory / "consolidated.pth")
    return tensors


def forward(tensors: Tensors, params: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, S, n, V) float32 of ``tokens`` (B, S)."""
    n = params["n_future_tokens"]
    trunk = params["n_layers"] - n
    heads = [f"layers.{trunk}", *(f"extra_heads.{i}" for i in range(n - 1))]
    h = tensors["tok_embeddings.weight"][tokens]
    for i in range(trunk):
        h = _block(tensors, f"layers.{i}", params, h)
    outputs = [_norm(_block(tensors, name, params, h), tensors["norm.weight"], params) for name in heads]
    return torch.stack(outputs, dim=2) @ tensors["output.weight"].T


def loss(logits: torch.Tensor, tokens: torch.Tensor, first_target: int) -> torch.Tensor:
    """Mean over heads of the mean cross-entropy of targets at positions >= ``first_target``."""
    means = []
    for k in range(1, logits.shape[2] + 1):
        start = max(first_target - k, 0)
        predicted = logits[:, start : tokens.shape[1] - k, k - 1]
        means.append(F.cross_entropy(predicted.flatten(0, 1), tokens[:, start + k :].flatten()))
    return torch.stack(means).mean()


def _block(tensors: Tensors, name: str, params: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    w = {key.removeprefix(name + "."): value for key, value in tensors.items() if key.startswith(name + ".")}
    B, S, D = x.shape
    heads, kv_heads = params["n_heads"], params["n_kv_heads"]
    y = _norm(x, w["attention_norm.weight"], params)
    q = _rotate((y @ w["attention.wq.weight"].T).view(B, S, heads, D // heads), params["rope_theta"])
    k = _rotate((y @ w["attention.wk.weight"].T).view(B, S, kv_heads, D // heads), params["rope_theta"])
    v = (y @ w["attention.wv.weight"].T).view(B, S, kv_heads, D // heads)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + attended.transpose(1, 2).reshape(B, S, D) @ w["attention.wo.weight"].T
    y = _norm(x, w["ffn_norm.weight"], params)
    gate = F.silu(y @ w["feed_forward.w1.weight"].T) * (y @ w["feed_forward.w3.weight"].T)
    return x + gate @ w["feed_forward.w2.weight"].T


def _norm(x: torch.Tensor, weight: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight


def _rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half).float() / half)
    angle = torch.outer(torch.arange(x.shape[1]).float(), frequency)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2)) * torch.polar(
        torch.ones_like(angle), angle
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2)
