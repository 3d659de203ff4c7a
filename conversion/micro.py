"""Small models for tests and trials: random, or cut out of a real one.

``micro-mtp`` (four heads), ``micro-reference`` (next token) and ``micro-reward`` (values) under one folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wmtp_jax.data.tokenize import copy_tokenizer
from wmtp_jax.errors import UserError
from wmtp_jax.files import new_directory
from wmtp_jax.load import ModelSource, find_model
from wmtp_jax.models import store
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.parallel.mesh import make_mesh
from wmtp_jax.parallel.sharding import parameter_name
from wmtp_jax.stored import stored_arrays

_SHAPES: dict[str, Any] = {"dim": 128, "n_heads": 4, "n_kv_heads": 4, "vocab_size": 1024, "ffn_dim": 352}
CONFIGS = {
    "micro-mtp": ModelConfig(**_SHAPES, n_layers=7, n_future_tokens=4),
    "micro-reference": ModelConfig(**_SHAPES, n_layers=4, n_future_tokens=1),
    "micro-reward": ModelConfig(**_SHAPES, n_layers=4, n_future_tokens=0, value_head="linear"),
}
_TRUNK_LAYERS = 3


def make_micro(
    dst: Path,
    *,
    source: str | Path | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes model directories ``dst/micro-...``.

    Args:
      dst: their folder.
      source: a model to cut a small one out of: its first blocks, the first parts of every width, the whole
        vocabulary. None: all three, with random weights.
      tokenizer: a tokenizer's folder to put into each; cut-out models bring their own.
      seed: of random weights.
      overwrite: replace what is there.

    Returns:
      For each model: name, architecture, parameters, output.

    Raises:
      UserError: no such model or tokenizer, or a destination exists.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        raise UserError(f"{tokenizer}: no such folder; see --tokenizer")
    if source is not None:
        found = find_model(source)
        config = _small(found.config)
        name = ("micro-reward", "micro-reference", "micro-mtp")[min(config.n_future_tokens, 2)]
        facts: dict[str, Any] = {"cut_from": str(source)}
        made = [(name, config, _cut(found, config), facts, tokenizer or found.tokenizer)]
    else:
        mesh = make_mesh((-1, 1, 1))
        made = [
            (name, config, _random(config, seed, mesh), {"random": seed}, tokenizer) for name, config in CONFIGS.items()
        ]
    results = []
    for name, config, params, facts, folder in made:
        destination = dst / name
        with new_directory(destination, overwrite=overwrite, is_ours=store.is_model_directory, what="model") as new:
            store.write_params(new, params)
            if folder is not None and not copy_tokenizer(folder, new / store.TOKENIZER_FOLDER):
                raise UserError(f"{folder}: holds no tokenizer.json and no tokenizer.model; see --tokenizer")
            store.write_description(new, config, facts)
        results.append(
            {
                "name": name,
                "architecture": dataclasses.asdict(config),
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "output": str(destination),
            }
        )
    return results


def _random(config: ModelConfig, seed: int, mesh: Mesh) -> dict[str, Any]:
    params = store.random_params(config, seed, "float32", mesh)
    if config.value_head:  # zero at the start of a training; as a reward model it would say nothing
        kernel = params["value_head"]["kernel"]
        params["value_head"]["kernel"] = jax.random.normal(jax.random.key(seed), kernel.shape) / config.dim**0.5
    return params


def _small(config: ModelConfig) -> ModelConfig:
    """A model's architecture, cut down to about `CONFIGS`."""
    n_heads = min(4, config.n_heads)
    n_kv_heads = max(1, n_heads * config.n_kv_heads // config.n_heads)
    while n_heads % n_kv_heads:
        n_kv_heads -= 1
    return dataclasses.replace(
        config,
        dim=min(128, config.dim),
        n_layers=min(_TRUNK_LAYERS, config.n_trunk_layers) + config.n_future_tokens,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=min(32, config.head_width),
        ffn_dim=min(352, config.ffn_dim),
    )


def _cut(found: ModelSource, small: ModelConfig) -> dict[str, Any]:
    """The parameters of ``small``, cut out of a model block by block."""
    config = found.config
    arrays = stored_arrays(found)
    half, small_half = config.head_width // 2, small.head_width // 2

    def rows(heads: int) -> np.ndarray:
        """Of each head the first elements of both halves: rotary pairs stay pairs, of the same frequencies."""
        pair = np.concatenate([np.arange(small_half), half + np.arange(small_half)])
        return (np.arange(heads)[:, None] * config.head_width + pair).reshape(-1)

    dim, ffn = np.arange(small.dim), np.arange(small.ffn_dim)
    q, kv = rows(small.n_heads), rows(small.n_kv_heads)
    picks = {
        **{"wq": (dim, q), "wk": (dim, kv), "wv": (dim, kv), "wo": (q, dim)},
        **{"w1": (dim, ffn), "w3": (dim, ffn), "w2": (ffn, dim), "value_head": (dim, np.arange(1))},
        "output": (dim, np.arange(config.vocab_size)),
        "tok_embeddings": (np.arange(config.vocab_size), dim),
    }
    result: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(store.build(small)[1]):
        name = parameter_name(path)
        module, kind = name.split(".")[-2:]
        blocks = range(leaf.shape[0]) if name.startswith(store.STACKS) else [None]
        cut = []
        for block in blocks:
            array = arrays[name].read(block)
            cut.append(array[np.ix_(*picks[module])] if module in picks and kind != "bias" else array[: leaf.shape[-1]])
        store.set_leaf(result, name, cut[0] if blocks == [None] else np.stack(cut))
    return result
