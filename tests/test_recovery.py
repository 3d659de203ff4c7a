"""Signals, damaged checkpoints, disks that fail, changed settings: a run goes on, and says what it does."""

import errno
import json
import os
import re
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from metric_lines import untimed_metrics

import wmtp_jax
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.training import checkpoints, loop, saving
from wmtp_jax.training.manifest import IDENTITY
from wmtp_jax.training.metrics_file import read_metrics
from wmtp_jax.training.records import Records
from wmtp_jax.training.saved import (
    find_damage,
    latest_sound_step,
    remove_old_steps,
    saved_steps,
    step_directory,
    step_metrics,
)
from wmtp_jax.volumes import lock_run

LONG = ("training.n_epochs=3", "checkpoint.save_every_steps=10")


@pytest.fixture(scope="module")
def whole(train_command, tmp_path_factory) -> tuple[Path, dict]:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train_command(folder, *LONG)


@pytest.fixture
def run(whole, tmp_path: Path) -> Path:
    """A copy of it that has come to step 30."""
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/37")
    return tmp_path / "run"


def assert_same(ours: Path, theirs: Path):
    leaves = [jax.tree.leaves(nnx.state(wmtp_jax.load_model(f"{path}@latest"), nnx.Param)) for path in (ours, theirs)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert untimed_metrics(ours) == untimed_metrics(theirs)


def sessions(run: Path) -> list[dict]:
    return json.loads((run / "run.json").read_text())["sessions"]


def test_a_signal_saves_the_running_step(whole, train_command, tmp_path: Path, monkeypatch, capsys):
    number = signal.SIGINT  # `tests/faults` has SIGTERM
    folder, record, handler = tmp_path / "run", Records.step, signal.getsignal(number)

    def interrupted(self, step, *args):
        if step == 13:
            os.kill(os.getpid(), number)
        return record(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "step", interrupted)
        figures = train_command(folder, *LONG)
    said = capsys.readouterr().err
    assert f"{number.name}: finishing the running step, then saving" in said
    assert "resume with: python -m wmtp_jax.train --stage baseline" in said
    assert figures["stopped_by"] == number.name
    assert figures["steps"] in (13, 14)  # the one that was running
    assert saved_steps(folder) == [10, figures["steps"]]
    assert step_metrics(folder, figures["steps"]) == {}  # validation takes time that there may not be
    assert signal.getsignal(number) is handler
    assert train_command(folder, *LONG)["first_step"] == figures["steps"]
    assert_same(folder, whole[0])
    assert saved_steps(folder) == saved_steps(whole[0])
    first, last = sessions(folder)[0], sessions(folder)[-1]
    assert first["ended"] == f"stopped by {number.name}"
    assert (first["first_step"], first["last_step"]) == (0, figures["steps"])
    assert (last["ended"], last["last_step"]) == ("finished", 37)


@pytest.mark.parametrize("at", [20, 37])
def test_a_validation_that_a_signal_has_left_is_made_at_the_resume(
    whole, train_command, tmp_path: Path, monkeypatch, at: int
):
    folder, validate, left = tmp_path / "run", loop._Trainer.validate, [10, 20, 30, 37]

    def interrupted(self, params, *leave):
        if left.pop(0) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, params, *leave)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "validate", interrupted)
        figures = train_command(folder, *LONG)
    assert (figures["steps"], figures["val/loss"], figures["stopped_by"]) == (at, None, "SIGTERM")
    again = train_command(folder, *LONG)
    assert again["first_step"] == at
    assert again["validation"] == whole[1]["validation"]
    assert find_damage(step_directory(folder, at)) is None
    assert_same(folder, whole[0])
    assert saved_steps(folder) == saved_steps(whole[0])


def test_saving_by_time_keeps_the_newest_beside_the_validated(train_command, tmp_path: Path):
    often = ("checkpoint.save_every_minutes=1e-9", "training.max_steps=16", "checkpoint.save_total_limit=1")
    train_command(tmp_path / "run", *LONG, *often, "checkpoint.save_every_steps=12")
    assert saved_steps(tmp_path / "run") == [16]
    assert len([line for line in read_metrics(tmp_path / "run") if "val/loss" in line]) == 2


