"""Metrics reach the file whatever the disk does, and a local MLflow run; training waits for no server."""

import contextlib
import http.server
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import mlflow
import pytest
from tracked_runs import PRESET, histories, in_the_file, make_run, the_run, to_server

from wmtp_jax import sync
from wmtp_jax.errors import Failure, UserError
from wmtp_jax.settings_file import as_yaml, load_settings
from wmtp_jax.training.delivery import Delivery
from wmtp_jax.training.metrics_file import MetricsFile, read_metrics
from wmtp_jax.training.tracking import Tracking

SETTINGS = load_settings(PRESET)
NOBODY = "http://127.0.0.1:9"  # port 9 (discard): nothing listens there


@pytest.fixture(autouse=True)
def no_server_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.chdir(tmp_path)  # away from a developer's .env


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """An empty database of MLflow; it takes seconds to make."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def test_training_logs_to_a_local_file(train_command, tmp_path: Path):
    folder = tmp_path / "run"
    train_command(folder, "tracking.mlflow=true", "training.max_steps=2")
    train_command(folder, "tracking.mlflow=true", "training.max_steps=4")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = the_run(client)
    assert run.info.run_name == "baseline-micro"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.01"
    assert run.data.params["training.max_steps"] == "2"  # MLflow keeps the first value
    assert run.data.tags["wmtp.stage"] == "baseline"
    history = histories(client, run.info.run_id)
    assert history == in_the_file(folder)
    assert [step for step, *_ in history["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, *_ in history["val/loss"]] == [2, 3, 4]
    assert str(folder) in client.get_experiment(run.info.experiment_id).artifact_location


def test_lines_made_anew_by_a_resumed_run_are_not_sent_again(tmp_path: Path, database: Path):
    folder = make_run(tmp_path / "run", SETTINGS)
    shutil.copy(database, folder)
    with Tracking(folder, SETTINGS, "baseline", first_step=0) as tracking:
        for step in range(1, 8):
            tracking.log(step, {"train/loss": 1 / step})
        tracking.log(7, {"val/loss": 0.5})
        tracking.close("KILLED")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert the_run(client).info.status == "KILLED"
    before = in_the_file(folder)
    time.sleep(0.002)  # the times are others
    with Tracking(folder, SETTINGS, "baseline", first_step=4) as tracking:
        for step in range(5, 10):
            tracking.log(step, {"train/loss": 1 / step})
    run = the_run(client)
    assert run.info.status == "FINISHED"
    lines = in_the_file(folder)
    assert lines["train/loss"][5] != before["train/loss"][5]
    assert histories(client, run.info.run_id) == {
        "train/loss": before["train/loss"] + lines["train/loss"][-2:],
        "val/loss": before["val/loss"],
    }


def test_a_kill_before_the_run_is_noted_leaves_no_second_run(tmp_path: Path, database: Path):
    folder = make_run(tmp_path / "run", SETTINGS)
    shutil.copy(database, folder)
    MetricsFile(folder, 0).log(1, {"x": 1.0})
    delivery = Delivery(folder, SETTINGS, "baseline")
    delivery.save()
    note = (folder / "mlflow.json").read_bytes()
    delivery.deliver(lambda lines: None)
    (folder / "mlflow.json").write_bytes(note)  # as it was when the run was made
    arrived: list[int] = []
    Delivery(folder, SETTINGS, "baseline").deliver(arrived.append)
    assert sum(arrived) == 0
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert histories(client, the_run(client).info.run_id) == in_the_file(folder)


def test_each_server_gets_a_run_of_its_own_and_all_lines(tmp_path: Path, database: Path):
    folder = make_run(tmp_path / "run", SETTINGS)
    shutil.copy(database, tmp_path / "a.db")
    shutil.copy(database, tmp_path / "b.db")
    clients = []
    for end, name in ((3, "a"), (6, "b"), (9, "a")):
        settings = to_server(f"sqlite:///{tmp_path / name}.db")
        with Tracking(folder, settings, "baseline", first_step=end - 3) as tracking:
            for step in range(end - 2, end + 1):
                tracking.log(step, {f"m{i}": float(step) for i in range(400)})  # two lines make a request
        clients.append(mlflow.MlflowClient(settings.tracking.uri))
    assert sync.main([str(folder), "--uri", f"sqlite:///{tmp_path / 'b'}.db"]) == 0
    for client in clients[:2]:
        assert histories(client, the_run(client).info.run_id) == in_the_file(folder)


def test_an_absent_server_does_not_hold_training_up(tmp_path: Path, capsys):
    folder = make_run(tmp_path / "run", to_server(NOBODY))
    tracking = Tracking(folder, to_server(NOBODY), "baseline", first_step=0)
    start = time.monotonic()
    for step in range(1000):
        tracking.log(step, {"train/loss": 1.0})
    assert time.monotonic() - start < 0.5
    tracking.close()
    captured = capsys.readouterr().err
    assert captured.count("MLflow takes no metrics") == 1
    assert "ConnectionError" in captured
    assert "tracking.mlflow=false" in captured
    assert f"1,000 lines of metrics, settings.yaml, run.json, samples.json, metrics.jsonl; kept in {folder}" in captured
    assert f"python -m wmtp_jax.sync {folder}" in captured
    assert "Traceback" not in captured
    assert sync.main([str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    (result,) = json.loads(captured.out)["runs"]
    assert (result["lines_delivered"], result["lines_waiting"], result["errors"]) == (
        0,
        1000,
        {"metrics": "ConnectionError"},
    )
    assert "MLflow takes no metrics (ConnectionError); they are kept" in captured.err


class _Broken(http.server.BaseHTTPRequestHandler):
    """Answers 500, or not for minutes."""

    def do_GET(self) -> None:
        if self.server.is_slow:  # type: ignore[attr-defined]
            self.server.over.wait(300)  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self.send_error(500, "hunter2 was wrong")

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("is_slow", "said"), [(False, "(RetryError, HTTP status 500)"), (True, "")])
def test_a_broken_or_slow_server_does_not_hold_training_up(tmp_path: Path, capsys, monkeypatch, is_slow: bool, said):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Broken) as server:
        server.is_slow, server.over, server.daemon_threads = is_slow, threading.Event(), True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = to_server(f"http://127.0.0.1:{server.server_port}")
        folder = make_run(tmp_path / "run", settings)
        tracking = Tracking(folder, settings, "baseline", first_step=0)
        start = time.monotonic()
        for step in range(1000):
            tracking.log(step, {"train/loss": 1.0})
        assert time.monotonic() - start < 0.5
        time.sleep(0.5)  # it is in a request
        start = time.monotonic()
        tracking.close("KILLED", deadline_s=2)
        assert time.monotonic() - start < 3
        server.over.set()
        server.shutdown()
    printed = capsys.readouterr().err
    assert said in printed
    assert "1,000 lines of metrics, settings.yaml, run.json, samples.json; kept in" in printed
    assert "hunter2" not in printed
    assert not any(b"hunter2" in path.read_bytes() for path in folder.iterdir())


def test_a_resumed_run_delivers_what_waits(tmp_path: Path, database: Path):
    folder = make_run(tmp_path / "run", SETTINGS)
    shutil.copy(database, folder)
    with Tracking(folder, to_server(NOBODY), "baseline", first_step=0) as tracking:
        tracking.log(1, {"x": 1.0})
    with Tracking(folder, SETTINGS, "baseline", first_step=1) as tracking:
        tracking.log(2, {"x": 2.0})
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert histories(client, the_run(client).info.run_id) == in_the_file(folder)
    assert [step for step, *_ in in_the_file(folder)["x"]] == [1, 2]


def test_runs_of_older_versions_go_on(tmp_path: Path, database: Path):
    """Their lines have no time, and their note knows one server."""
    uri = f"sqlite:///{shutil.copy(database, tmp_path / 'old.db')}"
    client = mlflow.MlflowClient(uri)
    old = client.create_run(client.create_experiment("weighted-mtp/production"))
    client.log_metric(old.info.run_id, "x", 1.0, step=1, timestamp=5)
    folder = make_run(tmp_path / "run", to_server(uri))
    (folder / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": old.info.run_id}))
    (folder / "metrics.jsonl").write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x": 2.0}\n')
    assert sync.main([str(folder)]) == sync.main([str(folder)]) == 0
    assert histories(client, the_run(client).info.run_id) == {"x": [(1, 1.0, 5), (2, 2.0, old.info.start_time)]}


def test_an_address_with_a_password_is_not_written_down(tmp_path: Path, database: Path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hunter2@127.0.0.1:9/mlflow")
    monkeypatch.setattr(mlflow, "MlflowClient", lambda tracking_uri: client)
    client = mlflow.tracking.client.MlflowClient(f"sqlite:///{shutil.copy(database, tmp_path / 'server.db')}")
    folder = make_run(tmp_path / "run", SETTINGS)
    with Tracking(folder, SETTINGS, "baseline", first_step=0) as tracking:
        tracking.log(1, {"train/loss": 1.0})
    ((address, known),) = json.loads((folder / "mlflow.json").read_text())["servers"].items()
    assert address == "http://127.0.0.1:9/mlflow"
    assert client.get_metric_history(known["run_id"], "train/loss")[0].value == 1.0
    assert not any(b"hunter2" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_credentials_of_the_environment_file_are_used_and_not_shown(tmp_path: Path, monkeypatch, capsys):
    values = {
        "MLFLOW_TRACKING_URI": NOBODY,
        "MLFLOW_TRACKING_USERNAME": "anna",
        "MLFLOW_TRACKING_PASSWORD": "hunter2",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter3",
        "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    }
    for name in (*values, "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text("AWS_DEFAULT_REGION=\n" + "".join(f"{n}={v}\n" for n, v in values.items()))
    folder = make_run(tmp_path / "run", SETTINGS)
    Tracking(folder, SETTINGS, "baseline", first_step=0).close()
    exported = {name: os.environ.pop(name, None) for name in (*values, "AWS_DEFAULT_REGION")}
    assert exported == {**values, "MLFLOW_TRACKING_URI": None, "AWS_DEFAULT_REGION": None}
    assert "hunter" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "run.json").unlink(), "not a run directory"),
        (lambda run: (run / "metrics.jsonl").unlink(), "has no metrics"),
        (lambda run: (run / "settings.yaml").write_text(as_yaml(load_settings(PRESET, ["tracking.mlflow=false"]))),
         "tracking.mlflow is false"),
    ],
)  # fmt: skip
def test_sync_refuses_what_it_cannot_deliver(tmp_path: Path, change, said: str):
    folder = make_run(tmp_path / "run", SETTINGS)
    MetricsFile(folder, 0).log(1, {"x": 1.0})
    change(folder)
    with pytest.raises(UserError, match=said):
        sync.main([str(folder)])


def test_metrics_file_goes_back_to_the_resumed_step(tmp_path: Path):
    file = MetricsFile(tmp_path, first_step=0)
    for step in range(1, 6):
        file.log(step, {"x": step / 3})
    file.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    for ending in ("", '{"step": 6, "x', '{"step": 6, "x": 2.0}'):  # a last line cut by a kill
        (tmp_path / "metrics.jsonl").write_text("".join(lines) + ending)
        MetricsFile(tmp_path, first_step=3).close()
        assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:3]).rstrip("\n"))
    MetricsFile(tmp_path, first_step=3).close()
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])
    assert [(line["step"], line["x"]) for line in read_metrics(tmp_path)] == [(s, s / 3) for s in (1, 2, 3)]
    assert all(abs(time.time() - line["time"] / 1000) < 60 for line in read_metrics(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(Failure, match=r"metrics\.jsonl line 2: broken JSON"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(Failure, match=r"metrics\.jsonl: cannot be opened for writing \(Is a directory\)"):
        MetricsFile(tmp_path, first_step=0)


def test_a_full_disk_does_not_stop_metrics(tmp_path: Path, capsys):
    """The limit on file sizes makes a write stop in the middle of a line, and fail, as a full disk does."""
    file = MetricsFile(tmp_path, first_step=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in range(1, 101):
        if step == 40:
            soft = (tmp_path / "metrics.jsonl").stat().st_size + 25
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if step == 70:
            assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 40))
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        file.log(step, {"x": float(step)})
    file.close()
    assert [(line["step"], line["x"]) for line in read_metrics(tmp_path)] == [(s, float(s)) for s in range(1, 101)]
    said = capsys.readouterr().err
    assert said.count("cannot be written (File too large); training goes on; metrics wait in memory") == 1
    assert "is written again, 31 lines caught up" in said


def test_lines_that_a_full_disk_never_took_are_counted(tmp_path: Path, capsys):
    file = MetricsFile(tmp_path, first_step=0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        for step in range(1, 4):
            file.log(step, {"x": 1.0})
        file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "metrics.jsonl: 3 lines could not be written" in capsys.readouterr().err
    MetricsFile(tmp_path, first_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_run_that_a_slow_server_made_after_all_is_removed(tmp_path: Path, database: Path, monkeypatch):
    """The answer to a request does not come in time; what it asked for is done later, when it was asked for anew."""
    folder = make_run(tmp_path / "run", SETTINGS)
    shutil.copy(database, folder)
    MetricsFile(folder, 0).log(1, {"x": 1.0})
    delivery = Delivery(folder, SETTINGS, "baseline")
    with monkeypatch.context() as slow:
        create_run = mlflow.MlflowClient.create_run

        def late(*arguments, **named):
            create_run(*arguments, **named)
            raise TimeoutError

        slow.setattr(mlflow.MlflowClient, "create_run", late)
        with pytest.raises(TimeoutError):
            delivery.deliver(lambda lines: None)
    with monkeypatch.context() as slow:
        slow.setattr(mlflow.MlflowClient, "search_runs", lambda *_: [])
        delivery.deliver(lambda lines: None)
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    assert len(client.search_runs([e.experiment_id for e in client.search_experiments()])) == 2
    delivery.finish()
    assert histories(client, the_run(client).info.run_id) == in_the_file(folder)
