"""Checkpoints through import and export: nothing is lost, and what is computed stays the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conversion_checkpoints import random_checkpoint, save_llama, save_starling

import wmtp_jax
from conversion.torch_reference import forward
from wmtp_jax.data.tokenize import load_tokenizer, train_tokenizer
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.inference.reward import sequence_rewards
from wmtp_jax.models import store

META = {
    "as Meta's": ({}, torch.bfloat16),
    "one head, float16": ({"n_future_tokens": 1, "n_layers": 2}, torch.float16),
    "eight heads, no trunk": ({"n_future_tokens": 8, "n_layers": 8}, torch.float32),
    "grouped queries, long rope": (
        {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0},
        torch.bfloat16,
    ),
}
LLAMA = {
    "plain": {},
    "grouped queries, one layer": {"num_key_value_heads": 2, "num_hidden_layers": 1},
    "tied": {"tie_word_embeddings": True, "shards": 2},
    "heads of their own width": {"head_dim": 16, "num_key_value_heads": 3},
    "widths that four does not divide": {"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 1},
    "llama3 scaling, sharded": {
        "shards": 3,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 50.0,  # so that some wavelengths are kept, some stretched, and some blended
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    "bin": {"binary": True},
    "sharded bin": {"binary": True, "shards": 3},
}
TOKENS = np.random.default_rng(3).integers(0, 61, (2, 40))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "consolidated.pth", weights_only=True)


@pytest.mark.parametrize(("changes", "dtype"), META.values(), ids=META)
def test_meta_round_trip_is_bit_identical(changes: dict, dtype: torch.dtype, convert, tmp_path: Path):
    before = random_checkpoint(tmp_path / "meta", dtype=dtype, **changes)
    figures = convert("import", tmp_path / "meta", tmp_path / "ours")
    assert figures["format"] == "meta-mtp"
    assert len(figures["sha256"]["consolidated.pth"]) == 64
    convert("export", tmp_path / "ours", tmp_path / "back", "--format", "meta-mtp")
    after = tensors_of(tmp_path / "back")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    params = [json.loads((tmp_path / name / "params.json").read_text()) for name in ("meta", "back")]
    assert params[0] == params[1]
    torch.load(tmp_path / "back/consolidated.pth", weights_only=True, mmap=True)  # as large files are read


def test_types_that_differ_between_tensors_come_back(convert, tmp_path: Path):
    before = random_checkpoint(tmp_path / "meta", dtype=torch.bfloat16)
    for name in ("norm.weight", "layers.0.attention_norm.weight", "layers.1.feed_forward.w2.weight"):
        before[name] = before[name].float() + 1e-5
    before["rope.freqs"] = torch.ones(6)
    torch.save(before, tmp_path / "meta/consolidated.pth")
    convert("import", tmp_path / "meta", tmp_path / "ours")
    convert("export", tmp_path / "ours", tmp_path / "back", "--format", "meta-mtp")
    after = tensors_of(tmp_path / "back")
    assert after.keys() == before.keys() - {"rope.freqs"}
    assert all(after[name].dtype == before[name].dtype and torch.equal(after[name], before[name]) for name in after)


def test_layout_of_a_model_that_was_not_imported(convert, tmp_path: Path):
    """``params.json`` is made up then; its rule must give the same width again."""
    convert("micro", tmp_path)
    convert("export", tmp_path / "micro-mtp", tmp_path / "meta", "--format", "meta-mtp")
    assert convert("verify", tmp_path / "micro-mtp", tmp_path / "meta")["heads"] == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_that_of_every_weight(dtype: str, convert, tmp_path: Path):
    random_checkpoint(tmp_path / "meta")
    convert("import", tmp_path / "meta", tmp_path / "ours", "--dtype", dtype)
    assert {t["dtype"] for t in convert("inspect", tmp_path / "ours")["tensors"]} == {dtype}
    other = "bfloat16" if dtype == "float32" else "float32"
    convert("export", tmp_path / "ours", tmp_path / "back", "--format", "meta-mtp", "--dtype", other)
    assert {str(t.dtype) for t in tensors_of(tmp_path / "back").values()} == {f"torch.{other}"}


@pytest.mark.parametrize("changes", LLAMA.values(), ids=LLAMA)
def test_llama_computes_the_same_in_and_out(changes: dict, convert, tmp_path: Path):
    theirs = save_llama(tmp_path / "hf", **changes)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    figures = convert("import", tmp_path / "hf", tmp_path / "ours")
    assert figures["format"] == "llama"
    ours = np.asarray(wmtp_jax.load_model(tmp_path / "ours")(TOKENS))
    assert ours.shape == (2, 40, 1, 71)
    np.testing.assert_allclose(ours[:, :, 0], expected, atol=1e-4, rtol=0)
    assert convert("verify", tmp_path / "hf", tmp_path / "ours")["largest"] <= 1e-4

    convert("export", tmp_path / "ours", tmp_path / "out", "--format", "huggingface", "--shards", "2")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        np.testing.assert_allclose(back(torch.from_numpy(TOKENS)).logits.numpy(), expected, atol=1e-5, rtol=0)
    state = back.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_config_of_older_transformers_is_read(convert, tmp_path: Path):
    save_llama(tmp_path / "hf", **LLAMA["llama3 scaling, sharded"])
    path = tmp_path / "hf/config.json"
    content = json.loads(path.read_text())
    rope = content.pop("rope_parameters")
    content |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    path.write_text(json.dumps(content))
    figures = convert("import", tmp_path / "hf", tmp_path / "ours")
    assert figures["architecture"]["rope_theta"] == 50.0
    assert figures["architecture"]["rope_scaling"]["factor"] == 8.0


def test_what_the_weights_do_not_say_is_kept(convert, tmp_path: Path):
    save_llama(tmp_path / "hf", bos_token_id=3, eos_token_id=[4, 5], pad_token_id=0, max_position_embeddings=777)
    convert("import", tmp_path / "hf", tmp_path / "ours")
    convert("export", tmp_path / "ours", tmp_path / "out", "--format", "huggingface")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, [4, 5], 0)
    assert config.max_position_embeddings == 777


def test_an_output_matrix_that_is_not_the_tied_one_is_kept(convert, tmp_path: Path):
    save_llama(tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    figures = convert("import", tmp_path / "hf", tmp_path / "ours")
    assert figures["architecture"]["tie_embeddings"] is False
    assert convert("verify", tmp_path / "hf", tmp_path / "ours")["equal"]


def test_of_several_files_that_of_transformers_is_taken(convert, tmp_path: Path):
    theirs = save_llama(tmp_path / "hf")
    other = save_llama(tmp_path / "other", binary=True, shards=2, vocab_size=72)
    for file in (tmp_path / "other").glob("pytorch_model*"):
        file.rename(tmp_path / "hf" / file.name)
    assert other.config.vocab_size != theirs.config.vocab_size
    assert convert("import", tmp_path / "hf", tmp_path / "ours")["architecture"]["vocab_size"] == 71


def test_exported_head_1_generates_in_transformers(convert, tmp_path: Path):
    train_tokenizer(["def solve(x): return x + 1\n"] * 50, 300, tmp_path / "tokenizer")
    convert("micro", tmp_path, "--tokenizer", tmp_path / "tokenizer")
    convert("export", tmp_path / "micro-mtp", tmp_path / "hf", "--format", "huggingface", "--dtype", "bfloat16")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.dtype == torch.bfloat16
    assert model.config.eos_token_id == tokenizer.eos_token_id
    model = model.float()
    prompt = tokenizer("def solve", return_tensors="pt")
    theirs = model.generate(**prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)[0].tolist()
    ours = wmtp_jax.load_model(tmp_path / "micro-mtp")
    convert("import", tmp_path / "hf", tmp_path / "again")
    again = wmtp_jax.load_model(tmp_path / "again")
    tokens = prompt["input_ids"][0].tolist()
    for _ in range(6):
        tokens.append(int(np.argmax(again([tokens])[0, -1, 0])))
    assert tokens == theirs
    np.testing.assert_allclose(ours([tokens])[:, :, 0], again([tokens])[:, :, 0], atol=0.05)  # bfloat16 between


@pytest.mark.parametrize("with_config", [True, False], ids=["config.json", "shapes alone"])
def test_starling_rewards(with_config: bool, convert, tmp_path: Path):
    backbone, v_head = save_starling(tmp_path / "rm", with_config)
    figures = convert("import", tmp_path / "rm", tmp_path / "ours")
    assert figures["format"] == "starling-rm"
    assert figures["passed_over"] >= 29  # the second copy of the backbone
    model = wmtp_jax.load_model(tmp_path / "ours")
    mask = np.ones_like(TOKENS)
    mask[1, 25:] = 0
    assert model.config.norm_eps == 1e-5
    with torch.no_grad():
        hidden = backbone(torch.from_numpy(TOKENS), attention_mask=torch.from_numpy(mask)).last_hidden_state
        theirs = (hidden @ v_head.T)[..., 0].numpy()
    np.testing.assert_allclose(sequence_rewards(model, TOKENS, mask), [theirs[0, 39], theirs[1, 24]], atol=1e-4)
    np.testing.assert_allclose(sequence_rewards(model, TOKENS, mask, "official"), theirs[:, -1], atol=1e-4)
    assert abs(theirs[1, -1] - theirs[1, 24]) > 1e-2  # the two do differ
    assert convert("verify", tmp_path / "rm", tmp_path / "ours")["compared"] == "values"
    with pytest.raises(ValueError, match=r"call model\.values"):
        model(TOKENS)
    with pytest.raises(UserError, match="values, not tokens"):
        convert("export", tmp_path / "ours", tmp_path / "out", "--format", "huggingface")
    with pytest.raises(ValueError, match="must be last_token or official"):
        sequence_rewards(model, TOKENS, mask, "first")


def test_foreign_checkpoints_are_loaded_as_they_are(convert, tmp_path: Path):
    save_llama(tmp_path / "hf")
    convert("import", tmp_path / "hf", tmp_path / "ours")
    direct, imported = (wmtp_jax.load_model(tmp_path / name) for name in ("hf", "ours"))
    np.testing.assert_array_equal(direct(TOKENS), imported(TOKENS))
    save_starling(tmp_path / "rm")
    assert wmtp_jax.load_model(tmp_path / "rm").values(TOKENS).shape == TOKENS.shape


def test_a_sentencepiece_tokenizer_comes_along(convert, tmp_path: Path):
    import sentencepiece

    random_checkpoint(tmp_path / "meta", vocab_size=330)
    (tmp_path / "text").write_text("def solve(x):\n    return x + 1\nread two integers and print them\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "meta/tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    assert convert("import", tmp_path / "meta", tmp_path / "ours")["tokenizer"] is True
    tokenizer = load_tokenizer(tmp_path / "ours/tokenizer")
    assert tokenizer.decode(tokenizer.encode("print them", add_special_tokens=False)) == "print them"
    assert "text" in convert("verify", tmp_path / "meta", tmp_path / "ours")["differences"]
    convert("export", tmp_path / "ours", tmp_path / "back", "--format", "meta-mtp")
    assert (tmp_path / "back/tokenizer.model").read_bytes() == (tmp_path / "meta/tokenizer.model").read_bytes()


def test_verify_sees_a_changed_weight(convert, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "meta")
    convert("import", tmp_path / "meta", tmp_path / "ours")
    figures = convert("verify", tmp_path / "meta", tmp_path / "ours")
    assert figures["equal"]
    assert len(figures["differences"]["random"]) == 3
    tensors["extra_heads.1.ffn_norm.weight"][5] += 0.5
    torch.save(tensors, tmp_path / "meta/consolidated.pth")
    done = subprocess.run(
        [sys.executable, "-m", "conversion", "verify", str(tmp_path / "meta"), str(tmp_path / "ours"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    first, second, third = json.loads(done.stdout)["differences"]["random"]
    assert max(first, second) <= 1e-4 < third
    assert "not the same weights" in done.stderr


def test_nan_equals_nothing(convert, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "meta")
    convert("import", tmp_path / "meta", tmp_path / "ours")
    tensors["extra_heads.1.ffn_norm.weight"][5] = float("nan")
    torch.save(tensors, tmp_path / "meta/consolidated.pth")
    with pytest.raises(Failure, match="not the same weights"):
        convert("verify", tmp_path / "meta", tmp_path / "ours")


def test_micro_models_and_cuts_of_real_ones(convert, tmp_path: Path):
    models = convert("micro", tmp_path / "made")["models"]
    assert [model["name"] for model in models] == ["micro-mtp", "micro-reference", "micro-reward"]
    for name, shape in (("micro-mtp", (1, 5, 4, 1024)), ("micro-reference", (1, 5, 1, 1024))):
        assert wmtp_jax.load_model(tmp_path / "made" / name)(np.arange(5)[None]).shape == shape
    assert len(set(wmtp_jax.load_model(tmp_path / "made/micro-reward").values(np.arange(5)[None])[0].tolist())) == 5

    tensors = random_checkpoint(tmp_path / "meta", n_layers=8, dim=256, n_heads=8, n_kv_heads=8)
    (cut,) = convert("micro", tmp_path / "cut", "--from", tmp_path / "meta")["models"]
    assert cut["name"] == "micro-mtp"
    config = cut["architecture"]
    assert [config[k] for k in ("dim", "n_layers", "n_heads", "vocab_size", "n_future_tokens")] == [128, 6, 4, 61, 3]
    convert("export", tmp_path / "cut/micro-mtp", tmp_path / "cut-meta", "--format", "meta-mtp")
    small = tensors_of(tmp_path / "cut-meta")
    assert torch.equal(small["tok_embeddings.weight"], tensors["tok_embeddings.weight"][:, :128])
    # Heads keep their first rotary pairs, so Meta's order shows the cut as a plain slice.
    assert torch.equal(small["layers.1.attention.wq.weight"], tensors["layers.1.attention.wq.weight"][:128, :128])
    assert torch.equal(
        small["extra_heads.0.feed_forward.w2.weight"], tensors["extra_heads.0.feed_forward.w2.weight"][:128, :352]
    )
    params = json.loads((tmp_path / "cut-meta/params.json").read_text())
    theirs = forward(small, params, torch.from_numpy(TOKENS)).numpy()
    np.testing.assert_allclose(wmtp_jax.load_model(tmp_path / "cut/micro-mtp")(TOKENS), theirs, atol=1e-4)

    save_starling(tmp_path / "rm")
    (reward,) = convert("micro", tmp_path / "cut", "--from", tmp_path / "rm")["models"]
    assert reward["name"] == "micro-reward"
    assert store.read_description(tmp_path / "cut/micro-reward").config.n_kv_heads == 1


def test_inspect_says_what_is_there(convert, tmp_path: Path, capsys):
    from conversion.__main__ import main

    save_llama(tmp_path / "hf", tie_word_embeddings=True)
    figures = convert("inspect", tmp_path / "hf")
    assert figures["format"] == "llama"
    assert figures["architecture"]["tie_embeddings"] is True
    assert figures["parameters"]["total"] * 4 == figures["bytes"]
    main(["inspect", str(tmp_path / "hf")])
    assert "model.layers.2.mlp.down_proj.weight" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    """Peak resident set of an import and an export: for six times the weights about the same.

    With a small limit on parts in flight: at its usual 256 MiB much of even the larger model would fit into it.
    """
    peaks = []
    for layers in (4, 24):
        folder = tmp_path / str(layers)
        random_checkpoint(folder / "meta", dim=640, n_layers=layers, n_heads=8, n_kv_heads=8, dtype=torch.bfloat16)
        script = (
            "import re\nfrom conversion.__main__ import main\nfrom wmtp_jax.models import store\n"
            "store._BYTES_IN_FLIGHT = 2**24\n"
            f"main(['import', '{folder}/meta', '{folder}/ours'])\n"
            f"main(['export', '{folder}/ours', '{folder}/hf', '--format', 'huggingface'])\n"
            # Not ru_maxrss: that starts at the resident set of the process it was forked from.
            "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    size = (tmp_path / "24/meta/consolidated.pth").stat().st_size
    assert size > 200e6
    assert peaks[1] - peaks[0] < 0.25 * size
