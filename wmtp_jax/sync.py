"""Delivers to MLflow what it has not got of runs that are over: ``python -m wmtp_jax.sync RUN_DIR [RUN_DIR ...]``.

A run whose server was away, or did not take its metrics or files, keeps them; this sends them, once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from rich.markup import escape

from wmtp_jax.console import Steps, err, out, print_json, table
from wmtp_jax.errors import UserError, run_command
from wmtp_jax.volumes import lock_run

EPILOG = """examples:
  python -m wmtp_jax.sync storage/checkpoints/baseline/baseline-micro
  python -m wmtp_jax.sync storage/checkpoints/*/* --json
  python -m wmtp_jax.sync storage/checkpoints/rho1/rho1-micro --uri http://127.0.0.1:5000

Metrics go where the run sent them: tracking.uri of its settings, else MLFLOW_TRACKING_URI of the environment or .env,
else a SQLite file in the run directory. User and password are read from the environment or .env. The exit code is 0
when everything is delivered, 1 when MLflow does not take it, 2 when what is named is no run, or one that is at work."""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    from wmtp_jax.training.manifest import read_stage

    with contextlib.ExitStack() as stack:
        runs, mistakes = [], []
        for path in dict.fromkeys(args.runs):
            try:
                stage = read_stage(path)
                stack.enter_context(lock_run(path))  # a run that is being trained delivers by itself
                runs.append((path, *_open(path, stage, args.uri)))
            except UserError as error:  # of several, which a pattern may name, the others go on
                mistakes.append(error)
        if not runs:
            raise UserError("\n".join(map(str, mistakes)))
        for mistake in mistakes:
            err.print(f"[yellow]left out:[/] {escape(str(mistake))}", highlight=False, soft_wrap=True)
        results = [_sync(*run) for run in runs]
    if args.json:
        print_json({"runs": results})
    else:
        rows = [
            [
                result["run_directory"],
                f"{result['lines_delivered']:,}",
                f"{result['lines_waiting']:,}",
                f"{result['files_uploaded']:,}",
                f"{len(result['files_waiting']):,}",
                result["uri"],
            ]
            for result in results
        ]
        columns = ["run", "lines delivered", "lines waiting", "files uploaded", "files waiting", "to"]
        out.print(table("Deliveries to MLflow", columns, rows))
    return 1 if any(result["errors"] for result in results) else 2 if mistakes else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.sync",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run directories")
    parser.add_argument("--uri", help="deliver to this MLflow server instead of the run's own")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args(argv)


def _open(directory: Path, stage: str, uri: str | None) -> tuple[Any, list[dict[str, Any]]]:
    """The delivery of a run, and its lines. Raises UserError where there is nothing to deliver, or nowhere."""
    from wmtp_jax.config import without_credentials
    from wmtp_jax.settings_file import load_settings
    from wmtp_jax.training.delivery import Delivery
    from wmtp_jax.training.layout import METRICS_FILE, SETTINGS_FILE
    from wmtp_jax.training.metrics_file import read_metrics

    if uri and without_credentials(uri) != uri:
        raise UserError(
            "--uri holds a user, a password or a query; put them into .env (MLFLOW_TRACKING_USERNAME, "
            "MLFLOW_TRACKING_PASSWORD), or the whole address as MLFLOW_TRACKING_URI"
        )
    override = [f"tracking.uri={json.dumps(uri)}", "tracking.mlflow=true"] if uri else []
    settings = load_settings(directory / SETTINGS_FILE, override)
    if not settings.tracking.mlflow:
        raise UserError(
            f"{directory}: tracking.mlflow is false in its {SETTINGS_FILE}, so that its metrics go nowhere; name a "
            "server with --uri to deliver them all the same"
        )
    lines = read_metrics(directory)
    if not lines:
        raise UserError(f"{directory}: has no metrics (no {METRICS_FILE}, or nothing in it)")
    return Delivery(directory, settings, stage), lines


def _sync(directory: Path, delivery: Any, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Delivers one run; says what does not work."""
    from wmtp_jax.training.delivery import ARTIFACTS
    from wmtp_jax.training.layout import METRICS_FILE
    from wmtp_jax.training.mlflow_client import describe

    names = (*ARTIFACTS, METRICS_FILE)
    if delivery.status == "RUNNING":
        delivery.status = "KILLED"  # it had no time to say how it ended
    delivered = [0]
    uploaded, errors = 0, {}
    with Steps(f"delivering {directory.name}", delivery.waiting()) as progress:

        def advance(amount: int) -> None:
            delivered.append(amount)
            progress.advance(amount)

        try:
            delivery.deliver(advance)
            delivery.finish(lines[-1].get("time"))
        except Exception as error:  # whatever a server does; the other runs may have another
            errors["metrics"] = describe(error)
        else:
            try:
                uploaded = delivery.upload(names)
                delivery.save()
            except Exception as error:
                errors["files"] = describe(error)
    for what, reason in errors.items():
        who = "the artifact store of MLflow" if what == "files" else "MLflow"
        err.print(
            f"[bold red]error:[/] {directory}: {who} takes no {what} ({reason}); they are kept. Check "
            "MLFLOW_TRACKING_URI and credentials, and start this again",
            highlight=False,
            soft_wrap=True,
        )
    return {
        "run_directory": str(directory),
        "lines_delivered": sum(delivered),
        "lines_waiting": delivery.waiting(),
        "files_uploaded": uploaded,
        "files_waiting": delivery.waiting_files(names),
        "uri": delivery.address,
        "errors": errors,
    }


if __name__ == "__main__":
    run_command(main)
