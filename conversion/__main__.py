"""Models between PyTorch and wmtp_jax: ``python -m conversion import SRC DST``."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wmtp_jax.console import err, out, print_json, table
from wmtp_jax.errors import Failure, UserError, run_command

EPILOG = """examples:
  python -m conversion inspect downloads/7B_1T_4
  python -m conversion import downloads/7B_1T_4 storage/models_v2/meta-llama-mtp --dtype bfloat16
  python -m conversion verify downloads/7B_1T_4 storage/models_v2/meta-llama-mtp
  python -m conversion export storage/checkpoints/baseline/baseline-mtp exported --format huggingface
  python -m conversion micro storage/models_v2

A destination appears when it is complete; an interrupted command leaves nothing there."""
DTYPES = ("float32", "bfloat16", "float16")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt(3)
LISTED = 400  # tensors that `inspect` shows without --all


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conversion",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="figures as one JSON object on standard output")
        return added

    def converts(added: argparse.ArgumentParser, src: str, dst: str) -> None:
        added.add_argument("src", metavar="SRC", help=src)
        added.add_argument("dst", metavar="DST", type=Path, help=dst)
        added.add_argument("--dtype", choices=DTYPES, help="type of all weights (default: as they are)")
        added.add_argument("--overwrite", action="store_true", help="replace what is at DST, if it is one of ours")

    importing = command("import", _import, "make a model directory from a PyTorch or safetensors checkpoint")
    converts(importing, "directory of the checkpoint, or its weight file", "model directory to make")
    importing.add_argument(
        "--format",
        default="auto",
        choices=("auto", "meta-mtp", "llama", "starling-rm"),
        help="kind of checkpoint (default: found out from the names of its tensors)",
    )
    exporting = command("export", _export, "write a model or a run in Meta's or Hugging Face's layout")
    converts(exporting, "model directory, or run directory (its best step; @latest, @<step>)", "folder to make")
    exporting.add_argument(
        "--format",
        required=True,
        choices=("meta-mtp", "huggingface"),
        help="meta-mtp: every head; huggingface: LlamaForCausalLM of trunk and head 1",
    )
    exporting.add_argument("--shards", type=int, help="files to divide the weights into (default: one every 5 GB)")
    exporting.add_argument("--adapter-only", action="store_true", help="write only the LoRA adapter, in PEFT's format")
    verifying = command("verify", _verify, "compare what two forms of a model compute, in float32")
    verifying.add_argument("src", metavar="SRC", help="a model in any form that is read")
    verifying.add_argument("dst", metavar="DST", help="another")
    inspecting = command("inspect", _inspect, "say what a checkpoint or model is, without reading its weights")
    inspecting.add_argument("path", metavar="PATH", help="checkpoint, model directory or run directory")
    inspecting.add_argument("--all", action="store_true", help=f"list every tensor, not the first {LISTED}")
    micro = command("micro", _micro, "make small models for tests: micro-mtp, micro-reference, micro-reward")
    micro.add_argument("dst", metavar="DST", type=Path, help="folder to put them into")
    micro.add_argument("--from", dest="source", metavar="SRC", help="cut one out of this model (default: random)")
    micro.add_argument("--tokenizer", type=Path, help="folder of a tokenizer to put into each")
    micro.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    micro.add_argument("--overwrite", action="store_true", help="replace models that are there")
    return parser


def _import(args: argparse.Namespace) -> int:
    from conversion.importing import import_model

    figures = import_model(Path(args.src), args.dst, format=args.format, dtype=args.dtype, overwrite=args.overwrite)
    return _done(args, f"Imported from {figures['format']}", figures)


def _export(args: argparse.Namespace) -> int:
    from conversion.exporting import export_model

    figures = export_model(
        args.src,
        args.dst,
        format=args.format,
        dtype=args.dtype,
        shards=args.shards,
        adapter_only=args.adapter_only,
        overwrite=args.overwrite,
    )
    return _done(args, f"Exported as {figures['format']}", figures)


def _done(args: argparse.Namespace, title: str, figures: dict[str, Any]) -> int:
    if args.json:
        print_json(figures)
        return 0
    total = figures["parameters"]
    total = total["total"] if isinstance(total, dict) else total
    rows = [["parameters", f"{total:,}"], ["bytes", f"{figures['bytes']:,}"]]
    rows += [[f"SHA-256 of {name}", checksum] for name, checksum in figures.get("sha256", {}).items()]
    if figures.get("adapter_merged"):
        rows.append(["adapter", "worked into the weights"])
    if figures.get("passed_over"):
        rows.append(["tensors passed over", f"{figures['passed_over']:,}"])
    if "tokenizer" in figures:
        rows.append(["tokenizer", "copied" if figures["tokenizer"] else "none"])
    out.print(table(title, ["", ""], rows))
    out.print(f"written to {figures['output']}", highlight=False, soft_wrap=True)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from conversion.verify import verify

    figures = verify(args.src, args.dst)
    if args.json:
        print_json(figures)
    else:
        kinds = figures["differences"]
        names = [f"head {k + 1}" if figures["compared"] == "logits" else "value" for k in range(figures["heads"])]
        rows = [[name, *(f"{kinds[kind][k]:.2e}" for kind in kinds)] for k, name in enumerate(names)]
        columns = ["", *({"random": "random tokens", "text": "real text"}[kind] for kind in kinds)]
        out.print(table(f"Largest absolute difference of {figures['compared']}", columns, rows))
    if not figures["equal"]:
        raise Failure(
            f"{args.src} and {args.dst} differ by {figures['largest']:.2e}, more than {figures['tolerance']:.0e}: "
            "not the same weights (or they were rounded by --dtype)"
        )
    err.print(f"equal: at most {figures['largest']:.2e}, allowed are {figures['tolerance']:.0e}", highlight=False)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from conversion.inspection import inspect

    figures = inspect(args.path)
    if args.json:
        print_json(figures)
        return 0
    out.print(table(f"{figures['format']}: {args.path}", ["", ""], [*figures["architecture"].items()]))
    rows = [[name, f"{count:,}"] for name, count in figures["parameters"].items()]
    out.print(table("Parameters", ["", ""], rows))
    for name in ("adapter", "base"):
        if figures[name]:
            rows = [[key, str(value)] for key, value in figures[name].items()]
            out.print(table(f"Its {name}", ["", ""], rows))
    tensors = figures["tensors"]
    shown = tensors if args.all else tensors[:LISTED]
    rows = [[t["name"], " x ".join(map(str, t["shape"])), t["dtype"], f"{t['bytes']:,}"] for t in shown]
    out.print(table("Tensors", ["name", "shape", "type", "bytes"], rows))
    if len(shown) < len(tensors):
        out.print(f"and {len(tensors) - len(shown):,} more (--all)", highlight=False)
    return 0


def _micro(args: argparse.Namespace) -> int:
    from conversion.micro import make_micro

    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: it must be 0 or more")
    made = make_micro(args.dst, source=args.source, tokenizer=args.tokenizer, seed=args.seed, overwrite=args.overwrite)
    if args.json:
        print_json({"models": made})
        return 0
    rows = [[item["name"], f"{item['parameters']:,}", item["output"]] for item in made]
    out.print(table("Small models", ["", "parameters", "written to"], rows))
    return 0


def _keep_freed_memory() -> None:
    """Lets the C library use freed blocks of up to 32 MB again instead of asking the kernel for empty pages.

    Every piece of a tensor is such a block; emptying fresh pages costs a tenth of an import. Only glibc knows how.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            mallopt(option, value)


if __name__ == "__main__":
    _keep_freed_memory()
    gc.disable()  # importing torch and jax makes objects by the million; looking through them costs a second
    run_command(main)
