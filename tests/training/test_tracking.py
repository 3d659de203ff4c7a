"""MLflow: a local run by default, one run for all parts, and training that does not wait for a server."""

import json
import time
from pathlib import Path

import mlflow
import pytest

from wmtp_jax.errors import Failure
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.tracking import MetricsFile, MlflowRun, read_metrics

ROOT = Path(__file__).parent.parent.parent
SETTINGS = load_settings(ROOT / "configs/baseline/micro.yaml")


@pytest.fixture(autouse=True)
def no_server_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # away from a developer's .env


def test_training_logs_to_a_local_file(train_command, tmp_path: Path):
    folder = tmp_path / "run"
    train_command(folder, "tracking.mlflow=true", "training.max_steps=2")
    train_command(folder, "tracking.mlflow=true", "training.max_steps=4")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("weighted-mtp/production")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "baseline-micro"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.01"
    assert run.data.tags["wmtp.stage"] == "baseline"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    lines = [line for line in read_metrics(folder) if "train/loss" in line]
    assert [(m.step, m.value) for m in history] == [(line["step"], line["train/loss"]) for line in lines]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val/loss")] == [2, 3, 4]
    assert str(folder) in experiment.artifact_location


def test_an_absent_server_does_not_hold_training_up(tmp_path: Path, capsys):
    # Port 9 (discard) of this machine: nothing listens there.
    settings = SETTINGS.model_copy(
        update={"tracking": SETTINGS.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})}
    )
    run = MlflowRun(settings, "baseline", tmp_path)
    start = time.monotonic()
    for step in range(1000):
        run.log(step, {"train/loss": 1.0})
    assert time.monotonic() - start < 0.5
    run.close()
    captured = capsys.readouterr().err
    assert "MLflow logging stopped" in captured
    assert "tracking.mlflow=false" in captured
    assert "Traceback" not in captured


def test_an_address_with_a_password_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = f"sqlite:///{tmp_path / 'server.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hunter2@127.0.0.1:9/mlflow")
    monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: client)
    client = mlflow.tracking.client.MlflowClient(database)
    run = MlflowRun(SETTINGS, "baseline", tmp_path)
    run.log(1, {"train/loss": 1.0})
    run.close()
    note = json.loads((tmp_path / "mlflow.json").read_text())
    assert note["uri"] == "http://127.0.0.1:9/mlflow"
    assert client.get_metric_history(note["run_id"], "train/loss")[0].value == 1.0
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_password_of_the_environment_file_is_used_and_not_shown(tmp_path: Path, monkeypatch, capsys):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text(
        "MLFLOW_TRACKING_URI=http://127.0.0.1:9\nMLFLOW_TRACKING_USERNAME=anna\nMLFLOW_TRACKING_PASSWORD=hunter2\n"
    )
    run = MlflowRun(SETTINGS, "baseline", tmp_path)
    import os

    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hunter2"
    run.close()
    assert "hunter2" not in capsys.readouterr().err
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def test_metrics_file_goes_back_to_the_resumed_step(tmp_path: Path):
    file = MetricsFile(tmp_path, first_step=0)
    for step in range(1, 6):
        file.log(step, {"x": step / 3})
    file.close()
    MetricsFile(tmp_path, first_step=3).close()
    assert read_metrics(tmp_path) == [{"step": s, "x": s / 3} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(Failure, match=r"metrics\.jsonl line 2: broken JSON"):
        read_metrics(tmp_path)
