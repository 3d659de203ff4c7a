"""Finds out what a foreign checkpoint is, from its own keys, and checks that it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conversion import huggingface, meta_mtp, starling
from conversion.layout import Layout, differences
from conversion.tensors import DTYPES, INDEX_SUFFIX, SAFETENSORS, TORCH_BIN, Tensor, open_files, open_index, read_index
from wmtp_jax.errors import UserError
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.store import PARAMS_FOLDER

LAYOUTS = {layout.name: layout for layout in (meta_mtp.LAYOUT, huggingface.LAYOUT, starling.LAYOUT)}
# In the order in which they are looked for; among Hugging Face's files it is that of transformers.
_FILES = (
    meta_mtp.CHECKPOINT,
    SAFETENSORS,
    f"{SAFETENSORS}{INDEX_SUFFIX}",
    TORCH_BIN,
    f"{TORCH_BIN}{INDEX_SUFFIX}",
)
_LISTED = 1000  # tensors that do not fit


class Source(NamedTuple):
    """A foreign checkpoint that was found whole.

    Attributes:
      directory, files: where it is, and its weight files.
      layout: its kind.
      config: its architecture, in our terms.
      tensors: what is in it and belongs to the model, not read yet.
      ignored: names of tensors that are passed over.
    """

    directory: Path
    files: list[Path]
    layout: Layout
    config: ModelConfig
    tensors: dict[str, Tensor]
    ignored: list[str]


def is_foreign(directory: Path) -> bool:
    """Whether a directory holds weight files of PyTorch or safetensors, whatever is in them."""
    return not (directory / PARAMS_FOLDER).is_dir() and bool(_weight_files(directory))


def open_source(path: Path, format: str = "auto") -> Source:
    """Opens a checkpoint; no weight is read.

    Args:
      path: its directory, or its weight file there.
      format: one of `LAYOUTS`; ``auto`` decides by the tensors' names.

    Raises:
      UserError: nothing there, damaged, of another kind, or tensors are missing, unexpected, misshapen or not
        floats (all are listed).
    """
    directory, shard_index, files = find_files(path)
    tensors = open_index(shard_index) if shard_index else open_files(files)
    layout = _layout(path, tensors, format)
    if layout is meta_mtp.LAYOUT:
        config = meta_mtp.read_config(directory)
        described = directory / meta_mtp.PARAMS
    elif layout is huggingface.LAYOUT:
        described = directory / huggingface.CONFIG
        config = huggingface.read_config(described)
    else:
        config = starling.read_config(directory, tensors)
        described = directory
    if config.n_layers > len(tensors):
        raise UserError(f"{described}: {config.n_layers:,} layers, but {path} holds {len(tensors):,} tensors in all")
    ignored = [name for name in tensors if layout.ignored.fullmatch(name)]
    if config.tie_embeddings and "lm_head.weight" in tensors:
        embedding, output = (tensors[layout.shared[leaf]] for leaf in ("tok_embeddings.embedding", "output.kernel"))
        if embedding.shape == output.shape and np.array_equal(embedding.read(), output.read()):
            ignored.append("lm_head.weight")  # a copy
        else:  # transformers takes both as they are, whatever config.json says
            config = dataclasses.replace(config, tie_embeddings=False)
    kept = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    problems = differences({name: tensor.shape for name, tensor in kept.items()}, layout, config)
    problems += [
        f"type: {name} is {tensor.dtype.name}, expected one of {', '.join(DTYPES)}"
        for name, tensor in kept.items()
        if tensor.dtype not in DTYPES.values()
    ]
    if problems:
        more = [f"and {len(problems) - _LISTED:,} more"] if len(problems) > _LISTED else []
        listing = "\n  ".join(problems[:_LISTED] + more)
        raise UserError(
            f"{path} does not hold the tensors of the {layout.name} model that {described} describes:\n  {listing}\n"
            "Check that the files belong to the same model and are complete."
        )
    return Source(directory, files, layout, config, kept, ignored)


@contextlib.contextmanager
def checksums(files: Sequence[Path]) -> Iterator[dict[str, Future[str]]]:
    """SHA-256 of files by name, computed in a thread from now on; given up when the context is left early."""
    left = threading.Event()

    def sha256(path: Path) -> str:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(2**22))
        with path.open("rb", buffering=0) as file:
            while not left.is_set() and (count := file.readinto(buffer)):
                digest.update(buffer[:count])
        return digest.hexdigest()

    with ThreadPoolExecutor(1) as background:
        try:
            yield {file.name: background.submit(sha256, file) for file in files}
        finally:
            left.set()


class Files(NamedTuple):
    """Where a checkpoint's weights are: its directory, the index of shards if there is one, the weight files."""

    directory: Path
    shard_index: Path | None
    files: list[Path]


def find_files(path: Path) -> Files:
    """The weight files of a checkpoint, not opened yet. Raises UserError where there are none."""
    if path.is_file():
        directory, found = path.parent, path
    elif path.is_dir():
        directory, candidates = path, _weight_files(path)
        if broken := [name for name in _FILES if (path / name).is_symlink() and not (path / name).exists()]:
            raise UserError(f"{path / broken[0]}: a link to nowhere; download the model again")
        if not candidates:
            raise UserError(f"{path}: holds no weights; expected one of {', '.join(_FILES)}")
        found = candidates[0]
    else:
        raise UserError(f"{path}: no such file or directory")
    if found.name.endswith(INDEX_SUFFIX):
        return Files(directory, found, sorted(set(read_index(found).values())))
    if "-of-" in found.stem and path.is_dir():
        raise UserError(f"{path}: holds shards ({found.name}, ...) but not their index; copy or download it")
    return Files(directory, None, [found])


def _weight_files(directory: Path) -> list[Path]:
    """Candidates in a directory, the first one to be taken."""
    named = [directory / name for name in _FILES if (directory / name).is_file()]
    shards = sorted([*directory.glob("model-*-of-*.safetensors"), *directory.glob("pytorch_model-*-of-*.bin")])
    return named or shards


def _layout(path: Path, tensors: dict[str, Tensor], format: str) -> Layout:
    if format != "auto":
        if (name := LAYOUTS[format].shared["tok_embeddings.embedding"]) not in tensors:
            some = ", ".join(sorted(tensors)[:3])
            raise UserError(f"{path}: is not {format}: {name} is not in it, but {some}, ...; leave out --format")
        return LAYOUTS[format]
    if "v_head.weight" in tensors:
        return starling.LAYOUT
    for layout in (meta_mtp.LAYOUT, huggingface.LAYOUT):
        if layout.shared["tok_embeddings.embedding"] in tensors:
            return layout
    some = ", ".join(sorted(tensors)[:5]) or "none"
    raise UserError(
        f"{path}: of no known kind; its tensors are {some}, ... Expected the names of Meta's multi-token-prediction "
        "models (tok_embeddings.weight), of LlamaForCausalLM (model.embed_tokens.weight) or of Starling-RM "
        "(transformer.embed_tokens.weight, v_head.weight); --format names the kind"
    )
