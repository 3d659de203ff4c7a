"""Turns raw data into a processed, tokenised data set: ``python -m wmtp_jax.prepare --dataset mini --output DIR``."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp_jax.console import Steps, out, print_json, table
from wmtp_jax.data.convert import convert
from wmtp_jax.data.histogram import draw_lengths, length_figures
from wmtp_jax.data.problems import DATASETS, Options
from wmtp_jax.data.schema import LANGUAGES
from wmtp_jax.data.sources import Chunk, SourceFile, list_files, read_chunks
from wmtp_jax.data.store import FORMAT_VERSION, PARTS, TOKENIZER, is_dataset
from wmtp_jax.data.tokenize import (
    SMALLEST_VOCABULARY,
    copy_tokenizer,
    load_tokenizer,
    prompt_text,
    tokenizer_fingerprint,
    train_tokenizer,
)
from wmtp_jax.data.writer import Writer
from wmtp_jax.errors import UserError, run_command
from wmtp_jax.files import resumed_directory

EPILOG = """examples:
  python -m wmtp_jax.prepare --dataset mini --output storage/datasets_v2/mini
  python -m wmtp_jax.prepare --dataset codecontests --source deepmind/code_contests \\
      --tokenizer storage/models_v2/meta-llama-mtp --output storage/datasets_v2/codecontests
  python -m wmtp_jax.prepare --dataset humaneval --source downloads/HumanEval.jsonl.gz \\
      --output storage/datasets_v2/humaneval

