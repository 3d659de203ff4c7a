"""Preparing and reading data, beside Hugging Face `datasets` and a padding collator doing the same in the same run.

``python -m benchmarks.data --solutions 200000 --programs <folder>`` prepares that many solutions both ways, each
in a process of its own (seconds, peak memory of all its processes together), then reads rows of 2,048 tokens from both:
ours packed and shuffled through Grain, theirs shuffled and padded. Without ``--programs`` (a folder with
``codecontests/problems.jsonl`` and ``condefects/pairs.jsonl``) programs are those of the mini data set. Needs the extra
``bench``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import parse_arguments, show

LENGTH, ROWS = 2048, 64  # tokens of a row, rows of a step: as in the production presets
PER_PROBLEM = 200  # solutions; CodeContests has about 280 of a problem in Python 3
VOCABULARY = 32_000

# What a user of `datasets` would write: a row a solution, tokenised once by all cores, kept on disk.
THEIRS = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer

source, tokenizer_folder, output, workers = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)


def solutions(batch):
    rows = {"prompt": [], "response": [], "is_correct": []}
    for description, *kinds in zip(batch["description"], batch["solutions"], batch["incorrect_solutions"]):
        prompt = f"### Instruction:\\n{description}\\n\\n### Response:\\n"
        for kind, is_correct in zip(kinds, (True, False)):
            for language, program in zip(kind["language"], kind["solution"]):
                if language == 3:
                    rows["prompt"].append(prompt)
                    rows["response"].append(program)
                    rows["is_correct"].append(is_correct)
    return rows


def tokens(batch):
    prompts = tokenizer(batch["prompt"], add_special_tokens=False)["input_ids"]
    responses = tokenizer(batch["response"], add_special_tokens=False)["input_ids"]
    bos, eos = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    return {
        "input_ids": [bos + p + r + eos for p, r in zip(prompts, responses)],
        "n_prompt": [1 + len(p) for p in prompts],
    }


data = load_dataset("parquet", data_files=source, split="train")
data = data.map(solutions, batched=True, batch_size=4, remove_columns=data.column_names, num_proc=int(workers))
data = data.map(tokens, batched=True, num_proc=int(workers))
data.save_to_disk(output)
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--solutions", type=int, default=200_000, help="how many are prepared (default: 200000)")
    parser.add_argument("--programs", type=Path, help="folder of real programs (default: those of mini)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (default: 2)")
    args = parse_arguments(parser, argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = _measure(args, folder)
    title = f"Data: {args.solutions:,} solutions, {args.workers} processes"
    command = f"data --solutions {args.solutions} --workers {args.workers}"
    show(args, title, command + (" --programs <folder>" if args.programs else ""), figures)
    return 0


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    from wmtp_jax.data.tokenize import train_tokenizer

    programs = list(_real_programs(args.programs) if args.programs else _mini_programs())
    tokenizer = folder / "tokenizer"
    train_tokenizer([text for pair in programs for text in pair], VOCABULARY, tokenizer)
    source = folder / "train.parquet"
    _write_parquet(source, programs, args.solutions)
    ours, theirs = folder / "ours", folder / "theirs"
    prepare = ["-m", "wmtp_jax.prepare", "--dataset", "codecontests", "--source", str(source), "--workers"]
    command = [*prepare, str(args.workers), "--tokenizer", str(tokenizer), "--output", str(ours)]
    seconds, peak = _run(command)
    their_seconds, their_peak = _run(["-c", THEIRS, str(source), str(tokenizer), str(theirs), str(args.workers)])
    figures = {
        "MB of raw Parquet": source.stat().st_size / 1e6,
        "prepare: seconds": seconds,
        "prepare: GiB of memory, peak": peak / 2**30,
        "prepare: MB on disk": _size(ours) / 1e6,
        "datasets: seconds": their_seconds,
        "datasets: GiB of memory, peak": their_peak / 2**30,
        "datasets: MB on disk": _size(theirs) / 1e6,
        "seconds, prepare over datasets": seconds / their_seconds,
    }
    return {**figures, **_read(ours, theirs), **_rows_needed(programs, tokenizer)}


def _read(ours: Path, theirs: Path) -> dict[str, float]:
    """Real tokens a second out of both, in turn; how full the rows are."""
    import jax
    from datasets import load_from_disk

    from wmtp_jax.data.batches import RowSource, training_batches
    from wmtp_jax.data.store import open_split

    split = open_split(ours, "train")
    chosen = np.flatnonzero(split.lengths <= LENGTH)
    started = time.perf_counter()
    rows = RowSource(split, chosen, LENGTH, packing=True, seed=0)
    placed = time.perf_counter() - started
    n_steps = min(len(rows) // ROWS, 60)
    data = load_from_disk(str(theirs))
    data = data.filter(lambda length: [n <= LENGTH for n in map(len, length)], batched=True, input_columns="input_ids")
    data = data.shuffle(seed=0).with_format("numpy")

    def read_ours() -> int:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        batches = training_batches(
            rows, sharding, rows_per_step=ROWS, accumulation=1, seed=0, first_step=0, last_step=n_steps
        )
        real = 0
        for batch in batches:
            jax.block_until_ready(batch.rows)
            real += int(batch.lengths.sum())
        return real

    def read_theirs() -> int:
        real = 0
        for start in range(0, n_steps * ROWS, ROWS):
            batch = data[start : start + ROWS]
            tokens = np.zeros((ROWS, LENGTH), np.int32)
            mask = np.zeros((ROWS, LENGTH), bool)
            for i, (ids, n_prompt) in enumerate(zip(batch["input_ids"], batch["n_prompt"], strict=True)):
                tokens[i, : len(ids)] = ids
                mask[i, n_prompt : len(ids)] = True
                real += len(ids)
            jax.block_until_ready(jax.device_put((tokens, mask)))
        return real

    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(4):
        for name, read in (("ours", read_ours), ("theirs", read_theirs)):
            started = time.perf_counter()
            speeds[name].append(read() / (time.perf_counter() - started))
    mine, other = (float(np.median(of[1:])) for of in speeds.values())
    return {
        "placing documents in rows: seconds": placed,
        "rows filled": rows.n_tokens / (len(rows) * LENGTH),
        "store and Grain, packed: real tokens/s": mine,
        "datasets, padded: real tokens/s": other,
        "real tokens/s, ours over theirs": mine / other,
    }


def _rows_needed(programs: list[tuple[str, str]], tokenizer: Path) -> dict[str, float]:
    """Rows of the programs as they are, packed and padded."""
    from wmtp_jax.data.pack import place_documents
    from wmtp_jax.data.tokenize import encode_responses, load_tokenizer, prompt_text

    loaded = load_tokenizer(tokenizer)
    prompts = encode_responses(loaded, [prompt_text(statement) for statement, _ in programs])
    responses = encode_responses(loaded, [program for _, program in programs])
    lengths = np.array([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], np.int32)
    lengths = lengths[lengths <= LENGTH]
    packed = len(place_documents(lengths, LENGTH, 0))
    return {
        "the programs themselves: solutions": len(lengths),
        "the programs themselves: mean tokens": float(lengths.mean()),
        "the programs themselves: padded rows over packed": len(lengths) / packed,
        "the programs themselves: rows filled": float(lengths.sum()) / (packed * LENGTH),
    }


def _real_programs(folder: Path) -> Iterator[tuple[str, str]]:
    """Statement and program; the submissions of ConDefects have none."""
    with (folder / "codecontests/problems.jsonl").open() as file:
        for row in map(json.loads, file):
            yield row["description"], row["solution_py3"]
    with (folder / "condefects/pairs.jsonl").open() as file:
        for row in map(json.loads, file):
            for kind in ("correct", "faulty"):
                yield "", row[kind]


def _mini_programs() -> Iterator[tuple[str, str]]:
    from wmtp_jax.data.mini import generate

    for _, row in generate(4000):
        for program in row["solutions"]["solution"]:
            yield row["description"], program


def _write_parquet(path: Path, programs: list[tuple[str, str]], n_solutions: int) -> None:
    """Problems in CodeContests' schema: a statement, and programs of any problem, each below a comment of its own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    statements = [statement for statement, _ in programs if statement]

    def solutions(count: int) -> dict[str, Any]:
        drawn = (programs[i][1] for i in rng.integers(len(programs), size=count))
        texts = [f"# {number:x}\n{text}" for number, text in zip(rng.integers(2**60, size=count), drawn, strict=True)]
        return {"language": [3] * count, "solution": texts}

    rows = (
        {
            "name": f"problem {number}",
            "description": statements[int(rng.integers(len(statements)))],
            "difficulty": int(rng.integers(12)),
            "solutions": solutions(PER_PROBLEM // 2),
            "incorrect_solutions": solutions(PER_PROBLEM - PER_PROBLEM // 2),
        }
        for number in range(n_solutions // PER_PROBLEM)
    )
    first = pa.Table.from_pylist([next(rows)])
    with pq.ParquetWriter(path, first.schema) as file:
        file.write_table(first)
        while part := [row for row, _ in zip(rows, range(100), strict=False)]:
            file.write_table(pa.Table.from_pylist(part, schema=first.schema))


def _run(arguments: list[str]) -> tuple[float, int]:
    """Seconds of a Python command, and the peak of the memory of all its processes together, in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said: list[bytes] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda stream: said.extend(stream), args=(process.stderr,))
    reader.start()
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_memory, _processes(process.pid))))
        time.sleep(0.2)
    reader.join()
    if process.returncode:
        raise RuntimeError(b"".join(said).decode())
    return time.perf_counter() - started, peak


def _processes(pid: int) -> list[int]:
    found = [pid]
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [one for child in children.read_text().split() for one in _processes(int(child))]
    except OSError:  # it has ended meanwhile
        return found
    return found


def _memory(pid: int) -> int:
    """Bytes of a process, what it shares with others counted in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
