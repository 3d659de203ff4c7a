"""Greedy completions: the decoder against a plain loop, and the command."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from wmtp_jax import complete
from wmtp_jax.errors import UserError
from wmtp_jax.inference.greedy import greedy_decode
from wmtp_jax.models.config import ModelConfig
from wmtp_jax.models.mtp import MTPTransformer

CONFIG = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=4, vocab_size=20, ffn_dim=64, n_future_tokens=2)


@pytest.fixture(scope="module")
def model() -> MTPTransformer:
    model = MTPTransformer(CONFIG, rngs=nnx.Rngs(1))
    # Random weights of the usual size would repeat one token: larger ones give varied continuations.
    model.output.kernel[...] = 20 * model.output.kernel[...]
    return model


def continue_one_by_one(model, prompt: list[int], length: int, eos: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < length and tokens[-1] != eos:
        tokens.append(int(jnp.argmax(model(jnp.array([tokens]))[0, -1, 0])))
    return tokens + [eos] * (length - len(tokens))


def test_unequal_prompts_equal_a_plain_loop(model):
    prompts = [[3, 4, 5], [7], [1, 2, 3, 4, 5, 6, 7, 8]]
    rows = np.full((3, 12), 9)  # what stands after a prompt must not matter
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = jnp.array([len(p) for p in prompts])
    expected = [continue_one_by_one(model, prompt, 12, eos=0) for prompt in prompts]
    decode = nnx.jit(greedy_decode, static_argnames="eos")
    assert decode(model, jnp.array(rows), lengths, eos=0).tolist() == expected
    # With an end that is met on the way, everything after it is filled up.
    end = expected[0][5]
    assert decode(model, jnp.array(rows), lengths, eos=end).tolist() == [
        continue_one_by_one(model, prompt, 12, eos=end) for prompt in prompts
    ]


def test_the_command(train_command, tiny_data: Path, tmp_path: Path, capsys):
    train_command(tmp_path / "run", "training.n_epochs=3")
    capsys.readouterr()
    arguments = ["--model", str(tmp_path / "run"), "--data", str(tiny_data), "--count", "2", "--max-length", "64"]
    assert complete.main([*arguments, "--json"]) == 0
    completions = json.loads(capsys.readouterr().out)["completions"]
    assert len({c["task_id"] for c in completions}) == 2
    for item in completions:
        assert item["task_id"] in item["true_solution"] or item["instruction"].startswith("Read a number")
        assert "print" in item["true_solution"]
    assert complete.main(arguments) == 0
    assert "a true solution" in capsys.readouterr().out
    with pytest.raises(UserError, match="give --max-length above it"):
        complete.main([*arguments, "--max-length", "10"])
    with pytest.raises(UserError, match="--count 0"):
        complete.main([*arguments, "--count", "0"])
    with pytest.raises(UserError, match="--seed -1"):
        complete.main([*arguments, "--seed", "-1"])
    with pytest.raises(UserError, match="--count asks for 21, but there are 20 problems"):
        complete.main([*arguments, "--count", "21"])
    with pytest.raises(UserError, match="no such model"):
        complete.main(["--model", str(tmp_path / "absent")])
