"""Damaged and hostile checkpoints: a clear error, and nothing half-written."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conversion_checkpoints import random_checkpoint, save_llama, save_starling

from wmtp_jax.errors import Failure, UserError
from wmtp_jax.models import store


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("hostile-code-ran"),))


@pytest.fixture
def refused(convert, tmp_path: Path):
    """Imports ``tmp_path/src``, which must fail with a message, and leave nothing."""

    def run(message: str, *more: str) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=message) as error:
            convert("import", tmp_path / "src", tmp_path / "dst", *more)
        assert sorted(tmp_path.iterdir()) == before
        return str(error.value)

    return run


@pytest.mark.parametrize("file", ["consolidated.pth", "pytorch_model.bin"])
def test_code_in_a_pickle_is_refused_and_not_run(file: str, refused, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    for new_format in (True, False):
        hostile = {"norm.weight": Hostile()}
        torch.save(hostile, tmp_path / "src" / file, _use_new_zipfile_serialization=new_format)
        refused("weights-only")
    assert not (tmp_path / "hostile-code-ran").exists()


def test_truncated_files(refused, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    path = tmp_path / "src/consolidated.pth"
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("copy or download the file again")
    path.unlink()
    save_llama(tmp_path / "src")
    path = tmp_path / "src/model.safetensors"
    whole = path.read_bytes()
    for length in (0, 5, 500, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused("damaged safetensors file")


def test_missing_shards_and_indices(refused, tmp_path: Path):
    save_llama(tmp_path / "src", shards=3)
    index = tmp_path / "src/model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"].values())
    for change, message in (
        ({"model.layers.9.x": first, "model.layers.8.y": first}, r"do not hold:\n  model.layers.9.x in .*\n  .*8.y"),
        ({"model.norm.weight": "../elsewhere.safetensors"}, "outside its folder"),
        ({"model.norm.weight": "absent.safetensors"}, "shards are missing: absent.safetensors"),
    ):
        index.write_text(json.dumps({**content, "weight_map": content["weight_map"] | change}))
        refused(message)
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        refused("not an index of shards")
    index.write_text(json.dumps(content))
    (tmp_path / "src" / first).unlink()
    refused(f"shards are missing: {first}")
    index.unlink()
    refused("but not their index")


def test_all_wrong_tensors_are_listed(refused, tmp_path: Path):
    save_llama(tmp_path / "src", binary=True)
    path = tmp_path / "src/pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    state["stray"] = state.pop("model.layers.1.mlp.up_proj.weight")
    state["another"] = torch.ones(2)
    state["model.norm.weight"] = torch.ones(3)
    state["lm_head.weight"] = state["lm_head.weight"].T.contiguous()
    state["model.embed_tokens.weight"] = torch.ones(71, 60, dtype=torch.int8)
    torch.save(state, path)
    text = refused("does not hold the tensors")
    for line in (
        "missing: model.layers.1.mlp.up_proj.weight (92, 60)",
        "unexpected: stray (92, 60)",
        "unexpected: another (2,)",
        "shape: model.norm.weight is (3,), expected (60,)",
        "shape: lm_head.weight is (60, 71), expected (71, 60)",
        "type: model.embed_tokens.weight is int8",
    ):
        assert line in text


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_nan_is_reported_with_every_tensor_that_has_it(value: float, dtype: torch.dtype, refused, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "src", dtype=dtype)
    tensors["layers.1.attention.wv.weight"][3, 4] = value
    tensors["extra_heads.0.ffn_norm.weight"][:2] = value
    torch.save(tensors, tmp_path / "src/consolidated.pth")
    text = refused("NaN or infinite")
    assert "layers.1.attention.wv.weight: 1 values" in text
    assert "extra_heads.0.ffn_norm.weight: 2 values" in text


def test_an_error_while_much_is_being_written_leaves_nothing(refused, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "src", dim=256, n_layers=12, n_heads=8, n_kv_heads=8)
    tensors["layers.3.ffn_norm.weight"][0] = float("nan")
    torch.save(tensors, tmp_path / "src/consolidated.pth")
    for _ in range(6):  # without waiting for the writes in flight, about every second one left a folder
        refused("layers.3.ffn_norm.weight: 1 values")


def test_values_too_large_for_the_type_asked_for(refused, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "src")
    tensors["norm.weight"][0] = 70000.0
    torch.save(tensors, tmp_path / "src/consolidated.pth")
    assert "too large for that type" in refused(r"infinite values in float16:\n  norm.weight", "--dtype", "float16")


def test_an_export_that_would_become_infinite(convert, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "src")
    tensors["norm.weight"][0] = 70000.0
    torch.save(tensors, tmp_path / "src/consolidated.pth")
    convert("import", tmp_path / "src", tmp_path / "dst")
    with pytest.raises(UserError, match=r"norm.weight has 1 NaN or infinite values in float16"):
        convert("export", tmp_path / "dst", tmp_path / "out", "--format", "meta-mtp", "--dtype", "float16")
    assert not (tmp_path / "out").exists()


def test_sources_that_are_no_models(refused, tmp_path: Path):
    refused("no such file or directory")
    (tmp_path / "src").mkdir()
    refused("holds no weights; expected one of consolidated.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "src/pytorch_model.bin")
    refused("of no known kind; its tensors are a")
    torch.save([torch.ones(2)], tmp_path / "src/pytorch_model.bin")
    refused("expected a dictionary of tensors")
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "src/model.safetensors")
    refused("of no known kind")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / "src" / name).unlink()
    save_llama(tmp_path / "src")
    config = tmp_path / "src/config.json"
    content = json.loads(config.read_text())
    for change, message in (
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn' is not read"),
        ({"num_attention_heads": 7, "head_dim": None}, "not a multiple of n_heads 7"),
        ({"hidden_size": "60"}, "dim is '60'"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ({"rope_parameters": "x"}, "rope_parameters is 'x'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
    ):
        config.write_text(json.dumps(content | change))
        refused(message)
    del content["num_attention_heads"]
    config.write_text(json.dumps(content))
    refused("the field 'num_attention_heads' is missing")
    config.unlink()
    refused(r"config.json: no such file; it describes the architecture")


def test_a_reward_model_whose_heads_cannot_be_known(refused, tmp_path: Path):
    save_starling(tmp_path / "src")
    (tmp_path / "src/config.json").unlink()
    refused("number of attention heads does not follow")


def test_wrong_format_is_named(refused, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    refused("is not llama: model.embed_tokens.weight is not in it, but", "--format", "llama")
    refused("is not starling-rm", "--format", "starling-rm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multiple_of": 0}, "multiple_of is 0; it must be a whole number above 0"),
        ({"dim": "48"}, "dim is '48'"),
        ({"dim": float("inf")}, "dim is inf"),
        ({"ffn_dim_multiplier": "1.3"}, "ffn_dim_multiplier is '1.3'"),
        ({"ffn_dim_multiplier": float("nan")}, "ffn_dim_multiplier is nan"),
        ({"n_layers": 100_000}, "100,000 layers, but"),
        ({"n_heads": -4}, "n_heads is -4"),
    ],
)
def test_params_json_that_cannot_be(change: dict, message: str, refused, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    path = tmp_path / "src/params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(message)


def test_odd_contents_of_a_file(refused, convert, tmp_path: Path):
    tensors = random_checkpoint(tmp_path / "src")
    path = tmp_path / "src/consolidated.pth"
    torch.save({**tensors, 0: torch.ones(2)}, path)
    refused("expected a dictionary of tensors by name")
    torch.save({**tensors, "norm.weight": torch.empty(48, device="meta")}, path)
    refused("norm.weight has no values|norm.weight")
    torch.save({**tensors, "norm.weight": torch.ones(48, dtype=torch.complex64)}, path)
    refused("type: norm.weight is void")
    torch.save({**tensors, "rope.freqs": torch.ones(6, dtype=torch.complex64)}, path)  # passed over
    convert("import", tmp_path / "src", tmp_path / "dst")


def test_where_a_model_cannot_be_written(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    convert("import", tmp_path / "src", tmp_path / "dst")
    (tmp_path / "src").rename(tmp_path / "dst/original")
    with pytest.raises(UserError, match=r"lies in .*, which would be replaced"):
        convert("import", tmp_path / "dst/original", tmp_path / "dst", "--overwrite")
    assert (tmp_path / "dst/original/consolidated.pth").exists()
    for name in ("a[b]", "a\\b"):  # Orbax would take the name for a pattern
        with pytest.raises(UserError, match="or a backslash in its name"):
            convert("import", tmp_path / "dst/original", tmp_path / name)
    for name in ("a?b", "a#b", "가 나"):
        convert("import", tmp_path / "dst/original", tmp_path / name)
        assert convert("inspect", tmp_path / name)["format"] == "wmtp_jax"


def test_a_link_to_nowhere_is_named(refused, tmp_path: Path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/model.safetensors").symlink_to(tmp_path / "blobs/absent")
    refused("model.safetensors: a link to nowhere")


def test_destinations(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    convert("import", tmp_path / "src", tmp_path / "dst")
    with pytest.raises(UserError, match="exists; give another destination, or --overwrite"):
        convert("import", tmp_path / "src", tmp_path / "dst")
    convert("import", tmp_path / "src", tmp_path / "dst", "--overwrite", "--dtype", "bfloat16")
    assert {t["dtype"] for t in convert("inspect", tmp_path / "dst")["tensors"]} == {"bfloat16"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("precious")
    for command in (("import", tmp_path / "src"), ("export", tmp_path / "dst", "--format", "meta-mtp")):
        with pytest.raises(UserError, match=r"is no .* of ours and is not replaced"):
            convert(command[0], command[1], tmp_path / "home", "--overwrite", *command[2:])
    shutil.copytree(tmp_path / "dst", tmp_path / "model")
    for folder in ("src", "model"):  # neither a download nor a model of ours is an export
        with pytest.raises(UserError, match="is no export of ours"):
            convert("export", tmp_path / "dst", tmp_path / folder, "--format", "meta-mtp", "--overwrite")
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        convert("import", tmp_path / "src", tmp_path / "file", "--overwrite")
    with pytest.raises(UserError, match="--shards 0"):
        convert("export", tmp_path / "dst", tmp_path / "out", "--format", "huggingface", "--shards", "0")
    with pytest.raises(UserError, match="has no adapter"):
        convert("export", tmp_path / "dst", tmp_path / "out", "--format", "huggingface", "--adapter-only")
    more = ("--format", "huggingface", "--adapter-only", "--dtype", "float32")
    with pytest.raises(UserError, match="leave out --dtype and --shards"):
        convert("export", tmp_path / "dst", tmp_path / "out", *more)
    with pytest.raises(UserError, match="is a model directory, not a run"):
        convert("inspect", f"{tmp_path / 'dst'}@17")
    with pytest.raises(UserError, match="no such model"):
        convert("export", tmp_path / "absent", tmp_path / "out", "--format", "huggingface")
    with pytest.raises(UserError, match="`import` it first"):
        convert("export", tmp_path / "src", tmp_path / "out", "--format", "huggingface")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "file", "home", "src"]


def test_a_full_disk(tmp_path: Path, monkeypatch, convert):
    random_checkpoint(tmp_path / "src", dim=256)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(Failure, match=r"GB are needed, 0.0 GB are free"):
            convert("import", tmp_path / "src", tmp_path / "dst")
    convert("import", tmp_path / "src", tmp_path / "whole")
    # The system itself refuses to write on: no file may be larger than this, and a matrix here is.
    limit = 200_000
    for arguments in (
        ["import", str(tmp_path / "src"), str(tmp_path / "dst")],
        ["export", str(tmp_path / "whole"), str(tmp_path / "dst"), "--format", "huggingface"],
        ["export", str(tmp_path / "whole"), str(tmp_path / "dst"), "--format", "meta-mtp"],
    ):
        script = (
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "from conversion.__main__ import main; from wmtp_jax.errors import run_command\n"
            f"run_command(main, {arguments})"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "the disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["src", "whole"]


def test_a_kill_leaves_no_half_model(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src", dim=512, n_layers=30, n_heads=8, n_kv_heads=8)
    command = [sys.executable, "-m", "conversion", "import", str(tmp_path / "src"), str(tmp_path / "dst")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "importing" not in process.stderr.readline():  # in the middle of writing
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not (tmp_path / "dst").exists()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name]  # left lying, and named as what it is
    convert("import", tmp_path / "src", tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "src"]


def test_what_another_process_is_writing_is_left_alone(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    for name in ("dst.partial-00000001", "dst.partial-00000002", "other.partial-00000003"):
        (tmp_path / name).mkdir()
    held = os.open(tmp_path / "dst.partial-00000001", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    convert("import", tmp_path / "src", tmp_path / "dst")
    os.close(held)
    assert {p.name for p in tmp_path.iterdir()} == {"dst", "dst.partial-00000001", "other.partial-00000003", "src"}


def test_a_model_that_was_being_replaced_when_the_machine_went_is_put_back(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    convert("import", tmp_path / "src", tmp_path / "dst")
    (tmp_path / "dst").rename(tmp_path / "dst.replaced-0123abcd")
    with pytest.raises(UserError, match="exists"):
        convert("import", tmp_path / "src", tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "src"]


def test_damaged_model_directories(convert, tmp_path: Path):
    random_checkpoint(tmp_path / "src")
    convert("import", tmp_path / "src", tmp_path / "dst")
    assert store.is_model_directory(tmp_path / "dst")
    (tmp_path / "dst/params/_METADATA").write_text("{")
    export = ("export", tmp_path / "dst", tmp_path / "out", "--format", "meta-mtp")
    for command in (("inspect", tmp_path / "dst"), export):
        with pytest.raises(UserError, match="params: cannot be read"):
            convert(*command)
    (tmp_path / "dst/config.json").write_text("[]")
    with pytest.raises(UserError, match="not a model description"):
        convert("inspect", tmp_path / "dst")


def test_help_and_exit_codes(tmp_path: Path):
    for arguments, code, text in (
        (["--help"], 0, "examples:"),
        (["import", "--help"], 0, "--format"),
        (["nonsense"], 2, "invalid choice"),
        (["import", "absent", "dst"], 2, "error: absent: no such file or directory"),
    ):
        command = [sys.executable, "-m", "conversion", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == code
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
