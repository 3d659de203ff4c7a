"""Readers of raw data: each gives problems, with their split, their examples and their test cases.

CodeContests (Parquet or JSONL) and the embedded problems take the same path; HumanEval and MBPP
bring one correct solution a problem.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wmtp_jax.data.schema import (
    LANGUAGES,
    PYTHON3,
    CodeContestsRow,
    Example,
    ExtractRow,
    HumanEvalRow,
    MbppRow,
    TestCases,
    parse_json,
    validate,
)
from wmtp_jax.data.store import SPLITS
from wmtp_jax.errors import UserError


class Problem(NamedTuple):
    """One problem, ready to be written.

    Attributes:
      split: train, valid or test.
      examples: its solutions, the correct ones first.
      tests: its test cases, for the judge alone.
      left_out: solutions that are not among the examples, by reason.
    """

    split: str
    examples: list[Example]
    tests: dict[str, Any]
    left_out: Counter[str]


class RawRow(NamedTuple):
    """A row as it stands in a source: its split (None: the source has none), fields, and place."""

    split: str | None
    fields: Any
    where: str


def codecontests(source: Path, seed: int, validation_fraction: float) -> Iterator[Problem]:
    """Problems of CodeContests: a Parquet or JSONL file (also .gz), or a folder of such files.

    The split is the beginning of the file's name (train, valid, test). Problems of other files are
    divided into train and valid by a seeded hash of their name.

    Raises:
      UserError: nothing to read, a damaged file, a row with missing or wrong fields, a name that stands twice.
    """
    seen: dict[str, str] = {}
    for raw in _read_rows(source):
        if isinstance(raw.fields, dict) and "solution_py3" in raw.fields:
            row = validate(ExtractRow, raw.fields, raw.where).full()
        else:
            row = validate(CodeContestsRow, raw.fields, raw.where)
        if row.name in seen:
            raise UserError(f"{raw.where}: the problem {row.name!r} stands at {seen[row.name]} already; remove one")
        seen[row.name] = raw.where
        yield make_problem(raw.split or _draw_split(row.name, seed, validation_fraction), row, "codecontests")


def mini(n_solutions: int, seed: int, workers: int | None, on_progress: Callable[[int], None]) -> Iterator[Problem]:
    """The embedded problems, from `wmtp_jax.data.mini`."""
    from wmtp_jax.data.mini import generate

    rows = generate(n_solutions=n_solutions, seed=seed, workers=workers, on_progress=on_progress)
    for split, fields in rows:
        yield make_problem(split, validate(CodeContestsRow, fields, "mini"), "mini")


def humaneval(source: Path) -> Iterator[Problem]:
    """HumanEval: 164 problems, split test; the prompt is the beginning of the program."""
    for raw in _read_rows(source):
        row = validate(HumanEvalRow, raw.fields, raw.where)
        tests = {
            "task_id": row.task_id,
            "kind": "python",
            "setup": "",
            "test": row.test,
            "entry_point": row.entry_point,
        }
        yield _single("test", row.task_id, row.prompt, row.canonical_solution, tests, "humaneval")


def mbpp(source: Path) -> Iterator[Problem]:
    """MBPP: split by task_id as published (11-510 test, 511-600 validation, 601-974 train, 1-10 prompts)."""
    seen: dict[int, str] = {}
    for raw in _read_rows(source):
        row = validate(MbppRow, raw.fields, raw.where)
        number = row.task_id
        if number in seen:
            raise UserError(f"{raw.where}: task_id {number} stands at {seen[number]} already; remove one")
        seen[number] = raw.where
        # The ten few-shot prompts stand in no split of their own: they are no test problems.
        split = "test" if 11 <= number <= 510 else "valid" if 511 <= number <= 600 else "train"
        name = f"mbpp/{number}"
        tests = {
            "task_id": name,
            "kind": "python",
            "setup": row.test_setup_code,
            "test": "\n".join([*row.test_list, *row.challenge_test_list]),
            "entry_point": None,
        }
        yield _single(split, name, row.text, row.code, tests, "mbpp", {"few_shot": number <= 10})


def make_problem(split: str, row: CodeContestsRow, source: str) -> Problem:
    """Examples of a CodeContests row: its Python 3 solutions, each text once, line ends as \\n."""
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    examples: list[Example] = []
    for solutions, is_correct in ((row.solutions, True), (row.incorrect_solutions, False)):
        for language, text in zip(solutions.language, solutions.solution, strict=True):
            program = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
            if language != PYTHON3:
                left_out[f"solutions in {LANGUAGES.get(language, 'another language')}"] += 1
            elif not program:
                left_out["empty solutions"] += 1
            elif program in seen:
                left_out["repeated solutions"] += 1
            else:
                seen.add(program)
                metadata = {
                    "source": source,
                    "difficulty": row.difficulty,
                    "language": "python3",
                    "tags": row.cf_tags,
                }
                examples.append(_example(row.name, row.description, program, is_correct, metadata))
    if not examples:
        left_out["problems without a Python 3 solution"] += 1
    limit = row.time_limit
    tests = {
        "task_id": row.name,
        "kind": "stdio",
        "public": _cases(row.public_tests),
        "private": _cases(row.private_tests),
        "generated": _cases(row.generated_tests),
        "time_limit_seconds": limit.seconds + limit.nanos / 1e9 if limit else None,
    }
    return Problem(split, examples, tests, left_out)


def _single(
    split: str,
    name: str,
    instruction: str,
    program: str,
    tests: dict[str, Any],
    source: str,
    extra: dict[str, Any] | None = None,
) -> Problem:
    metadata = {"source": source, "difficulty": 0, "language": "python3", **(extra or {})}
    program = program.replace("\r\n", "\n").rstrip()
    return Problem(split, [_example(name, instruction, program, True, metadata)], tests, Counter())


def _example(name: str, instruction: str, program: str, correct: bool, metadata: dict[str, Any]) -> Example:
    return Example(
        instruction=instruction.replace("\r\n", "\n").strip(),
        input="",
        output=program,
        task_id=name,
        is_correct=correct,
        metadata=metadata,
    )


def _cases(tests: TestCases) -> list[dict[str, str]]:
    return [{"input": i, "output": o} for i, o in zip(tests.input, tests.output, strict=True)]


def _draw_split(name: str, seed: int, validation_fraction: float) -> str:
    """Train or valid by a hash: a problem stays where it is when others come or go."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return "valid" if int.from_bytes(digest[:8], "big") / 2**64 < validation_fraction else "train"