The data set appears at --output when it is complete. Interrupted work stays beside it, and the same command
goes on with it."""
_ONE_PROCESS = 16e6  # bytes; less is done before other processes have started
_MINI_AT_ONCE = 64  # problems


def main(argv: list[str] | None = None) -> int:
    args = _parse(argv)
    _check(args)
    started = time.perf_counter()
    files = list_files(args.source) if args.source else []
    if files and Path(args.source).is_dir() and Path(args.source).resolve() in args.output.resolve().parents:
        raise UserError(f"--output {args.output}: lies in --source, which would be read together with it")
    tokenizer = _tokenizer_folder(args)
    options = Options(args.dataset, tuple(args.language), args.seed, args.validation_fraction)
    job: dict[str, Any] = {
        **options._asdict(),
        "languages": list(options.languages),
        "files": [[file.path, file.bytes, file.version] for file in files],
        "tokenizer": tokenizer_fingerprint(load_tokenizer(tokenizer)) if tokenizer else None,
        "format_version": FORMAT_VERSION,
    }
    if args.dataset == "mini":
        job |= {"solutions": args.solutions, "vocab_size": args.vocab_size}
    with resumed_directory(
        args.output,
        job=job,
        overwrite=args.overwrite,
        is_ours=is_dataset,
        has_work=lambda folder: any((folder / PARTS).glob("[0-9]*[0-9]")),
        what="data set",
    ) as directory:
        writer = Writer(directory)
        try:
            chunks, total, workers = _chunks(args, files, writer)
            if tokenizer:
                copy_tokenizer(tokenizer, directory / TOKENIZER)
            ours = directory / TOKENIZER
            has_tokenizer = ours.is_dir()
            _write(writer, chunks, total, options, ours if has_tokenizer else None, workers)
            manifest, indices = writer.finish(
                {
                    "dataset": args.dataset,
                    "source": args.source or "generated",
                    "seed": args.seed,
                    "languages": list(options.languages),
                    "tokenizer": tokenizer_fingerprint(load_tokenizer(ours)) if has_tokenizer else None,
                }
            )
        finally:
            writer.close()
        lengths = length_figures(indices) if has_tokenizer else {}
        if lengths:
            draw_lengths(indices, directory / "lengths.png", f"{args.dataset}: tokens of an example")
    seconds = time.perf_counter() - started
    figures = {
        **{name: value for name, value in manifest.items() if name != "files"},
        "lengths": lengths,
        "seconds": seconds,
        "output": str(args.output),
    }
    if args.json:
        print_json(figures)
    else:
        _show(figures)
    return 0


def _chunks(args: argparse.Namespace, files: list[SourceFile], writer: Writer) -> tuple[Iterator[Chunk], int, int]:
    """What is still to be converted, the bytes of it all, and by how many processes."""
    if args.dataset == "mini":
        chunks = _mini(args, writer.directory)
        return (c for c in chunks if c.next_row > writer.next_row), sum(chunk.bytes for chunk in chunks), 1
    fields = DATASETS[args.dataset].row.model_fields
    required = [name for name, field in fields.items() if field.is_required()]
    total = sum(file.bytes for file in files)
    workers = args.workers or os.cpu_count() or 1
    chunks_left = read_chunks(files, list(fields), required, writer.next_row)
    return chunks_left, total, workers if total > _ONE_PROCESS else 1


def _mini(args: argparse.Namespace, directory: Path) -> list[Chunk]:
    """The embedded problems as rows of a file; trains their tokenizer, on the training split alone."""
    from wmtp_jax.data.mini import generate

    with Steps("making problems for mini (solutions)", args.solutions) as progress:
        rows = list(generate(args.solutions, args.seed, args.workers, progress.advance))
    if not args.tokenizer and not (directory / TOKENIZER).is_dir():
        texts = (
            prompt_text(row["description"]) + program
            for split, row in rows
            if split == "train"
            for kind in ("solutions", "incorrect_solutions")
            for program in row[kind]["solution"]
        )
        made = directory / f"{TOKENIZER}.writing"
        train_tokenizer(texts, args.vocab_size, made)
        made.rename(directory / TOKENIZER)
    chunks: list[Chunk] = []
    at = 0
    while at < len(rows):
        end = at
        while end < len(rows) and end - at < _MINI_AT_ONCE and rows[end][0] == rows[at][0]:
            end += 1
        lines = [json.dumps(fields).encode() for _, fields in rows[at:end]]
        chunks.append(Chunk("mini", rows[at][0], at, lines, (0, end), sum(map(len, lines))))
        at = end
    return chunks


def _write(
    writer: Writer, chunks: Iterator[Chunk], total: int, options: Options, tokenizer: Path | None, workers: int
) -> None:
    started, before = time.perf_counter(), writer.n_solutions
    description = f"preparing {options.dataset}"
    with Steps(description, total, every=0.05, in_bytes=True, done=writer.n_bytes) as progress:
        if before:
            progress.note(f"going on: {before:,} solutions of {writer.n_rows:,} rows are there")
        for batch in convert(chunks, options, tokenizer, workers):
            writer.add(batch)
            speed = (writer.n_solutions - before) / (time.perf_counter() - started)
            progress.advance(batch.n_bytes, f"{writer.n_solutions:,} solutions, {speed:,.0f}/s")
    if not writer.n_rows:
        raise UserError("--source: there is no row in it")


def _tokenizer_folder(args: argparse.Namespace) -> Path | None:
    """Folder of the tokenizer that was named: itself, or the one inside a model directory."""
    if args.tokenizer is None:
        return None
    inside = args.tokenizer / TOKENIZER
    return inside if inside.is_dir() else args.tokenizer


def _check(args: argparse.Namespace) -> None:
    if args.dataset == "mini" and args.source:
        raise UserError("--source: mini is generated and reads nothing; leave it out")
    if args.dataset != "mini" and not args.source:
        raise UserError(
            f"--source is missing: the file or folder of the raw data, or an id on the Hugging Face hub; it reads "
            f"{DATASETS[args.dataset].origin}"
        )
    if args.dataset in ("codecontests", "examples") and args.tokenizer is None:
        raise UserError(
            "--tokenizer is missing: the tokenizer of the model that will be trained (a folder with tokenizer.json or "
            "tokenizer.model, or a model directory)"
        )
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
    parser.add_argument("--dataset", required=True, choices=tuple(DATASETS), help="which form of raw data")
    parser.add_argument(
        "--source", help="raw data: a .parquet, .jsonl or .jsonl.gz file, a folder of them, or owner/name on the hub"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the processed data set")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="tokenizer folder or model directory (mini trains its own; mbpp and humaneval, which are read as texts, "
        "need none)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a data set that is there, and unfinished work of other options",
    )
    parser.add_argument(
        "--language",
        action="append",
        choices=tuple(LANGUAGES.values()),
        help="keep solutions in this language (default: python3); may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of mini, and of a validation split (default: 0)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.05,
        help="part of the problems for validation, where the source has no splits (default: 0.05)",
    )
    parser.add_argument("--solutions", type=int, default=20_000, help="size of mini (default: 20000)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="of mini's tokenizer (default: 1024)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    args = parser.parse_args(argv)
    args.language = args.language or ["python3"]
    return args


def _show(figures: dict[str, Any]) -> None:
    rows = [
        [split, *(f"{n[name]:,}" for name in ("problems", "correct", "incorrect", "tokens"))]
        for split, n in figures["splits"].items()
    ]
    title = f"Data set {figures['dataset']}"
    out.print(table(title, ["split", "problems", "correct", "incorrect", "tokens"], rows))
    if figures["lengths"]:
        names = list(next(iter(figures["lengths"].values())))
        rows = [[split, *(f"{of[name]:,}" for name in names)] for split, of in figures["lengths"].items()]
        out.print(table("Tokens of an example", ["split", *names], rows))
    for reason, count in figures["left_out"].items():
        out.print(f"left out: {count:,} {reason}", highlight=False)
    out.print(f"written to {figures['output']} in {figures['seconds']:.0f} s", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
