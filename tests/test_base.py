"""Runs that keep only what they trained, on a base that they name: read, resumed, exported, scored with it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
import yaml
from flax import nnx

import wmtp_jax
from wmtp_jax import complete, score, train
from wmtp_jax.errors import UserError
from wmtp_jax.load import find_model
from wmtp_jax.models import store
from wmtp_jax.training.layout import SETTINGS_FILE
from wmtp_jax.training.saved import saved_steps

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 12))
LORA = ("training.train=lora", "lora={rank: 2, alpha: 4, dropout: 0.1}", "checkpoint.save_every_steps=2")


@pytest.fixture(scope="module")
def runs(train_command, tmp_path_factory) -> Path:
    """A folder of runs: ``policy`` (random at first, with adapters), ``critic`` (its head), ``tuned`` (adapters on the
    policy's bfloat16 weights), ``again`` (adapters on that, with the critic).
    """
    folder = tmp_path_factory.mktemp("runs")
    train_command(folder / "policy", *LORA, "training.max_steps=2")
    policy = f"model.path={folder / 'policy'}"
    train_command(folder / "critic", policy, "training.max_steps=2", "model.param_dtype=bfloat16", stage="critic")
    train_command(folder / "tuned", policy, *LORA, "training.max_steps=4", "model.param_dtype=bfloat16")
    more = (f"model.path={folder / 'tuned'}", f"experiment.critic_checkpoint={folder / 'critic'}")
    train_command(folder / "again", *more, *LORA, "training.max_steps=2", stage="verifiable")
    return folder


def leaves(path: Path | str) -> dict[str, np.ndarray]:
    state = nnx.to_pure_dict(nnx.state(wmtp_jax.load_model(str(path)), nnx.Param))
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in jax.tree_util.tree_leaves_with_path(state)}


def own(run: Path, step: int, folder: str = store.PARAMS_FOLDER) -> dict:
    return store.open_arrays(run / f"checkpoints/{step}", folder)


def test_only_what_was_trained_is_saved(runs: Path):
    assert "trunk.attention.wq.kernel" in own(runs / "policy", 2)  # nothing else holds its random weights
    assert store.read_description(runs / "policy").base is None
    assert not (runs / "tuned/checkpoints/4/params").exists()
    assert {name.partition(".")[0] for name in own(runs / "tuned", 4, store.ADAPTER_FOLDER)} == {"trunk", "heads"}
    for run in ("critic", "again"):
        arrays = own(runs / run, 2)
        assert {name.partition(".")[0] for name in arrays} == {"value_head"}
        assert {array.dtype.name for array in arrays.values()} == {"float32"}
    for run, base in (("critic", "policy"), ("tuned", "policy"), ("again", "tuned")):
        found = find_model(runs / run)
        assert find_model(found.base.path).directory == find_model(runs / base).directory
    assert not (runs / "critic/checkpoints/2/adapter").exists()


def test_a_run_that_goes_on_keeps_the_step_that_others_rest_on(runs: Path, train_command, tmp_path: Path):
    shutil.copytree(runs / "policy", tmp_path / "policy")
    more = ("training.max_steps=4", "checkpoint.save_every_steps=1", "checkpoint.save_total_limit=1")
    train_command(tmp_path / "policy", *LORA, *more, "checkpoint.save_best=false")
    assert saved_steps(tmp_path / "policy") == [2, 4]
    (tmp_path / "policy/needed_steps.json").write_text("[2, ")
    with pytest.raises(UserError, match=r"needed_steps\.json: is damaged"):
        train_command(tmp_path / "policy", *LORA, *more, "training.max_steps=5")


def test_a_run_is_read_with_its_base_and_the_base_of_that(runs: Path):
    policy, tuned, again, critic = (leaves(runs / name) for name in ("policy", "tuned", "again", "critic"))
    name, kept = "['trunk']['attention']['wq']['kernel']", "['tok_embeddings']['embedding']"
    a, b = (own(runs / "tuned", 4, store.ADAPTER_FOLDER)[f"trunk.attention.wq.lora_{x}"].read().result() for x in "ab")
    assert np.abs(b).max() > 1e-3
    np.testing.assert_allclose(tuned[name], policy[name] + 2.0 * a @ b, atol=1e-6)
    assert np.abs(again[name] - tuned[name]).max() > 1e-4
    for model in (tuned, again, critic):
        np.testing.assert_array_equal(model[kept], policy[kept])
    np.testing.assert_array_equal(critic[name], policy[name])
    heads = [np.concatenate([leaf.ravel() for n, leaf in m.items() if "value_head" in n]) for m in (critic, again)]
    assert 0 < np.abs(heads[0] - heads[1]).max() < 0.5  # the joint critic went on from the critic's head


def test_resumed_equals_uninterrupted_also_where_the_base_has_moved(runs: Path, train_command, tmp_path, monkeypatch):
    """A relative base counts from the run: the folder of both can be moved, or the base alone before a resume."""
    (tmp_path / "storage/models").mkdir(parents=True)
    shutil.copytree(runs / "policy", tmp_path / "storage/models/policy")
    monkeypatch.chdir(tmp_path)
    settings = (*LORA, "model.param_dtype=bfloat16")
    train_command(Path("storage/run"), "model.path=storage/models/policy", *settings, "training.max_steps=2")
    assert store.read_description(Path("storage/run")).base.path == "../models/policy@2"
    (tmp_path / "storage").rename(tmp_path / "volume")
    run = tmp_path / "volume/run"
    assert wmtp_jax.load_model(str(run))(TOKENS).shape == (2, 12, 2, 300)
    (tmp_path / "volume/models/policy").rename(tmp_path / "elsewhere")
    moved = f"model.path={tmp_path / 'elsewhere'}"
    assert train_command(run, moved, *settings, "training.max_steps=4")["first_step"] == 2
    assert find_model(run).base.path == f"{tmp_path / 'elsewhere'}@2"
    jax.tree.map(np.testing.assert_array_equal, leaves(f"{run}@latest"), leaves(f"{runs / 'tuned'}@latest"))
    with pytest.raises(UserError, match=r"has not the weights that .* was trained on"):
        train_command(run, f"model.path={runs / 'tuned'}", *settings, "training.max_steps=6")


def test_everything_else_reads_it_too(runs: Path, convert, tiny_data: Path, tmp_path: Path, capsys):
    ours = np.asarray(wmtp_jax.load_model(str(runs / "tuned"))(TOKENS))[:, :, 0]
    convert("export", runs / "policy", tmp_path / "policy", "--format", "huggingface", "--dtype", "float32")
    figures = convert("export", runs / "tuned", tmp_path / "tuned", "--format", "huggingface", "--dtype", "float32")
    assert figures["adapter_merged"]
    assert convert("verify", runs / "tuned", tmp_path / "tuned")["equal"]
    convert("export", runs / "tuned", tmp_path / "adapter", "--format", "huggingface", "--adapter-only")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    with torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    convert("export", runs / "again", tmp_path / "again", "--format", "meta-mtp")
    assert convert("verify", runs / "again", tmp_path / "again")["equal"]
    seen = convert("inspect", runs / "again")
    assert seen["base"]["path"].endswith("tuned@4")
    assert {"trunk.attention.wq.kernel", "value_head.kernel"} <= {tensor["name"] for tensor in seen["tensors"]}
    scored = ["--data", str(tiny_data), "--output", str(tmp_path / "s.arrow"), "--max-length", "64", "--json"]
    assert score.main(["--model", str(runs / "critic"), *scored]) == 0
    capsys.readouterr()
    asked = ["--model", str(runs / "tuned"), "--data", str(tiny_data), "--count", "1", "--max-length", "64", "--json"]
    assert complete.main(asked) == 0
    assert len(json.loads(capsys.readouterr().out)["completions"]) == 1
    with pytest.raises(UserError, match="which would be replaced"):
        convert("export", runs / "tuned", runs / "policy", "--format", "huggingface", "--overwrite")


def test_a_base_that_is_gone_or_has_changed_is_named(runs: Path, convert, tiny_data: Path, tmp_path: Path):
    for name in ("policy", "tuned", "again"):
        shutil.copytree(runs / name, tmp_path / name)
        description = tmp_path / name / store.CONFIG_FILE
        content = json.loads(description.read_text())
        if name != "policy":  # as it stands there where model.path is relative
            content["base"]["path"] = f"../{Path(content['base']['path']).name}"
            description.write_text(json.dumps(content))
    jax.tree.map(np.testing.assert_array_equal, leaves(tmp_path / "again"), leaves(runs / "again"))
    weights = next(path for path in (tmp_path / "policy/checkpoints/2/params").rglob("*") if path.stat().st_size > 5000)
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    message = r"tuned@4 holds only what was trained on its base .*policy@2, whose weights are not those any more"
    with pytest.raises(UserError, match=message):
        wmtp_jax.load_model(str(tmp_path / "again"))
    with pytest.raises(UserError, match=message):
        convert("inspect", tmp_path / "tuned")
    with pytest.raises(UserError, match=message):
        convert("export", tmp_path / "tuned", tmp_path / "out", "--format", "huggingface")
    shutil.rmtree(tmp_path / "policy")
    message = (
        r"tuned holds only what was trained; .* is in its base ../policy@2 .*: no such model.*write where it is now"
    )
    with pytest.raises(UserError, match=message):
        find_model(tmp_path / "again")
    asked = ["--model", str(tmp_path / "tuned"), "--data", str(tiny_data), "--output", str(tmp_path / "s.arrow")]
    with pytest.raises(UserError, match=message):
        score.main(asked)


def test_a_critic_of_an_earlier_version_resumes(runs: Path, train_command, tmp_path: Path):
    """Its settings say ``critic.train``, and its checkpoints hold the whole model: both stay as they are."""
    run = tmp_path / "run"
    shutil.copytree(runs / "critic", run)
    values = yaml.safe_load((run / SETTINGS_FILE).read_text())
    del values["training"]["train"], values["lora"]["dropout"]
    values["critic"]["train"] = "head"
    (run / SETTINGS_FILE).write_text(yaml.safe_dump(values))
    found = store.read_description(run)
    whole = nnx.to_pure_dict(nnx.state(wmtp_jax.load_model(str(run)), nnx.Param))
    store.write_description(run, found.config, found.source)
    shutil.rmtree(run / "checkpoints/2/params")
    (run / "checkpoints/2/checksums.json").unlink()  # nor were there checksums
    metadata = run / "checkpoints/2/_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "custom_metadata": {}}))
    store.write_params(run / "checkpoints/2", whole)
    settings = (f"model.path={runs / 'policy'}", "model.param_dtype=bfloat16")
    with pytest.raises(UserError, match=r"training.train: head there, lora now"):
        train_command(run, *settings, "training.train=lora", "training.max_steps=3", stage="critic")
    assert train_command(run, *settings, "training.max_steps=3", stage="critic")["first_step"] == 2
    assert "trunk.attention.wq.kernel" in own(run, 3)


def test_dry_run_counts_adapters(train_command, capsys):
    figures = train_command(None, "training.train=lora", "lora.rank=2", flags=("--dry-run",))
    block = 2 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64))
    assert figures["parameters"]["lora"] == figures["trained_parameters"] == 4 * block
    full = train_command(None, flags=("--dry-run",))
    assert full["trained_parameters"] == full["parameters"]["total"]
    assert train.main(["--stage", "critic", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "parameters trained" in shown
    assert "4,097" in shown


def test_a_bfloat16_base_is_read_in_the_type_asked_for(runs: Path):
    model = wmtp_jax.load_model(str(runs / "tuned"), param_dtype=jnp.bfloat16)
    assert model.trunk.attention.wq.kernel[...].dtype == jnp.bfloat16
