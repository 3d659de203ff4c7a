"""Trains a stage: ``python -m wmtp_jax.train --stage baseline``. Starting again continues."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmtp_jax.console import err, out, print_json, table
from wmtp_jax.data.sample_report import sample_table
from wmtp_jax.errors import run_command
from wmtp_jax.interruption import Interrupted, Interruption

if TYPE_CHECKING:
    from rich.console import Console

    from wmtp_jax.config import Settings
    from wmtp_jax.training.stages import Stage

EPILOG = """examples:
  python -m wmtp_jax.train --stage baseline --dry-run
  python -m wmtp_jax.train --stage baseline --config configs/baseline/micro.yaml
  python -m wmtp_jax.train --stage critic --config configs/critic/micro.yaml
  python -m wmtp_jax.train --stage baseline --config configs/baseline/micro.yaml \\
      --override training.max_steps=20 --override checkpoint.save_dir=runs/short

The same command again continues from the latest checkpoint, or says that the run is finished. SIGTERM or Ctrl-C: the
running step is finished and saved first; a second one ends the run at once.
configs/README.md explains every setting."""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    with Interruption() as interruption:
        # Inside, because these take seconds to import: a signal may come at any time.
        try:
            figures = _run(args, interruption)
        except (Interrupted, ImportError):
            if interruption.requested is None:
                raise
            figures = {"stopped_by": interruption.requested}
            err.print("nothing was lost: no step was being trained", highlight=False)
    if args.json and not err.quiet:
        print_json(figures)
    elif not args.json and "steps" in figures:
        _show_summary(figures)
    if figures.get("stopped_by"):
        command = shlex.join(["python", "-m", "wmtp_jax.train", *(sys.argv[1:] if argv is None else argv)])
        err.print(f"resume with: {command}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _run(args: argparse.Namespace, interruption: Interruption) -> dict[str, Any]:
    """Trains, or shows what would be trained; returns the figures."""
    from wmtp_jax.processes import agreed, join_processes

    join_processes()
    with agreed("checking what is asked for"):
        from wmtp_jax.settings_file import load_settings, production_preset
        from wmtp_jax.training.stages import find_stage

        stage = find_stage(args.stage)
        settings = load_settings(args.config or production_preset(stage.name), args.override)
        _use_compilation_cache(settings)
        if args.dry_run:
            return _dry_run(stage, settings, err if args.json else out)
        from wmtp_jax.training.loop import fit
        from wmtp_jax.training.run import build_run, resolve_mesh, run_directory
        from wmtp_jax.training.run_directory import check_directory

        # Before anything long: most mistakes with devices and volumes are seen at once.
        resolve_mesh(settings)
        check_directory(run_directory(stage, settings), settings, args.allow_changed)
        run = build_run(stage, settings)
    err.print(sample_table(run.samples))
    err.print(f"they fill {run.train.fill:.1%} of {len(run.train):,} rows in training", highlight=False)
    return fit(run, interruption=interruption, allow_changed=args.allow_changed)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.train",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", required=True, help="what is trained: baseline, critic, verifiable, rho1, reference")
    parser.add_argument("--config", type=Path, help="settings file (default: the stage's production preset)")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="a.b=value",
        help="change one setting; may be given again and again",
    )
    parser.add_argument(
        "--allow-changed",
        action="append",
        default=[],
        metavar="KEY",
        help="go on with a run though this setting or fingerprint is another than it was; may be given again and again",
    )
    parser.add_argument("--dry-run", action="store_true", help="print settings, sizes and steps, and stop")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on standard output")
    return parser.parse_args(argv)


def _use_compilation_cache(settings: Settings) -> None:
    """Keeps compiled programs on disk, so that a second start does not compile again."""
    import jax

    if settings.runtime.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(settings.runtime.compilation_cache.resolve()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _dry_run(stage: Stage, settings: Settings, console: Console) -> dict[str, Any]:
    """Shows what a run would be and returns the figures."""
    from wmtp_jax.models import store
    from wmtp_jax.settings_file import as_yaml
    from wmtp_jax.training.objective import make_objective
    from wmtp_jax.training.run import run_directory, sketch_run
    from wmtp_jax.training.step import split_params

    config, schedule, samples, missing = sketch_run(stage, settings)
    objective = make_objective(stage, settings, config.n_future_tokens, total_steps=1, n_documents=1)
    shapes = objective.trained_form(store.build(config)[1])
    parameters = store.count_params(shapes)
    trained = store.count_params(split_params(shapes, objective.trains)[0])["total"]
    console.print(as_yaml(settings), highlight=False, markup=False, soft_wrap=True)
    directory, at_most = str(run_directory(stage, settings)), "" if schedule.exact else "at most "

    def count(value: float | None) -> str:
        return "unknown until the data set is there" if value is None else f"{at_most}{value:,.6g}"

    rows = [
        *([f"parameters: {part}", f"{number:,}"] for part, number in parameters.items()),
        ["parameters trained", f"{trained:,}"],
        ["devices", f"{schedule.devices}"],
        ["rows per step", f"{schedule.rows_per_step:,}"],
        ["tokens per step (padding included)", f"{schedule.tokens_per_step:,}"],
        ["rows per epoch", count(schedule.rows)],
        ["steps per epoch", count(schedule.steps_per_epoch)],
        ["steps", count(schedule.last_step)],
        ["checkpoints", count(len(schedule.save_steps) or None)],
    ]
    console.print(table(f"{stage.name}: {stage.summary}", ["", ""], rows))
    if samples:
        console.print(sample_table(samples))
    console.print(f"run directory: {directory}", highlight=False, markup=False, soft_wrap=True)
    for line in missing:
        console.print(f"not at hand: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return {
        "stage": stage.name,
        "run_directory": directory,
        "settings": settings.model_dump(mode="json"),
        "parameters": parameters,
        "trained_parameters": trained,
        **dataclasses.asdict(schedule),
        "samples": {name: dataclasses.asdict(report) for name, report in samples.items()},
        "missing": missing,
    }


def _saving(figures: dict[str, Any]) -> str:
    """How long saves took, and how much of that the training stood still."""
    if not figures.get("save_seconds"):
        return ""
    return f"{figures['save_seconds']:.1f} s ({figures['save_stall_seconds']:.2f} s of waiting)"


def _show_summary(figures: dict[str, Any]) -> None:
    unigram, validation = figures["unigram"], figures["validation"]
    if unigram:
        heads = [
            [f"head {k}", f"{validation[f'val/head_{k}_ce_loss']:.4f}", f"{unigram[k - 1]:.4f}"]
            for k in range(1, len(unigram) + 1)
        ]
        title = f"Validation loss (nats a token), step {figures['best_step']}"
        out.print(table(title, ["", "model", "unigram"], heads))
    elif validation:
        named = {
            "val/pairwise_accuracy": "pairs in the right order (0.5 is chance)",
            "val/explained_variance": "explained variance",
            "val/position_correlation": "correlation of values with position",
        }
        values = [[text, f"{validation[name]:.4f}"] for name, text in named.items() if name in validation]
        out.print(table(f"Critic on validation problems, step {figures['best_step']}", ["", ""], values))
    speed = figures["tokens_per_second"]

    def loss(name: str, note: str = "") -> str:
        return "not validated yet" if figures[name] is None else f"{figures[name]:.4f}{note}"

    rows = [
        ["steps", f"{figures['steps']:,}"],
        ["val/loss, last step", loss("val/loss")],
        ["val/loss, best step", loss("best_val/loss", f" (step {figures['best_step']})")],
        ["real tokens trained on", f"{figures['tokens_trained']:,}"],
        ["real tokens per second", f"{speed:,.0f}" if speed else "-"],
        ["samples left out (too long)", f"{figures['left_out_too_long']:,}"],
        *(
            [["updates skipped (not finite, or a spike)", f"{figures['skipped_steps']:,}"]]
            if figures["skipped_steps"]
            else []
        ),
        *([["batches without a target", n]] if (n := figures["batches_without_target"]) else []),
        *([["saving, beside training", saving]] if (saving := _saving(figures)) else []),
        ["time of this command", f"{figures['seconds']:.0f} s"],
    ]
    out.print(table("Run", ["", ""], rows))
    directory = figures["run_directory"]
    out.print(
        f"{directory}/\n  checkpoints/  metrics.jsonl  samples.json  settings.yaml  tokenizer/\n"
        f"load it with: wmtp_jax.load_model({directory!r})",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_command(main)
