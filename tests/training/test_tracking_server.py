"""A real MLflow server with a password, its files in an S3: away, killed, back; every metric arrives once, in order."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import boto3
import mlflow
import pytest
from tracked_runs import PRESET, histories, in_the_file, make_run, the_run_named

from wmtp_jax import sync
from wmtp_jax.config import Settings
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training import tracking as tracking_module
from wmtp_jax.training.tracking import Tracking

pytest.importorskip("moto")
pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "correct-horse-81"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "unsaid-secret-27",
    "AWS_DEFAULT_REGION": "us-east-1",
}
BUCKET = "artifacts"


class Service:
    """A process on a port of its own that can be killed and started again."""

    def __init__(self, command: list[str], port: int, health: str, folder: Path, environment: dict[str, str]):
        self.address = f"http://127.0.0.1:{port}"
        self._command, self._health, self._folder = command, health, folder
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(600):
            assert self._process.poll() is None, (self._folder / "log").read_text()
            try:
                urllib.request.urlopen(self.address + self._health, timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("it does not come up")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    service = Service([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, "/", folder, {})
    service.start()
    yield service
    service.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory, s3: Service):
    """Not started yet."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port"]
    command += [str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"s3://{BUCKET}", "--serve-artifacts"]
    environment = {
        **KEYS,
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this server",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_S3_ENDPOINT_URL": s3.address,
        "AWS_MAX_ATTEMPTS": "1",
    }
    service = Service(command, port, "/health", folder, environment)
    yield service
    service.kill()


@pytest.fixture(scope="module")
def buckets(s3: Service):
    keys = {"aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"]}
    return boto3.Session(region_name="us-east-1", **keys).client("s3", endpoint_url=s3.address)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Service, s3: Service):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking_module, "_LONGEST_PAUSE", 1.0)
    monkeypatch.chdir(tmp_path)  # away from a developer's .env


def settings_of(name: str) -> Settings:
    return load_settings(PRESET, [f"tracking.experiment={name}"])


def check_arrived(folder: Path, experiment: str) -> mlflow.entities.Run:
    """One MLflow run has the metrics of the file, in order, each once; no secret was written down."""
    client = mlflow.MlflowClient()
    run = the_run_named(client, experiment)
    assert histories(client, run.info.run_id) == in_the_file(folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not any(secret.encode() in path.read_bytes() for secret in (PASSWORD, KEYS["AWS_SECRET_ACCESS_KEY"]))
    return run


def files_of(run: mlflow.entities.Run) -> list[str]:
    return [file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)]


def log_steps(tracking: Tracking, first: int, last: int) -> None:
    for step in range(first, last + 1):
        start = time.monotonic()
        tracking.log(step, {"train/loss": 1 / step, "train/grad_norm": float(step)})
        assert time.monotonic() - start < 0.1


def wait_for(text: str, capsys) -> str:
    said = ""
    for _ in range(300):
        said += capsys.readouterr().err
        if text in said:
            return said
        time.sleep(0.1)
    raise AssertionError(f"{text!r} was not said in 30 s: {said}")


def test_absent_then_there_then_killed_then_back(server, buckets, tmp_path: Path, capsys, monkeypatch):
    folder = make_run(tmp_path / "run", settings_of("away"))
    buckets.create_bucket(Bucket=BUCKET)
    server.kill()
    tracking = Tracking(folder, settings_of("away"), "baseline", first_step=0)
    log_steps(tracking, 1, 700)  # more than a request takes
    said = wait_for("MLflow takes no metrics (ConnectionError)", capsys)
    server.start()
    said += wait_for("MLflow takes metrics again, 700 caught up", capsys)
    log_steps(tracking, 701, 720)
    server.kill()
    log_steps(tracking, 721, 740)
    said += wait_for("MLflow takes no metrics (ConnectionError)", capsys)
    server.start()
    said += wait_for("MLflow takes metrics again", capsys)
    log_steps(tracking, 741, 750)
    tracking.close()
    said += capsys.readouterr().err
    assert said.count("takes no metrics") == 2
    assert "not yet in MLflow" not in said
    assert PASSWORD not in said
    run = check_arrived(folder, "away")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.learning_rate"] == "0.003"
    assert files_of(run) == ["metrics.jsonl", "run.json", "samples.json", "settings.yaml"]


def test_a_wrong_password_then_the_right_one(server, tmp_path: Path, capsys, monkeypatch):
    server.start()
    folder = make_run(tmp_path / "run", settings_of("password"))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-horse-80")
    with Tracking(folder, settings_of("password"), "baseline", first_step=0) as tracking:
        log_steps(tracking, 1, 20)
    said = capsys.readouterr().err
    assert "MLflow takes no metrics (MlflowException, HTTP status 401)" in said
    assert "20 lines of metrics" in said
    assert sync.main([str(folder)]) == 1
    said += capsys.readouterr().err
    assert "takes no metrics (MlflowException, HTTP status 401); they are kept" in said
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert sync.main([str(folder), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["runs"]
    assert (result["lines_delivered"], result["lines_waiting"], result["files_waiting"]) == (20, 0, [])
    assert "horse" not in said
    assert check_arrived(folder, "password").info.status == "FINISHED"


def test_an_s3_that_refuses_files_does_not_hold_metrics_up(server, buckets, tmp_path: Path, capsys):
    server.start()
    for file in buckets.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        buckets.delete_object(Bucket=BUCKET, Key=file["Key"])
    buckets.delete_bucket(Bucket=BUCKET)
    folder = make_run(tmp_path / "run", settings_of("proxy"))
    with Tracking(folder, settings_of("proxy"), "baseline", first_step=0) as tracking:
        log_steps(tracking, 1, 20)
        said = wait_for("the artifact store of MLflow takes no files", capsys)
    said += capsys.readouterr().err
    assert "takes no metrics" not in said
    assert "not yet in MLflow: settings.yaml, run.json, samples.json, metrics.jsonl; kept in" in said.replace("\n", "")
    check_arrived(folder, "proxy")
    assert sync.main([str(folder)]) == 1
    assert "the artifact store of MLflow takes no files (" in capsys.readouterr().err
    buckets.create_bucket(Bucket=BUCKET)
    assert sync.main([str(folder)]) == 0
    assert files_of(check_arrived(folder, "proxy")) == ["metrics.jsonl", "run.json", "samples.json", "settings.yaml"]


def test_an_s3_that_the_client_writes_to_itself(server, buckets, s3, tmp_path: Path, capsys, monkeypatch):
    server.start()
    if BUCKET not in [bucket["Name"] for bucket in buckets.list_buckets()["Buckets"]]:
        buckets.create_bucket(Bucket=BUCKET)
    mlflow.MlflowClient().create_experiment("direct", artifact_location=f"s3://{BUCKET}/direct")
    for name, value in {**KEYS, "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    folder = make_run(tmp_path / "run", settings_of("direct"))
    start = time.monotonic()
    with Tracking(folder, settings_of("direct"), "baseline", first_step=0) as tracking:
        log_steps(tracking, 1, 20)
    assert time.monotonic() - start < 20
    said = capsys.readouterr().err
    assert "the artifact store of MLflow takes no files (" in said
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.address)
    assert sync.main([str(folder)]) == 0
    assert files_of(check_arrived(folder, "direct")) == ["metrics.jsonl", "run.json", "samples.json", "settings.yaml"]


KILLED_AFTER_A_REQUEST = """
import os, signal, sys
from pathlib import Path
from wmtp_jax.settings_file import load_settings
from wmtp_jax.training.delivery import Delivery
from wmtp_jax.training.metrics_file import MetricsFile

folder = Path(sys.argv[1])
file = MetricsFile(folder, 0)
for step in range(1, 21):
    file.log(step, {"train/loss": 1 / step, "train/grad_norm": float(step)})
delivery = Delivery(folder, load_settings(folder / "settings.yaml"), "baseline")
send = delivery._send
def send_and_die(advance):
    delivery._try_to_save = lambda: os.kill(os.getpid(), signal.SIGKILL)  # called when the request has succeeded
    send(advance)
delivery._send = send_and_die
delivery.deliver(lambda lines: None)
"""


def test_a_kill_between_a_request_and_its_note_sends_nothing_twice(server, tmp_path: Path):
    server.start()
    folder = make_run(tmp_path / "run", settings_of("killed"))
    command = [sys.executable, "-c", KILLED_AFTER_A_REQUEST, str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sync.main([str(folder)]) == 0
    assert check_arrived(folder, "killed").info.status == "KILLED"
    lines = in_the_file(folder)
    with Tracking(folder, settings_of("killed"), "baseline", first_step=10) as tracking:
        log_steps(tracking, 11, 25)
    client = mlflow.MlflowClient()
    history = histories(client, the_run_named(client, "killed").info.run_id)["train/loss"]
    assert history == lines["train/loss"] + in_the_file(folder)["train/loss"][20:]
