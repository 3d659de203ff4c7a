"""The multi-token-prediction model in PyTorch, as Meta's layout defines it: the independent side of `verify`.

Written from the layout's description (rotary positions on neighbouring pairs, head 1 = last of ``layers``,
one shared norm and output matrix), one document a row. It shares no code with the model in JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

Tensors = Mapping[str, torch.Tensor]


def forward(tensors: Tensors, params: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, S, n, V) of ``tokens`` (B, S), in the tensors' type.

    Args:
      tensors: by Meta's names; each is asked for when it is needed, so a mapping may read them from a file.
      params: ``params.json``.
      tokens: int64 ids.
    """
    n = params.get("n_future_tokens", 1)
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


def _block(w: Tensors, name: str, params: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    B, S, D = x.shape
    heads = params["n_heads"]
    kv_heads = params.get("n_kv_heads") or heads
    theta = params.get("rope_theta", 10000.0)
    y = _norm(x, w[f"{name}.attention_norm.weight"], params)
    q = _rotate((y @ w[f"{name}.attention.wq.weight"].T).view(B, S, heads, D // heads), theta)
    k = _rotate((y @ w[f"{name}.attention.wk.weight"].T).view(B, S, kv_heads, D // heads), theta)
    v = (y @ w[f"{name}.attention.wv.weight"].T).view(B, S, kv_heads, D // heads)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + attended.transpose(1, 2).reshape(B, S, D) @ w[f"{name}.attention.wo.weight"].T
    y = _norm(x, w[f"{name}.ffn_norm.weight"], params)
    gate = F.silu(y @ w[f"{name}.feed_forward.w1.weight"].T) * (y @ w[f"{name}.feed_forward.w3.weight"].T)
    return x + gate @ w[f"{name}.feed_forward.w2.weight"].T


def _norm(x: torch.Tensor, weight: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params.get("norm_eps", 1e-5)) * weight


def _rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    half = x.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half).float() / half)
    angle = torch.outer(torch.arange(x.shape[1]).float(), frequency)
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], half, 2)) * torch.polar(
        torch.ones_like(angle), angle
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2)
