"""A model on disk: ``config.json`` (architecture), ``params/`` (Orbax), ``tokenizer/``.

``params/`` holds the nested dict of parameters; it is read onto any mesh. A training checkpoint
keeps its parameters in the same form, so both are loaded by the same code.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.mtp import MTPTransformer
from wmtp_jax.parallel.sharding import parameter_shardings

FORMAT_VERSION = 1
CONFIG_FILE, PARAMS_FOLDER, TOKENIZER_FOLDER = "config.json", "params", "tokenizer"


def build(config: ModelConfig, **options: Any) -> tuple[nnx.GraphDef[MTPTransformer], Any]:
    """The model's structure and the shapes of its parameters, without making any weight.

    Args:
      config: the architecture.
      **options: of `MTPTransformer` (dtype, param_dtype, remat, unroll).

    Returns:
      ``graphdef`` and a nested dict of `jax.ShapeDtypeStruct`; ``nnx.merge(graphdef, params)`` with
      arrays of these shapes is the model.
    """
    model = nnx.eval_shape(lambda: MTPTransformer(config, rngs=nnx.Rngs(0), **options))
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def random_params(config: ModelConfig, seed: int, param_dtype: DTypeLike, mesh: Mesh) -> Any:
    """Fresh weights, made on the mesh: no device ever holds all of them."""

    def make() -> Any:
        model = MTPTransformer(config, rngs=nnx.Rngs(seed), param_dtype=param_dtype)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return jax.jit(make, out_shardings=parameter_shardings(jax.eval_shape(make), mesh))()


def count_params(shapes: Any) -> dict[str, int]:
    """Number of parameters by part (trunk, heads, tok_embeddings, output, norm) and in total."""
    parts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    return {**parts, "total": sum(parts.values())}


def write_config(directory: Path, config: ModelConfig, source: dict[str, Any]) -> None:
    """Writes ``config.json``; ``source`` says where the weights come from."""
    content = {
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(config),
        "source": source,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_config(directory: Path) -> ModelConfig:
    """Reads the architecture.

    Raises:
      ValueError: the file is absent, damaged, or of a later format; the message names it.
    """
    path = directory / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"format version {version}, but this program reads {FORMAT_VERSION}")
        return ModelConfig(**content["architecture"])
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, so {directory} is not a model directory") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a model description of ours ({error})") from error


def read_params(directory: Path, shapes: Any, mesh: Mesh) -> Any:
    """Reads ``params/`` onto the mesh, in the types of ``shapes``.

    Raises:
      ValueError: the folder is absent or does not hold parameters of these shapes.
    """
    path = directory.resolve() / PARAMS_FOLDER
    if not path.is_dir():
        raise ValueError(f"{path}: no parameters there")
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(shapes, mesh),
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, target)
    except Exception as error:  # Orbax raises many kinds; the remedy is the same for all
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def write_params(directory: Path, params: Any) -> None:
    """Writes ``params/``; it appears whole or not at all."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve() / PARAMS_FOLDER, params)
