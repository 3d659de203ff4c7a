"""Compares two forms of one model by what they compute: ours in JAX, the others in PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion import huggingface, meta_mtp
from conversion.source import Source
from conversion.tensors import read_json
from wmtp_jax.console import err
from wmtp_jax.errors import UserError
from wmtp_jax.load import ModelSource, find_model, load_model
from wmtp_jax.stored import stored_arrays

TOLERANCE = 1e-4
ROWS, LENGTH = 2, 48
# Words, code, two scripts, odd spaces: what the real tokens are made of.
TEXT = """### Instruction:
Read n numbers and print the largest one. 가장 큰 수를 출력하세요.

### Response:
n = int(input())
best = max(int(x) for x in input().split()[:n])
print(best)  # e.g. [3, -1, 7]\t-> 7
"""

Forward = Callable[[np.ndarray], np.ndarray]


def verify(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Runs both in float32 on random tokens and on real text, one after the other.

    Args:
      first, second: model directories or runs of ours, or foreign checkpoints.

    Returns:
      For ``random`` and ``text`` (without a tokenizer: only the first) the largest absolute difference of each
      head both have, of the logits; of the values where both are value models.

    Raises:
      UserError: one is absent or damaged, or they have different vocabularies.
    """
    found = [find_model(path) for path in (first, second)]
    configs = [source.config for source in found]
    if configs[0].vocab_size != configs[1].vocab_size:
        raise UserError(
            f"{first} has a vocabulary of {configs[0].vocab_size}, {second} of {configs[1].vocab_size}: not one model"
        )
    if bool(configs[0].n_future_tokens) != bool(configs[1].n_future_tokens):
        raise UserError(f"of {first} and {second} one gives values and the other tokens: not one model")
    inputs = _inputs(found, configs[0].vocab_size)
    outputs: list[list[np.ndarray]] = []
    for path, source in zip((first, second), found, strict=True):
        err.print(f"computing with {path}", highlight=False, soft_wrap=True)
        forward = _forward(path, source)
        outputs.append([forward(tokens) for tokens in inputs.values()])
        del forward
        gc.collect()  # two large models need not be in memory together
    heads = min(output[0].shape[2] for output in outputs)
    differences = {
        kind: [float(np.max(np.abs(a[:, :, k] - b[:, :, k]))) for k in range(heads)]
        for kind, a, b in zip(inputs, *outputs, strict=True)
    }
    largest = float(np.max([*differences.values()]))  # NaN where any is, which equals nothing
    return {
        "compared": "logits" if configs[0].n_future_tokens else "values",
        "heads": heads,
        "differences": differences,
        "largest": largest,
        "largest_output": float(max(np.max(np.abs(a)) for a in outputs[0])),
        "tolerance": TOLERANCE,
        "equal": bool(largest <= TOLERANCE),
    }


def _inputs(found: list[ModelSource], vocab_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0).integers(0, vocab_size, (ROWS, LENGTH))
    inputs = {"random": random}
    folder = next((source.tokenizer for source in found if source.tokenizer), None)
    if folder is None:
        err.print("no tokenizer beside either model: compared on random tokens only")
        return inputs
    from wmtp_jax.data.tokenize import load_tokenizer

    ids = load_tokenizer(folder)(TEXT, add_special_tokens=False)["input_ids"]
    if max(ids) >= vocab_size:
        raise UserError(f"{folder}: gives token {max(ids)}, but the model's vocabulary is {vocab_size}")
    inputs["text"] = np.resize(np.array(ids), (1, max(len(ids), 2)))
    return inputs


def _forward(path: str | Path, source: ModelSource) -> Forward:
    """Tokens (B, S) -> logits (B, S, n, V), or values (B, S, 1), as the form's own library computes them."""
    if source.foreign is None:
        return _ours(path, source)
    if source.foreign.layout is meta_mtp.LAYOUT:
        return _meta(source.foreign)
    if source.foreign.layout is huggingface.LAYOUT:
        return _llama(source.foreign)
    return _starling(source.foreign)


def _ours(path: str | Path, source: ModelSource) -> Forward:
    from flax import nnx

    # Weights stay in the type they are stored in, where all share one: half the memory for bfloat16.
    kinds = {array.dtype.name for array in stored_arrays(source).values()}
    model = load_model(path, param_dtype=kinds.pop() if len(kinds) == 1 else "float32")
    run = nnx.jit(
        lambda model, tokens: model(tokens) if source.config.n_future_tokens else model.values(tokens)[..., None]
    )
    return lambda tokens: np.asarray(run(model, tokens))


def _meta(source: Source) -> Forward:
    import torch

    from conversion.torch_reference import forward

    params = meta_mtp.read_params(source.directory)

    def run(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return forward(_TorchTensors(source), params, torch.from_numpy(tokens)).numpy()

    return run


def _llama(source: Source) -> Forward:
    torch, transformers = _libraries()
    content = read_json(source.directory / huggingface.CONFIG)
    content["tie_word_embeddings"] = source.config.tie_embeddings
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**content)).eval()
    missing, unexpected = model.load_state_dict(dict(_TorchTensors(source)), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if source.config.tie_embeddings else set())
    model.tie_weights()

    def run(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(tokens)).logits[:, :, None].numpy()

    return run


def _starling(source: Source) -> Forward:
    torch, transformers = _libraries()
    content = huggingface.config_of(source.config, "float32", None, {})
    content["num_hidden_layers"] = source.config.n_layers
    backbone = transformers.LlamaModel(transformers.LlamaConfig(**content)).eval()
    tensors = _TorchTensors(source)
    state = {name.removeprefix("transformer."): tensors[name] for name in tensors if name.startswith("transformer.")}
    backbone.load_state_dict(state)

    def run(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            hidden = backbone(torch.from_numpy(tokens)).last_hidden_state
            return (hidden @ tensors["v_head.weight"].T).numpy()

    return run


class _TorchTensors(Mapping[str, Any]):
    """The tensors of a source as float32 PyTorch tensors, read when they are asked for."""

    def __init__(self, source: Source):
        self._tensors = source.tensors

    def __getitem__(self, name: str) -> Any:
        import torch

        return torch.from_numpy(self._tensors[name].read().astype(np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError("comparing needs torch; install it with `pip install 'wmtp-jax[convert]'`") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers
