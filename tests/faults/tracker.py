"""A real MLflow server behind a proxy that fails as it is told to, and whether all metrics have arrived once."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from wmtp_jax.training.metrics_file import read_metrics

MODES = ("away", "401", "500", "slow", "cut")
_SLOW_S = 4.0


class Server:
    """``mlflow server`` on a free port."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(1200):
            assert self._process.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.address}/health", timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError("the MLflow server does not come up")

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Proxy:
    """Stands before the server.

    Attributes:
      mode: ``up``; ``away``: closes every connection; ``401``, ``500``: answers so; ``slow``: answers after seconds;
        ``cut``: passes requests on, but not the answers.
    """

    def __init__(self, server: Server):
        proxy, self.mode = self, "up"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                self.close_connection = True
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                mode = proxy.mode
                if mode == "away":
                    return
                if mode in ("401", "500"):
                    self._answer(int(mode), b"{}", "application/json")
                    return
                if mode == "slow":
                    time.sleep(_SLOW_S)
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                kept = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
                connection.request(self.command, self.path, body, kept)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if mode != "cut":
                    self._answer(answer.status, content, answer.getheader("Content-Type", "application/json"))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def _answer(self, status: int, content: bytes, kind: str) -> None:
                with contextlib.suppress(OSError):  # who asked may have been killed
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def undelivered(run: Path, server: Server, experiment: str) -> list[str]:
    """What of ``metrics.jsonl`` is not in MLflow just as it stands there, each once and in its order."""
    import mlflow

    client = mlflow.MlflowClient(server.address)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    if len(runs) != 1:
        return [f"there are {len(runs)} MLflow runs"]
    wanted: dict[str, list[tuple[int, float]]] = {}
    for line in read_metrics(run):
        for name in line.keys() - {"step", "time"}:
            # What a killed session had delivered of a step that was trained again has other times.
            wanted.setdefault(name, []).append((int(line["step"]), 0.0 if _is_timing(name) else line[name]))
    problems = []
    for name, points in wanted.items():
        there = [
            (point.step, 0.0 if _is_timing(name) else point.value)
            for point in client.get_metric_history(runs[0].info.run_id, name)
        ]
        if there != points:
            problems.append(
                f"MLflow has {len(there)} values of {name}, metrics.jsonl {len(points)}, or in another order"
            )
    return problems[:3] + ([f"its status is {runs[0].info.status}"] if runs[0].info.status != "FINISHED" else [])


def _is_timing(name: str) -> bool:
    return name.startswith(("perf/", "system/"))
