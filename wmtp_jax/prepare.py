"""Turns raw data into a processed data set: ``python -m wmtp_jax.prepare --dataset mini --output DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wmtp_jax.console import Steps, out, print_json, table
from wmtp_jax.data import sources
from wmtp_jax.data.store import TOKENIZER, Writer, create_dataset, open_split
from wmtp_jax.data.tokenize import SMALLEST_VOCABULARY
from wmtp_jax.errors import UserError, run_command

DATASETS = ("mini", "codecontests", "mbpp", "humaneval")
ORIGIN = {
    "codecontests": "the Parquet files of deepmind/code_contests on the Hugging Face hub",
    "mbpp": "mbpp.jsonl of google-research/mbpp",
    "humaneval": "HumanEval.jsonl.gz of openai/human-eval",
}
EPILOG = """examples:
  python -m wmtp_jax.prepare --dataset mini --output storage/datasets_v2/mini
  python -m wmtp_jax.prepare --dataset codecontests --source downloads/code_contests/data \\
      --output storage/datasets_v2/codecontests

The data set appears at --output when it is complete; an interrupted run leaves nothing there."""


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    _check(args)
    total = args.solutions if args.dataset == "mini" else None
    unit = "solutions" if args.dataset == "mini" else "problems"
    with create_dataset(args.output, args.overwrite) as writer:
        with Steps(f"preparing {args.dataset} ({unit})", total) as progress:
            _write(writer, _problems(args, progress.advance), progress if total is None else None)
        if not writer.counts():
            raise UserError(f"{args.source}: no usable Python 3 solution in it; left out: {dict(writer.left_out)}")
        manifest = writer.finish(
            {
                "dataset": args.dataset,
                "source": args.source.name if args.source else "generated",
                "seed": args.seed,
            }
        )
        if args.dataset == "mini":
            _train_tokenizer(writer.directory, args.vocab_size)
    figures = {**manifest, "output": str(args.output)}
    if args.json:
        print_json(figures)
    else:
        _show(figures)
    return 0


def _write(writer: Writer, problems: Iterator[sources.Problem], progress: Steps | None) -> None:
    for problem in problems:
        writer.left_out.update(problem.left_out)
        for example in problem.examples:
            writer.add(problem.split, example)
        if problem.examples:
            writer.add_tests(problem.tests)
        if progress:
            progress.advance()


def _problems(args: argparse.Namespace, on_progress: Callable[[int], None]) -> Iterator[sources.Problem]:
    if args.dataset == "mini":
        return sources.mini(args.solutions, args.seed, args.workers, on_progress)
    if args.dataset == "codecontests":
        return sources.codecontests(args.source, args.seed, args.validation_fraction)
    return {"mbpp": sources.mbpp, "humaneval": sources.humaneval}[args.dataset](args.source)


def _train_tokenizer(directory: Path, vocab_size: int) -> None:
    """Trains a tokenizer on prompts and programs of the training split alone."""
    from wmtp_jax.data.tokenize import prompt_text, train_tokenizer

    split = open_split(directory, "train")
    texts = (prompt_text(e.instruction, e.input) + e.output for e in split.read(range(len(split))))
    train_tokenizer(texts, vocab_size, directory / TOKENIZER)


def _check(args: argparse.Namespace) -> None:
    if args.dataset == "mini" and args.source:
        raise UserError("--source: mini is generated and reads nothing; leave it out")
    if args.dataset != "mini" and not args.source:
        raise UserError(f"--source is missing: download {ORIGIN[args.dataset]} and name the file or folder")
    for name, low in (("solutions", 1), ("seed", 0), ("workers", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name} {value}: it must be {low} or more")
    if args.dataset == "mini" and args.vocab_size < SMALLEST_VOCABULARY:
        raise UserError(f"--vocab-size {args.vocab_size}: it must be {SMALLEST_VOCABULARY} or more")
    if not 0 <= args.validation_fraction < 1:
        raise UserError(f"--validation-fraction {args.validation_fraction}: it must be at least 0 and below 1")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m wmtp_jax.prepare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS, help="which data; mini is generated here")
    parser.add_argument("--source", type=Path, help="raw data: a .parquet, .jsonl or .jsonl.gz file, or a folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the processed data set")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set that is there")
    parser.add_argument("--seed", type=int, default=0, help="of mini, and of a validation split (default: 0)")
    parser.add_argument("--solutions", type=int, default=20_000, help="size of mini (default: 20000)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="of mini's tokenizer (default: 1024)")
    parser.add_argument("--workers", type=int, help="processes that make mini (default: one a core)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.05,
        help="part of the problems for validation, where the source has no splits (default: 0.05)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser.parse_args(argv)


def _show(figures: dict[str, Any]) -> None:
    splits = figures["splits"].items()
    rows = [[split, f"{n['problems']:,}", f"{n['correct']:,}", f"{n['incorrect']:,}"] for split, n in splits]
    out.print(table(f"Data set {figures['dataset']}", ["split", "problems", "correct", "incorrect"], rows))
    for reason, count in figures["left_out"].items():
        out.print(f"left out: {count:,} {reason}", highlight=False)
    out.print(f"written to {figures['output']}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
