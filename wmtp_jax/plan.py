"""Will it fit, and what will it cost? ``python -m wmtp_jax.plan --stage baseline``: no GPU and no weights needed.

The real training step is compiled for the cards it will run on, and its memory, traffic and kernels are read off.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmtp_jax.console import err, out, print_json, table
from wmtp_jax.errors import UserError, run_command
from wmtp_jax.settings_file import load_settings, production_preset

if TYPE_CHECKING:
    from wmtp_jax.config import Settings
    from wmtp_jax.training.stages import Stage

EPILOG = """examples:
  python -m wmtp_jax.plan --stage baseline
  python -m wmtp_jax.plan --stage verifiable --override training.remat=none --price 1.8
  python -m wmtp_jax.plan --stage baseline --devices 8 --device h100-80gb --override runtime.mesh.fsdp=8
  python -m wmtp_jax.plan --record configs/plan.json

The exit code is 0 whether it fits or not: `fits` stands in the figures of --json.
Compiling for a GPU needs the CUDA plugin, no driver and no GPU: pip install '.[plan]'. Without it, or with
--estimate, the step is compiled for this machine's CPU, whose temporaries and traffic are only a rough guide."""

EFFICIENCY = 0.5  # of the peak, where no measurement says better
GIB = 2**30
LEVERS = {"offload_optimizer": True, "moments_dtype": "bfloat16"}  # tried last: what they cost is not reckoned


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    _prepare_jax(args)
    if args.record:
        return _record(args)
    stage, settings = _load(args.stage, args)
    figures = _measure(stage, settings, args)
    if not figures["fits"]:
        figures["suggestion"] = _suggest(stage, settings, args)
    if args.json:
        print_json(figures)
    else:
        _show(figures, args)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.plan",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", help="what is trained: baseline, critic, verifiable, rho1, reference")
    parser.add_argument("--config", type=Path, help="settings file (default: the stage's production preset)")
    parser.add_argument("--override", action="append", default=[], metavar="a.b=value", help="change one setting")
    parser.add_argument("--devices", type=int, default=4, help="how many cards (default 4)")
    parser.add_argument("--device", default="a100-80gb", help="a100-80gb (default), h100-80gb or h200")
    parser.add_argument("--price", type=float, help="of one card for an hour, for the cost of the run")
    parser.add_argument(
        "--efficiency", type=float, default=EFFICIENCY, help=f"share of the card's peak assumed (default {EFFICIENCY})"
    )
    parser.add_argument("--estimate", action="store_true", help="compile for CPU devices; a rough guide")
    parser.add_argument("--record", type=Path, metavar="FILE", help="plan every production preset, into a JSON file")
    parser.add_argument("--json", action="store_true", help="figures as one JSON object on standard output")
    args = parser.parse_args(argv)
    if args.stage is None and args.record is None:
        parser.error("the following arguments are required: --stage")
    if args.record and (args.stage or args.config):
        parser.error("--record plans the production preset of every stage: leave --stage and --config out")
    if args.record and not args.record.absolute().parent.is_dir():
        raise UserError(f"--record {args.record}: there is no folder {args.record.parent}")
    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency {args.efficiency}: it is a share of the peak, above 0 and at most 1")
    if args.devices < 1:
        raise UserError(f"--devices {args.devices}: at least 1")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise UserError(f"--price {args.price}: what a card costs an hour, 0 or more")
    return args