def damage(step: Path, how: str) -> None:
    arrays = max(
        (path for path in (step / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    if how == "truncated":
        os.truncate(arrays, arrays.stat().st_size - 1)
    elif how == "missing":
        arrays.unlink()
    elif how == "altered":
        content = bytearray(arrays.read_bytes())
        content[len(content) // 2] ^= 1
        arrays.write_bytes(content)
    elif how == "not whole":
        shutil.rmtree(step / "params")
    elif how == "no checksums":
        (step / "checksums.json").unlink()
    else:
        (step / how).write_text("{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"has .* bytes instead of"),
        ("missing", "is missing"),
        ("altered", "has other contents than were written"),
        ("not whole", "it is not whole"),
        ("_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA or checksums.json is damaged"),
        ("checksums.json", "_CHECKPOINT_METADATA or checksums.json is damaged"),
        ("no checksums", "checksums.json is missing"),
    ],
)
def test_a_damaged_step_is_set_aside(run, capsys, how: str, message: str):
    damage(run / "checkpoints/30", how)
    assert latest_sound_step(run) == 20
    said = capsys.readouterr().err
    assert re.search(rf"checkpoints/30 is damaged: .*{message}.*30.damaged; going on from step 20", said)
    assert (run / "checkpoints/30.damaged").is_dir()


def test_a_run_goes_on_from_the_step_before_a_damaged_one(whole, run, train_command):
    damage(run / "checkpoints/30", "altered")
    assert train_command(run, *LONG)["first_step"] == 20
    assert_same(run, whole[0])


def test_where_all_steps_are_damaged_training_begins_anew(whole, run, train_command, capsys):
    for step in saved_steps(run):
        damage(run / f"checkpoints/{step}", "altered")
    assert train_command(run, *LONG)["first_step"] == 0
    assert "there is none before it" in capsys.readouterr().err
    assert_same(run, whole[0])
    assert len(sessions(run)) == 2


def test_a_step_without_checksums_is_taken_as_it_is(whole, run, train_command):
    """Earlier versions wrote none, and did not say that there are some."""
    (run / "checkpoints/30/checksums.json").unlink()
    path = run / "checkpoints/30/_CHECKPOINT_METADATA"
    path.write_text(json.dumps({**json.loads(path.read_text()), "custom_metadata": {}}))
    assert train_command(run, *LONG)["first_step"] == 30
    assert_same(run, whole[0])


def full_disk(times: int):
    """A writer of checksums that finds the disk full so many times."""
    write, left = checkpoints.write_checksums, [times]

    def fails(folder: Path) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        write(folder)

    return fails


def test_a_full_disk_does_not_stop_the_training(whole, train_command, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "write_checksums", full_disk(1))
    monkeypatch.setattr(saving, "_RETRY_S", 0.0)
    train_command(tmp_path / "run", *LONG)
    said = capsys.readouterr().err
    # Training may be some saves further when it is told: it did not wait.
    assert re.search(r"step 10 could not be saved .*\(the disk is full: No space left on device\); the", said)
    assert saved_steps(tmp_path / "run") == saved_steps(whole[0])
    assert_same(tmp_path / "run", whole[0])


def test_the_last_save_is_tried_again_and_then_given_up(run, whole, train_command, monkeypatch, capsys):
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    monkeypatch.setattr(saving, "_LAST_PAUSES_S", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_checksums", full_disk(3))
        with pytest.raises(Failure, match=r"step 37 could not be saved .*of step 30: what was trained after"):
            train_command(run, *LONG)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
        assert sessions(run)[-1]["ended"].startswith("failed: Failure: step 37 could not be saved")
        patch.setattr(checkpoints, "write_checksums", full_disk(2))
        assert train_command(run, *LONG)["steps"] == 37
    assert_same(run, whole[0])


def test_two_processes_on_one_run(run, train_command):
    before = (run / "metrics.jsonl").read_bytes()
    with lock_run(run), pytest.raises(UserError, match="another process is at work on this run"):
        train_command(run, *LONG)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_best_step_outlives_a_disk_that_does_not_give_its_losses(tmp_path: Path, monkeypatch):
    for step, loss in ((1, 0.1), (2, 0.3), (3, 0.2), (4, 0.4)):
        folder = step_directory(tmp_path, step)
        for item in ("params", "progress", "metrics"):
            (folder / item).mkdir(parents=True)
        (folder / "_CHECKPOINT_METADATA").write_text("{}")
        (folder / "metrics/metrics").write_text(json.dumps({"val/loss": loss}))
    read = Path.read_text

    def fails(path: Path, *args, **named) -> str:
        if path == tmp_path / "checkpoints/1/metrics/metrics":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fails)
        with pytest.raises(OSError, match="Input/output error"):
            remove_old_steps(tmp_path, keep=2, save_best=True)
    assert saved_steps(tmp_path) == [1, 2, 3, 4]
    (tmp_path / "checkpoints/2/metrics/metrics").write_text("{")
    with pytest.raises(UserError, match=r"checkpoints/2/metrics/metrics: is damaged"):
        remove_old_steps(tmp_path, keep=2, save_best=True)
    shutil.rmtree(tmp_path / "checkpoints/2")
    remove_old_steps(tmp_path, keep=1, save_best=True)
    assert saved_steps(tmp_path) == [1, 4]


def test_a_folder_that_was_there_stays(tmp_path: Path):
    with lock_run(tmp_path):
        pass
    assert tmp_path.is_dir()
    with lock_run(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_changes_are_refused_or_accepted(run, train_command, changed_data: Path):
    rate, data = "training.learning_rate=5e-3", f"dataset.path={changed_data}"
    with pytest.raises(UserError, match=r"learning_rate: 0.01 there, 0.005 now(?s:.*)--allow-changed training.lea"):
        train_command(run, *LONG, rate)
    allowed = ("--allow-changed", "training.learning_rate")
    with pytest.raises(UserError, match=r"(?s)data_fingerprint: .*--allow-changed data_fingerprint"):
        train_command(run, *LONG, rate, data, flags=allowed)
    train_command(run, *LONG, rate, "training.max_steps=31", flags=allowed)
    assert sessions(run)[-1]["changed"] == {"training.learning_rate": [0.01, 0.005]}
    # From now on this is the run; the flag may stay in the command.
    train_command(run, *LONG, rate, "training.max_steps=32", flags=allowed)
    assert "changed" not in sessions(run)[-1]
    prints = ("--allow-changed", "data_fingerprint", "--allow-changed", "rows_sha256")
    train_command(run, *LONG, rate, data, "training.max_steps=33", flags=prints)
    assert "data_fingerprint" in sessions(run)[-1]["changed"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training.learning_rat", "no such setting or fingerprint; did you mean training.learning_rate?"),
    ],
)
def test_what_is_no_setting_cannot_be_allowed(run, train_command, name: str, message: str):
    with pytest.raises(UserError, match=message):
        train_command(run, *LONG, flags=("--allow-changed", name))


def test_what_changes_the_form_of_the_state_cannot_be_allowed(run, train_command):
    change = "training.moments_dtype=bfloat16"
    with pytest.raises(UserError, match=r"\(training.moments_dtype cannot be allowed: the saved state would not fit\)"):
        train_command(run, *LONG, change, flags=("--allow-changed", "training"))
    with pytest.raises(UserError, match=r"training.spike_sigma cannot be allowed"):
        train_command(run, *LONG, "training.spike_sigma=6", flags=("--allow-changed", "training.spike_sigma"))


def test_the_manifest(whole):
    record = json.loads((whole[0] / "run.json").read_text())
    assert record["settings"]["training"]["learning_rate"] == 0.01
    assert record["seeds"] == {"runtime.seed": 42, "data_sampling.seed": 42}
    assert {"data_fingerprint", "tokenizer_fingerprint", "model_fingerprint", "stage"} <= record.keys()
    (session,) = record["sessions"]
    assert (session["first_step"], session["last_step"], session["ended"]) == (0, 37, "finished")
    assert session["started"] <= session["stopped"]
    assert session["hardware"]["devices"].startswith("4 x ")
    assert {"python", "jax", "orbax-checkpoint"} <= session["versions"].keys()
    assert session["code"] is None or len(session["code"]["commit"]) == 40


def test_one_of_two_records_is_enough(run, whole, train_command):
    (run / "settings.yaml").write_text("]")
    train_command(run, *LONG, "training.max_steps=31")
    (run / "run.json").write_text("null")
    with pytest.raises(UserError, match=r"data_fingerprint: None there(?s:.*)--allow-changed rows_per_step"):
        train_command(run, *LONG, "training.max_steps=32")
    facts = [part for name in IDENTITY for part in ("--allow-changed", name)]
    assert train_command(run, *LONG, flags=tuple(facts))["first_step"] == 31
    (run / "settings.yaml").unlink()
    (run / "run.json").unlink()
    (run / "settings.yaml").write_text("")
    with pytest.raises(UserError, match=r"neither settings.yaml nor run.json can be read"):
        train_command(run, *LONG)


@pytest.mark.parametrize("content", ["null", "{}", "[]", '{"a": 1}', '{"a": [1, 2]}'])
def test_checksums_that_say_nothing_are_damage(run, content: str):
    (run / "checkpoints/30/checksums.json").write_text(content)
    assert "checksums.json" in find_damage(run / "checkpoints/30")


def test_a_killed_session_is_known_by_its_silence(run, train_command):
    record = json.loads((run / "run.json").read_text())
    for name in ("stopped", "last_step", "ended"):
        del record["sessions"][0][name]
    (run / "run.json").write_text(json.dumps(record))
    train_command(run, *LONG)
    assert [session["ended"] for session in sessions(run)] == ["no word (killed, or the machine was lost)", "finished"]


def test_places_that_cannot_be_written(train_command, tmp_path: Path):
    (tmp_path / "storage").symlink_to(tmp_path / "volume")
    with pytest.raises(UserError, match=r"cannot be written: .*storage leads to .*volume, which is not there"):
        train_command(tmp_path / "storage/run", *LONG)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file; checkpoint.save_dir must be a folder"):
        train_command(tmp_path / "file", *LONG)
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        train_command(tmp_path / "file/run", *LONG)
