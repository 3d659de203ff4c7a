"""LoRA adapters: worked into the weights on loading and export, and alone in PEFT's format."""

import shutil
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import wmtp_jax
from wmtp_jax.errors import UserError
from wmtp_jax.models import store
from wmtp_jax.models.lora import LoRAConfig, find_targets, init_adapter

TOKENS = np.random.default_rng(0).integers(0, 1024, (2, 12))
ADAPTER = LoRAConfig(rank=3, alpha=6.0, targets=("wq", "wo", "w1", "w2", "output"))


@pytest.fixture(scope="module")
def adapted(convert, tmp_path_factory) -> Path:
    """``micro-mtp`` with a random adapter, beside ``micro-mtp`` as it was (``base``)."""
    folder = tmp_path_factory.mktemp("adapted")
    convert("micro", folder)
    shutil.copytree(folder / "micro-mtp", folder / "base")
    config = store.read_description(folder / "base").config
    adapter = init_adapter(store.build(config)[1], ADAPTER, seed=0)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    adapter = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), adapter)
    store.write_params(folder / "micro-mtp", adapter, store.ADAPTER_FOLDER)
    store.write_description(folder / "micro-mtp", config, {}, ADAPTER)
    return folder


def test_a_fresh_adapter_changes_nothing_and_fits_the_targets(adapted: Path):
    config = store.read_description(adapted / "base").config
    shapes = store.build(config)[1]
    adapter = init_adapter(shapes, ADAPTER, seed=0)
    assert set(adapter) == {"trunk", "heads", "output"}
    assert set(adapter["trunk"]["attention"]) == {"wq", "wo"}
    assert adapter["heads"]["feed_forward"]["w2"]["lora_a"].shape == (4, 352, 3)
    assert adapter["heads"]["feed_forward"]["w2"]["lora_b"].shape == (4, 3, 128)
    assert not np.any(adapter["trunk"]["attention"]["wq"]["lora_b"])
    some = LoRAConfig(rank=1, alpha=1.0, targets=(r"trunk\.attention\.w[qv]$", "output$"))
    assert find_targets(shapes, some) == ["output", "trunk.attention.wq", "trunk.attention.wv"]
    with pytest.raises(
        ValueError, match=r"'w9' matches no projection; there are: heads.attention.wk, .*, output, trunk"
    ):
        find_targets(shapes, LoRAConfig(rank=1, alpha=1.0, targets=("wq", "w9")))
    with pytest.raises(ValueError, match="is no regular expression"):
        LoRAConfig(rank=1, alpha=1.0, targets=("w[",))


def test_it_is_worked_in_on_loading(adapted: Path):
    base, merged = (wmtp_jax.load_model(adapted / name) for name in ("base", "micro-mtp"))
    assert float(abs(base(TOKENS) - merged(TOKENS)).max()) > 0.05
    arrays = store.open_arrays(adapted / "micro-mtp", store.ADAPTER_FOLDER)
    a, b = (arrays[f"trunk.attention.wq.lora_{x}"][1].read().result() for x in "ab")
    np.testing.assert_allclose(
        merged.trunk.attention.wq.kernel[...][1], base.trunk.attention.wq.kernel[...][1] + 2.0 * a @ b, atol=1e-6
    )


def test_it_is_merged_on_export(adapted: Path, convert, tmp_path: Path):
    ours = np.asarray(wmtp_jax.load_model(adapted / "micro-mtp")(TOKENS))
    figures = convert("export", adapted / "micro-mtp", tmp_path / "hf", "--format", "huggingface")
    assert figures["adapter_merged"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.from_numpy(TOKENS)).logits, ours[:, :, 0], atol=1e-4)
    convert("export", adapted / "micro-mtp", tmp_path / "meta", "--format", "meta-mtp")
    assert convert("verify", adapted / "micro-mtp", tmp_path / "meta")["heads"] == 4
    assert convert("inspect", adapted / "micro-mtp")["adapter"]["rank"] == 3


def test_peft_loads_it_alone(adapted: Path, convert, tmp_path: Path):
    convert("export", adapted / "base", tmp_path / "hf", "--format", "huggingface")
    arguments = ("export", adapted / "micro-mtp", tmp_path / "adapter", "--format")
    with pytest.raises(UserError, match="goes with --format huggingface"):
        convert(*arguments, "meta-mtp", "--adapter-only")
    convert(*arguments, "huggingface", "--adapter-only")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS)).logits.numpy()
    ours = np.asarray(wmtp_jax.load_model(adapted / "micro-mtp")(TOKENS))[:, :, 0]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
