"""Run directories as far as tracking is concerned, and what of them is in MLflow."""

from pathlib import Path

import mlflow

from wmtp_jax.config import Settings
from wmtp_jax.settings_file import as_yaml, load_settings
from wmtp_jax.training.metrics_file import read_metrics

PRESET = Path(__file__).parent.parent / "configs/baseline/micro.yaml"


def to_server(uri: str) -> Settings:
    return load_settings(PRESET, [f"tracking.uri={uri}"])


def make_run(folder: Path, settings: Settings) -> Path:
    """A run directory as far as tracking is concerned."""
    folder.mkdir()
    (folder / "settings.yaml").write_text(as_yaml(settings))
    (folder / "run.json").write_text('{"stage": "baseline"}')
    (folder / "samples.json").write_text("{}")
    return folder


def histories(client: mlflow.MlflowClient, run_id: str) -> dict[str, list[tuple[int, float, int]]]:
    return {
        name: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def in_the_file(folder: Path) -> dict[str, list[tuple[int, float, int]]]:
    result: dict[str, list[tuple[int, float, int]]] = {}
    for line in read_metrics(folder):
        for name in line.keys() - {"step", "time"}:
            result.setdefault(name, []).append((line["step"], line[name], line["time"]))
    return result


def the_run(client: mlflow.MlflowClient) -> mlflow.entities.Run:
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return run


def the_run_named(client: mlflow.MlflowClient, experiment: str) -> mlflow.entities.Run:
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run
