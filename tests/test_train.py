"""The training command from end to end: it learns, resumes bit for bit, and refuses what does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from metric_lines import untimed_metrics

import wmtp_jax
from wmtp_jax import train
from wmtp_jax.data.tokenize import train_tokenizer
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.saved import saved_steps

ROOT = Path(__file__).parent.parent
LONG = ("training.n_epochs=3", "checkpoint.save_every_steps=10")


@pytest.fixture(scope="module")
def whole(train_command, tmp_path_factory) -> tuple[Path, dict]:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train_command(folder, *LONG)


def leaves(path: str) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(nnx.state(wmtp_jax.load_model(path), nnx.Param))]


def test_it_learns_and_writes_what_it_says(whole):
    folder, figures = whole
    assert figures["steps"] == figures["best_step"] == 37
    assert all(figures["validation"][f"val/head_{k}_ce_loss"] < figures["unigram"][k - 1] for k in (1, 2))
    assert saved_steps(folder) == [20, 30, 37]  # save_total_limit 3; the best is among them
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "run.json",
        "run.lock",
        "samples.json",
        "settings.yaml",
        "tokenizer",
    ]
    lines = read_metrics(folder)
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == list(range(1, 38))
    assert [line["step"] for line in lines if "val/loss" in line] == [10, 20, 30, 37]
    for name in (
        "train/loss",
        "train/unweighted_ce_loss",
        "train/head_2_ce_loss",
        "train/grad_norm",
        "train/learning_rate",
        "perf/step_seconds",
        "perf/tokens_per_second",
        "perf/model_flops_utilization",
        "perf/data_wait_fraction",
        "system/device_memory_gb",
    ):
        assert np.isfinite(lines[0][name]), name
    assert figures["tokens_trained"] > 0
    settings = load_settings(folder / "settings.yaml")
    assert settings.training.n_epochs == 3


def test_resumed_equals_uninterrupted_bit_for_bit(whole, train_command, tmp_path: Path):
    folder, figures = whole
    first = train_command(tmp_path / "run", *LONG, "training.max_steps=17")
    assert first["steps"] == 17
    second = train_command(tmp_path / "run", *LONG)
    assert second["first_step"] == 17
    assert second["steps"] == 37
    for ours, theirs in zip(leaves(f"{tmp_path / 'run'}@latest"), leaves(f"{folder}@latest"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    validated_more = [line for line in untimed_metrics(tmp_path / "run") if line["step"] != 17 or "train/loss" in line]
    assert validated_more == untimed_metrics(folder)
    assert second["tokens_trained"] == figures["tokens_trained"]


def test_resume_after_a_kill_drops_what_was_not_saved(whole, train_command, tmp_path: Path):
    """A copy of the run as a kill after step 37 leaves it: metrics are ahead of the last checkpoint."""
    folder, _ = whole
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/37")
    (tmp_path / "run/checkpoints/37.orbax-checkpoint-tmp").mkdir()  # what an interrupted save leaves
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 38, "train/lo')  # a line cut short
    assert train_command(tmp_path / "run", *LONG)["first_step"] == 30
    for ours, theirs in zip(leaves(f"{tmp_path / 'run'}@latest"), leaves(f"{folder}@latest"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert untimed_metrics(tmp_path / "run") == untimed_metrics(folder)


def test_a_finished_run_says_so_and_changes_nothing(whole, train_command, capsys):
    folder, figures = whole
    before = (folder / "metrics.jsonl").read_bytes()
    again = train_command(folder, *LONG)
    assert "is finished: step 37 of 37" in capsys.readouterr().err
    assert again["best_val/loss"] == figures["best_val/loss"]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_another_mesh_gives_the_same_run(whole, train_command, tmp_path: Path):
    folder, _ = whole
    train_command(tmp_path / "run", *LONG, "training.max_steps=20")
    train_command(tmp_path / "run", *LONG, "training.max_steps=30", "runtime.mesh={data: 2, fsdp: 2, tensor: 1}")
    fewer_readers = (*LONG, "runtime.mesh={data: 1, fsdp: 1, tensor: 4}")
    with pytest.raises(UserError, match=r"rows_per_step .*: 8 there, 2 now"):
        train_command(tmp_path / "run", *fewer_readers)
    train_command(tmp_path / "run", *fewer_readers, "training.gradient_accumulation_steps=8")
    for ours, theirs in zip(leaves(f"{tmp_path / 'run'}@latest"), leaves(f"{folder}@latest"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_best_latest_and_numbered_steps(whole, tmp_path: Path):
    from wmtp_jax.load import find_model

    folder, figures = whole
    for spec, step in (
        ("", figures["best_step"]),
        ("@best", figures["best_step"]),
        ("@latest", 37),
        ("@20", 20),
    ):
        assert find_model(f"{folder}{spec}").directory.name == str(step)
    strange = tmp_path / "anna@home"  # an @ in a folder's name is no step
    strange.symlink_to(folder.parent)
    assert find_model(f"{strange / folder.name}@20").directory.name == "20"
    assert find_model(strange / folder.name).directory.name == str(figures["best_step"])
    with pytest.raises(UserError, match=r"no such step; saved are 20, 30, 37"):
        wmtp_jax.load_model(f"{folder}@11")


def test_an_empty_folder_is_not_taken_for_a_checkpoint(whole, tmp_path: Path):
    shutil.copytree(whole[0], tmp_path / "run")
    (tmp_path / "run/checkpoints/99").mkdir()
    assert saved_steps(tmp_path / "run") == [20, 30, 37]


def test_fine_tuning_starts_from_a_run(whole, train_command, tmp_path: Path):
    folder, figures = whole
    more = (f"model.path={folder}", "training.learning_rate=1e-6", "training.max_steps=1")
    tuned = train_command(tmp_path / "tuned", *more)
    assert tuned["val/loss"] == pytest.approx(figures["best_val/loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.learning_rate=1e-4", r"training.learning_rate: 0.01 there, 0.0001 now"),
        ("data_sampling.seed=7", "data_sampling.seed: 42 there, 7 now"),
    ],
)
def test_a_run_directory_of_other_settings_is_refused(whole, train_command, change: str, message: str):
    folder, _ = whole
    before = (folder / "settings.yaml").read_bytes()
    with pytest.raises(UserError, match=message):
        train_command(folder, *LONG, change)
    assert (folder / "settings.yaml").read_bytes() == before


def test_a_run_directory_of_other_data_is_refused(whole, train_command, changed_data: Path):
    with pytest.raises(UserError, match="data_fingerprint"):
        train_command(whole[0], *LONG, f"dataset.path={changed_data}")


def test_a_run_goes_on_with_a_copy_of_its_data(whole, train_command, tiny_data: Path, tmp_path: Path):
    shutil.copytree(tiny_data, tmp_path / "data")
    assert train_command(whole[0], *LONG, f"dataset.path={tmp_path / 'data'}")["first_step"] == 37


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset.path=absent", "absent: no such data set; make it with"),
        ("model.path=absent", "absent: no such model"),
        ("model.tokenizer=absent", "no tokenizer there"),
        ("data_sampling.n_samples=121", "data_sampling.n_samples asks for 121, but there are 120 correct"),
        (
            "data_sampling.n_validation_samples=41",
            "n_validation_samples asks for 41, but there are 40 correct solutions",
        ),
        ("dataset.max_length=8", "longer than dataset.max_length 8"),
        ("model.architecture.vocab_size=200", "vocabulary is 200 .*vocab_size to at least 300"),
        ("training.batch_size=512", "do not fill one step of 4096 rows"),
        ("runtime.mesh={data: 3, fsdp: 1, tensor: 1}", "number of devices, which is 4"),
        ("runtime.mesh={data: -1, fsdp: 3, tensor: 1}", "number of devices, which is 4"),
    ],
)
def test_bad_input_leaves_nothing(train_command, tmp_path: Path, change: str, message: str):
    with pytest.raises(UserError, match=message):
        train_command(tmp_path / "run", change)
    assert not (tmp_path / "run").exists()


def test_another_tokenizer_than_that_of_the_data_is_refused(train_command, tiny_data: Path, tmp_path: Path):
    train_tokenizer(["print(input())"] * 9, 300, tmp_path / "tokenizer")
    named = f"model.tokenizer={tmp_path / 'tokenizer'}"
    with pytest.raises(
        UserError, match=r"was tokenised by another tokenizer \(.*data/tokenizer\), but the model reads"
    ):
        train_command(tmp_path / "run", named)
    texts = json.loads((tiny_data / "dataset.json").read_text()) | {"tokenizer": None}
    (tmp_path / "data").mkdir()
    for path in tiny_data.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    (tmp_path / "data/dataset.json").unlink()
    (tmp_path / "data/dataset.json").write_text(json.dumps(texts))
    with pytest.raises(UserError, match=r"holds texts alone, .* prepare .* --tokenizer .*tokenizer --output"):
        train_command(tmp_path / "run", named, f"dataset.path={tmp_path / 'data'}")
    assert not (tmp_path / "run").exists()


def test_a_value_model_is_no_baseline(train_command, tmp_path: Path):
    values = ("model.architecture.n_future_tokens=0", "model.architecture.value_head=linear")
    with pytest.raises(UserError, match="gives values only"):
        train_command(tmp_path / "run", *values)


def test_damaged_data_is_named(train_command, tiny_data: Path, tmp_path: Path):
    shutil.copytree(tiny_data, tmp_path / "data")
    path = tmp_path / "data/parts/00000/train.solutions.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train.solutions.arrow: damaged or changed"):
        train_command(tmp_path / "run", f"dataset.path={tmp_path / 'data'}")
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_is_not_continued(train_command, tmp_path: Path):
    train_command(tmp_path / "run", "training.max_steps=1")
    path = tmp_path / "run/run.json"
    record = json.loads(path.read_text())
    del record["order_sha256"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="an earlier version of wmtp_jax made this run"):
        train_command(tmp_path / "run", "training.max_steps=2")


def test_long_samples_are_left_out_and_counted(train_command, tmp_path: Path):
    all_there_are = "data_sampling.n_samples=null", "data_sampling.n_validation_samples=null"
    figures = train_command(tmp_path / "run", *all_there_are, "dataset.max_length=54", "training.max_steps=1")
    train = json.loads((tmp_path / "run/samples.json").read_text())["train"]
    assert train["left_out"]["too_long"] == figures["left_out_too_long"] == 120 - train["correct"]
    assert 0 < train["correct"] < 120
    assert train["tokens"]["max"] <= 54
    with pytest.raises(UserError, match=r"asks for 100, but there are .* longer than dataset.max_length 54"):
        train_command(tmp_path / "more", "dataset.max_length=54")


def test_a_folder_with_other_things_is_not_touched(train_command, tmp_path: Path):
    (tmp_path / "letters.txt").write_text("precious")
    with pytest.raises(UserError, match="holds files, but no run"):
        train_command(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]


def test_a_loss_that_is_no_number_stops_the_run(train_command, tmp_path: Path):
    """Updates that are not finite are skipped; more in a row than the settings allow end the run."""
    more = ("training.learning_rate=1e30", "training.warmup_ratio=0", "training.max_skipped_steps=1")
    with pytest.raises(Failure, match=r"step 3: train/loss is .* 2 updates in a row .*lower training.learning_rate"):
        train_command(tmp_path / "run", *LONG, *more)


def test_damaged_run_directories(whole, train_command, tmp_path: Path):
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/37/params")  # a step that is not whole is no step
    assert saved_steps(tmp_path / "run") == [20, 30]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    lines[3] = "{"
    (tmp_path / "run/metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(Failure, match=r"metrics.jsonl line 4: broken JSON"):
        train_command(tmp_path / "run", *LONG)


def test_an_env_file_that_is_no_text(train_command, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(b"MLFLOW_TRACKING_PASSWORD=\xff\xfe")
    with pytest.raises(UserError, match=r"\.env: cannot be read"):
        train_command(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_saving_more_often_than_every_step_is_every_step(train_command):
    figures = train_command(None, "checkpoint.save_checkpoint_every=1e-300", flags=("--dry-run",))
    assert len(figures["save_steps"]) == figures["last_step"]


def test_a_reader_that_goes_away_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m wmtp_jax.train --stage baseline --dry-run --json | true",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr


def test_unknown_stage():
    with pytest.raises(UserError, match="unknown stage; there is: baseline"):
        train.main(["--stage", "basline"])


@pytest.mark.parametrize("preset", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda p: p.stem)
def test_every_preset_dry_runs(preset: Path, capsys):
    assert train.main(["--stage", preset.parent.name, "--config", str(preset), "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert figures["parameters"]["total"] > 0
    assert figures["last_step"] > 0
    assert figures["tokens_per_step"] == figures["rows_per_step"] * figures["settings"]["dataset"]["max_length"]
    assert preset.parent.name in captured.err


def test_production_dry_run_counts_the_7b(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(ROOT)
    train.main(["--stage", "baseline", "--dry-run", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["parameters"]["total"] == 6_738_415_616
    assert figures["rows_per_step"] == 64
    assert figures["tokens_per_step"] == 64 * 2048
    assert figures["total_steps"] == 3906


def test_dry_run_with_data_at_hand_is_exact(train_command, whole):
    figures = train_command(whole[0], *LONG, flags=("--dry-run",))
    assert figures["exact"] is True
    assert figures["last_step"] == 37
    assert figures["missing"] == []
    assert figures["samples"] == json.loads((whole[0] / "samples.json").read_text())
    assert (figures["samples"]["train"]["correct"], figures["samples"]["valid"]["correct"]) == (100, 20)
    started_from = train_command(None, f"model.path={whole[0]}@latest", flags=("--dry-run",))
    assert started_from["missing"] == []


def test_dry_run_prints_settings_that_can_be_read_back(tmp_path: Path, capsys):
    preset = ROOT / "configs/baseline/micro.yaml"
    text = "a description much longer than the eighty characters of a terminal that wraps its lines"
    override = f"experiment.description={text}"
    assert train.main(["--stage", "baseline", "--config", str(preset), "--override", override, "--dry-run"]) == 0
    printed = capsys.readouterr().out.partition("\nbaseline: ")[0]
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_settings(tmp_path / "printed.yaml") == load_settings(preset, [override])


def test_a_damaged_model_is_refused(whole, train_command, tmp_path: Path):
    shutil.copytree(whole[0], tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints/30/params").glob("manifest.ocdbt")
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoints/30: this checkpoint is damaged: params/manifest.ocdbt has 7"):
        train_command(tmp_path / "tuned", f"model.path={tmp_path / 'run'}@30")
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["--stage", "nonsense"], 2, "error: --stage nonsense: unknown stage"),
        (["--stage", "baseline", "--config", "absent.yaml"], 2, "error: absent.yaml: no such settings file"),
        ([], 2, "--stage"),
        (["--help"], 0, "examples:"),
    ],
)
def test_exit_codes(args: list[str], code: int, text: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "wmtp_jax.train", *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code
    assert text in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
