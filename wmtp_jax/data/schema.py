"""The two forms of data: a raw CodeContests row, and a processed example."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wmtp_jax.errors import UserError

PYTHON3 = 3  # the number of the language in CodeContests
LANGUAGES = {0: "unknown", 1: "python2", 2: "cpp", 3: "python3", 4: "java"}


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Example(_Record):
    """One processed example: one solution of one problem.

    Attributes:
      instruction: the problem statement.
      input: further context; empty for CodeContests.
      output: the program.
      task_id: the problem's name, the same for all its solutions.
      is_correct: the verified outcome: it passed the problem's tests.
      metadata: source, difficulty and what else is known.
    """

    instruction: str
    input: str
    output: str
    task_id: str
    is_correct: bool
    metadata: dict[str, Any] = Field(default_factory=dict)


class TestCases(_Record):
    """Inputs and the outputs they must give."""

    input: list[str] = []
    output: list[str] = []


class Solutions(_Record):
    """Programs and the numbers of their languages."""

    language: list[int] = []
    solution: list[str] = []


class TimeLimit(_Record):
    """A duration."""

    seconds: int = 0
    nanos: int = 0


class CodeContestsRow(_Record):
    """One problem in the schema of ``deepmind/code_contests``."""

    name: str = Field(min_length=1)
    description: str
    public_tests: TestCases = TestCases()
    private_tests: TestCases = TestCases()
    generated_tests: TestCases = TestCases()
    difficulty: int = 0
    cf_tags: list[str] = []
    time_limit: TimeLimit | None = None
    solutions: Solutions
    incorrect_solutions: Solutions = Solutions()


def parse_json(line: bytes | str, where: str) -> Any:
    """One line of JSON.

    Raises:
      UserError: it is not JSON; ``where`` (file and line) is named.
    """
    try:
        return json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, column {error.colno}: broken JSON ({error.msg}); mend or remove that line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def validate(model: type[_Record], value: Any, where: str) -> Any:
    """Checks a value against a record type.

    Raises:
      UserError: all fields that are missing or of the wrong type, with ``where``.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with fields, found {type(value).__name__}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            if item["type"] == "missing":
                problems.append(f"the field {field!r} is missing")
            else:
                problems.append(f"the field {field!r}: {item['msg']}, found {item['input']!r:.60}")
        needed = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        raise UserError(f"{where}: {'; '.join(problems)}. Each row needs {needed}") from None


def parse_example(line: bytes | str, where: str) -> Example:
    """A line of a processed split. Raises UserError as `parse_json` and `validate` do."""
    return validate(Example, parse_json(line, where), where)
