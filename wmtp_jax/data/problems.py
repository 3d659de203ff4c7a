"""Raw rows of each data set -> problems: their split, their examples, their test cases."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from wmtp_jax.data.schema import (
    LANGUAGES,
    CodeContestsRow,
    Example,
    ExtractRow,
    HumanEvalRow,
    MbppRow,
    TestCases,
    is_text,
    validate,
)

UNKNOWN_ENCODING = "solutions in an unknown encoding"
EMPTY, REPEATED = "empty solutions", "repeated solutions"
CONTRADICTED = "incorrect solutions that are also correct ones"


class Options(NamedTuple):
    """What decides how raw rows become problems.

    Attributes:
      dataset: a key of `DATASETS`.
      languages: names (`wmtp_jax.data.schema.LANGUAGES`) of the languages that are kept.
      seed, validation_fraction: of the split of problems whose file says none.
    """

    dataset: str
    languages: tuple[str, ...]
    seed: int
    validation_fraction: float


class Problem(NamedTuple):
    """One problem, ready to be written.

    Attributes:
      split: train, valid or test.
      name: of the problem, where the source has one row of it; None: it may have several.
      examples: its solutions, the correct ones first.
      tests: its test cases, for the judge alone; None: there are none.
      left_out: solutions that are not among the examples, by reason.
    """

    split: str
    name: str | None
    examples: list[Example]
    tests: dict[str, Any] | None
    left_out: Counter[str]


class DataSet(NamedTuple):
    """A form of raw data.

    Attributes:
      row: the record type of a row.
      problem: ``(fields, where, split of the file, options) -> Problem``.
      origin: what to download.
    """

    row: type[BaseModel]
    problem: Callable[[Any, str, str | None, Options], Problem]
    origin: str


def codecontests(fields: Any, where: str, split: str | None, options: Options) -> Problem:
    """A row of CodeContests (or of an extract of it): its solutions in the languages asked for, each text once.

    Line ends become \\n. What is no text is left out.
    """
    left_out: Counter[str] = Counter()
    if isinstance(fields, dict):
        fields = {key: _readable(value, left_out) if "solutions" in key else value for key, value in fields.items()}
    if isinstance(fields, dict) and "solution_py3" in fields:
        row = validate(ExtractRow, fields, where).full()
    else:
        row = validate(CodeContestsRow, fields, where)
    seen: dict[str, bool] = {}
    examples: list[Example] = []
    for solutions, is_correct in ((row.solutions, True), (row.incorrect_solutions, False)):
        for language, text in zip(solutions.language, solutions.solution, strict=True):
            name = LANGUAGES.get(language, "another language")
            program = _program(text)
            if name not in options.languages:
                left_out[f"solutions in {name}"] += 1
            elif not program:
                left_out[EMPTY] += 1
            elif program in seen:
                left_out[REPEATED if seen[program] == is_correct else CONTRADICTED] += 1
            else:
                seen[program] = is_correct
                metadata = {
                    "source": options.dataset,
                    "difficulty": row.difficulty,
                    "language": name,
                    "tags": row.cf_tags,
                }
                examples.append(_example(row.name, row.description, program, is_correct, metadata))
    if not examples:
        left_out[f"problems without a solution in {' or '.join(options.languages)}"] += 1
    limit = row.time_limit
    tests = {
        "task_id": row.name,
        "kind": "stdio",
        "public": _cases(row.public_tests),
        "private": _cases(row.private_tests),
        "generated": _cases(row.generated_tests),
        "time_limit_seconds": limit.seconds + limit.nanos / 1e9 if limit else None,
    }
    return Problem(split or _draw_split(row.name, options), row.name, examples, tests, left_out)


def humaneval(fields: Any, where: str, split: str | None, options: Options) -> Problem:
    """A problem of HumanEval, split test; the prompt is the beginning of the program."""
    row = validate(HumanEvalRow, fields, where)
    tests = _unit_tests(row.task_id, "", row.test, row.entry_point)
    metadata = {"source": "humaneval", "difficulty": 0, "language": "python3"}
    return _single("test", row.task_id, row.prompt, row.canonical_solution, tests, metadata)


def mbpp(fields: Any, where: str, split: str | None, options: Options) -> Problem:
    """A problem of MBPP, split by task_id as published: 11-510 test, 511-600 valid, 601-974 train, 1-10 prompts."""
    row = validate(MbppRow, fields, where)
    # The ten few-shot prompts stand in no split of their own: they are no test problems.
    published = "test" if 11 <= row.task_id <= 510 else "valid" if 511 <= row.task_id <= 600 else "train"
    name = f"mbpp/{row.task_id}"
    tests = _unit_tests(name, row.test_setup_code, "\n".join([*row.test_list, *row.challenge_test_list]), None)
    metadata = {"source": "mbpp", "difficulty": 0, "language": "python3", "few_shot": row.task_id <= 10}
    return _single(published, name, row.text, row.code, tests, metadata)


def examples(fields: Any, where: str, split: str | None, options: Options) -> Problem:
    """One solution in the schema of a processed example; its texts are taken to the letter."""
    if isinstance(fields, dict) and not is_text(fields.get("output")):
        return Problem(split or "train", None, [], None, Counter([UNKNOWN_ENCODING]))
    example = validate(Example, fields, where)
    kept = [example] if example.output.strip() else []
    left_out = Counter([] if kept else [EMPTY])
    return Problem(split or _draw_split(example.task_id, options), None, kept, None, left_out)


DATASETS = {
    "mini": DataSet(CodeContestsRow, codecontests, "nothing: it is generated"),
    "codecontests": DataSet(CodeContestsRow, codecontests, "the Parquet files of deepmind/code_contests"),
    "mbpp": DataSet(MbppRow, mbpp, "mbpp.jsonl of google-research/mbpp"),
    "humaneval": DataSet(HumanEvalRow, humaneval, "HumanEval.jsonl.gz of openai/human-eval"),
    "examples": DataSet(Example, examples, "nothing: JSONL files of your own"),
}


def _readable(solutions: Any, left_out: Counter[str]) -> Any:
    """Solutions without those that are no text; another form is returned as it is, for the record type to refuse."""
    texts = solutions.get("solution") if isinstance(solutions, dict) else None
    languages = solutions.get("language") if isinstance(solutions, dict) else None
    if not isinstance(texts, list) or not isinstance(languages, list) or len(texts) != len(languages):
        return solutions
    kept = [i for i, text in enumerate(texts) if is_text(text)]
    if len(kept) == len(texts):
        return solutions
    left_out[UNKNOWN_ENCODING] += len(texts) - len(kept)
    return {**solutions, "solution": [texts[i] for i in kept], "language": [languages[i] for i in kept]}


def _program(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()


def _single(
    split: str, name: str, instruction: str, solution: str, tests: dict[str, Any], metadata: dict[str, Any]
) -> Problem:
    """A problem with one correct solution."""
    program = _program(solution)
    if not program:
        return Problem(split, name, [], tests, Counter([EMPTY]))
    return Problem(split, name, [_example(name, instruction, program, True, metadata)], tests, Counter())


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


def _unit_tests(name: str, setup: str, test: str, entry_point: str | None) -> dict[str, Any]:
    return {"task_id": name, "kind": "python", "setup": setup, "test": test, "entry_point": entry_point}


def _draw_split(name: str, options: Options) -> str:
    """Train or valid by a hash: a problem stays where it is when others come or go."""
    digest = hashlib.sha256(f"{options.seed}/{name}".encode()).digest()
    return "valid" if int.from_bytes(digest[:8], "big") / 2**64 < options.validation_fraction else "train"