def _read_rows(source: Path) -> Iterator[RawRow]:
    """Rows of a file or of all data files of a folder, in the order of their names."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; --source names the raw data")
    if source.is_file():
        files = [source]
        if not _is_data_file(source):
            raise UserError(f"{source}: expected .parquet, .jsonl or .jsonl.gz")
    else:
        files = sorted(path for path in source.rglob("*") if _is_data_file(path) and path.is_file())
        if not files:
            raise UserError(f"{source}: holds no .parquet, .jsonl or .jsonl.gz file")
    empty = True
    for path in files:
        split = next((s for s in SPLITS if path.name.startswith(s)), None)
        rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        for fields, where in rows:
            empty = False
            yield RawRow(split, fields, where)
    if empty:
        raise UserError(f"{source}: there is no row in it")


def _is_data_file(path: Path) -> bool:
    return path.name.endswith((".parquet", ".jsonl", ".jsonl.gz"))


def _read_jsonl(path: Path) -> Iterator[tuple[Any, str]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path} line {number}"
                    yield parse_json(line, where), where
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: cannot be read or damaged ({error}); copy or download it again") from error


def _read_parquet(path: Path) -> Iterator[tuple[Any, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = list(CodeContestsRow.model_fields)
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in wanted if name in file.schema_arrow.names]
            missing = [n for n, f in CodeContestsRow.model_fields.items() if f.is_required() and n not in columns]
            if missing:
                raise UserError(
                    f"{path}: the column {missing[0]!r} is missing; found {', '.join(file.schema_arrow.names)}. "
                    "Expected the columns of deepmind/code_contests"
                )
            number = 0
            # A row with its solutions and tests can have megabytes: few at once.
            for batch in file.iter_batches(batch_size=32, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    yield {k: v for k, v in fields.items() if v is not None}, f"{path} row {number}"
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged Parquet ({str(error).splitlines()[0]}); download it again") from error