def _prepare_jax(args: argparse.Namespace) -> None:
    """Nothing runs on a GPU here, and none is looked for; must come before JAX is used."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # read when the plugin starts
    import jax

    from wmtp_jax.planning.cards import CARDS, silence_libraries

    if args.device not in CARDS:
        raise UserError(f"--device {args.device}: unknown; there is {', '.join(CARDS)}")
    if not args.estimate and not _plugin_is_there():
        args.estimate = True
        err.print(
            "[yellow]the CUDA plugin of JAX is not installed[/] (pip install '.\\[plan]'): compiled for CPU devices "
            "instead, so activations and traffic are a rough guide",
            highlight=False,
            soft_wrap=True,
        )
    # Not JAX_PLATFORMS: JAX, which the settings import, has read its environment by now.
    jax.config.update("jax_platforms", "cpu")
    if args.estimate:
        jax.config.update("jax_num_cpu_devices", args.devices)
    silence_libraries()


def _plugin_is_there() -> bool:
    packages = importlib.util.find_spec("jax_plugins")  # a namespace package: absent without any plugin
    return packages is not None and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{number}") for number in (12, 13)
    )


def _load(name: str, args: argparse.Namespace) -> tuple[Stage, Settings]:
    from wmtp_jax.training.stages import find_stage

    return find_stage(name), load_settings(args.config or production_preset(name), args.override)


def _measure(stage: Stage, settings: Settings, args: argparse.Namespace) -> dict[str, Any]:
    from wmtp_jax.planning.cards import CARDS
    from wmtp_jax.planning.footprint import read_footprint

    return read_footprint(
        stage,
        settings,
        CARDS[args.device],
        args.devices,
        efficiency=args.efficiency,
        price=args.price,
        estimate=args.estimate,
    )


def _suggest(stage: Stage, settings: Settings, args: argparse.Namespace) -> str:
    """The change that costs least and lets the step fit, or what was tried."""
    from wmtp_jax.models.mtp import REMAT

    training, remats = settings.training, list(REMAT)
    size, accumulation = training.batch_size, training.gradient_accumulation_steps
    rows_of_a_pair = 2 if stage.trains == "values" and settings.critic.loss_type == "pairwise" else 1
    divided: list[dict[str, Any]] = []
    while size % (2 * rows_of_a_pair) == 0:
        size, accumulation = size // 2, accumulation * 2
        divided.append({"batch_size": size, "gradient_accumulation_steps": accumulation})
    # Products of 4 rows are large enough for a card: down to there dividing costs less than computing again.
    trials = [part for part in divided if part["batch_size"] >= 4]
    n_large, most = len(trials), trials[-1] if trials else {}
    trials += [{**most, "remat": remat} for remat in remats[remats.index(training.remat) + 1 :]]
    trials += [{**part, "remat": remats[-1]} for part in divided[n_large:]]
    most = trials[-1] if trials else {}
    trials += [{**most, lever: value} for lever, value in LEVERS.items() if getattr(training, lever) != value]
    smallest = math.inf
    for changes in trials:
        changed = training.model_copy(update=changes)
        figures = _measure(stage, settings.model_copy(update={"training": changed}), args)
        named = ", ".join(f"training.{name}={json.dumps(value).strip(chr(34))}" for name, value in changes.items())
        size_text = f"{figures['peak_bytes_per_device'] / GIB:.1f} GiB"
        if figures["fits"]:
            return f"set {named}: {size_text}"
        err.print(f"tried {named}: {size_text}, does not fit", highlight=False, soft_wrap=True)
        smallest = min(smallest, figures["peak_bytes_per_device"])
    return (
        f"nothing tried fits (the least was {smallest / GIB:.1f} GiB): take more devices (--devices with a larger "
        "runtime.mesh.fsdp), larger cards, training.train=lora, or a smaller model"
    )


def _show(figures: dict[str, Any], args: argparse.Namespace) -> None:
    from wmtp_jax.planning.cards import DEVICES_A_HOST

    def size(name: str) -> str:
        return f"{figures[name] / GIB:,.2f} GiB"

    limit = (1 - figures["reserve_fraction"]) * figures["capacity_bytes"]
    fits = "[green]fits[/]" if figures["fits"] else "[bold red]does not fit[/]"
    mesh = " x ".join(f"{axis} {n}" for axis, n in figures["mesh"].items())
    rows = [
        ["parameters", size("parameters_bytes")],
        ["gradients", size("gradients_bytes")],
        ["optimizer" + (" (host)" if figures["offload_optimizer"] else ""), size("optimizer_bytes")],
        *([["frozen model that scores", size("scorer_bytes")]] if figures["scorer_bytes"] else []),
        [f"activations and the rest (remat {figures['remat']})", size("activations_bytes")],
        ["peak", size("peak_bytes_per_device")],
        ["may be used", f"{limit / GIB:,.2f} GiB"],
        ["capacity", size("capacity_bytes")],
    ]
    title = f"{figures['name']} on {figures['devices']} x {figures['device']} ({mesh}), memory of one card"
    out.print(table(title, ["", ""], rows))
    traffic = [[f"{c['kind']} x {c['calls']:,}", f"{c['bytes'] / 1e9:,.2f} GB"] for c in figures["collectives"]]
    hours = figures["hours"]
    speed = [
        ["rows in a step", f"{figures['rows_per_step']:,}"],
        ["floating-point operations in a step", f"{figures['flops_per_step']:.3g}"],
        ["of these the model's own", f"{figures['model_flops_per_step'] / figures['flops_per_step']:.0%}"],
        *traffic,
        ["step", f"{figures['step_seconds']:,.3g} s"],
        ["tokens/s, padding included", f"{figures['tokens_per_second']:,.0f}"],
        ["steps, at most", f"{figures['steps']:,}" if figures["steps"] else "unknown: data_sampling.n_samples is null"],
        ["hours", f"{hours:,.3g}" if hours else "unknown"],
        ["cost", f"{figures['cost']:,.2f}" if figures["cost"] is not None else "give --price, of a card for an hour"],
    ]
    out.print(table(f"A step, and the run, at {args.efficiency:.0%} of the card's peak (assumed)", ["", ""], speed))
    if args.estimate:
        out.print(
            "[yellow]an estimate[/], compiled for CPU devices: a GPU's temporaries and traffic are often far less"
        )
    peak = figures["peak_bytes_per_device"] / GIB
    kept = figures["reserve_fraction"]
    out.print(f"{fits}: {peak:,.1f} GiB of {limit / GIB:,.1f} ({kept:.0%} of a card are kept free)", highlight=False)
    if "suggestion" in figures:
        out.print(figures["suggestion"], highlight=False, soft_wrap=True)
    if figures["devices"] > DEVICES_A_HOST:
        out.print(
            f"more than {DEVICES_A_HOST} cards: the network between hosts is slower than NVLink, and not reckoned"
        )


def _record(args: argparse.Namespace) -> int:
    """Plans the production preset of every stage; `configs/README.md` shows the file."""
    from wmtp_jax.training.stages import STAGES

    records = []
    for name in STAGES:
        stage, settings = _load(name, args)
        figures = _measure(stage, settings, args)
        records.append(figures)
        err.print(f"{name}: {figures['peak_bytes_per_device'] / GIB:.1f} GiB", highlight=False)
    args.record.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {args.record}")
    return 0


if __name__ == "__main__":
    run_command(main)
