"""The forms of data: the raw rows that sources bring, and a processed example."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    task_id: str = Field(min_length=1)
    is_correct: bool
    metadata: dict[str, Any] = Field(default_factory=dict)


class TestCases(_Record):
    """Inputs and the outputs they must give."""

    input: list[str] = []
    output: list[str] = []

    @model_validator(mode="after")
    def _paired(self) -> TestCases:
        if len(self.input) != len(self.output):
            raise ValueError(f"{len(self.input)} inputs, but {len(self.output)} outputs")
        return self


class Solutions(_Record):
    """Programs and the numbers of their languages."""

    language: list[int] = []
    solution: list[str] = []

    @model_validator(mode="after")
    def _paired(self) -> Solutions:
        if len(self.language) != len(self.solution):
            raise ValueError(f"{len(self.language)} languages, but {len(self.solution)} solutions")
        return self


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
    difficulty: int = Field(0, ge=-(2**63), lt=2**63)
    cf_tags: list[str] = []
    time_limit: TimeLimit | None = None
    solutions: Solutions
    incorrect_solutions: Solutions = Solutions()

    @field_validator("difficulty", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value  # as pandas writes them


class TestCase(_Record):
    """One input and the output it must give."""

    input: str
    output: str


class ExtractRow(_Record):
    """One problem of an extract of CodeContests: a single Python 3 solution, and its tests in a list."""

    id: str = Field(min_length=1)
    description: str
    solution_py3: str
    tags: list[str] = []
    tests: list[TestCase] = []

    def full(self) -> CodeContestsRow:
        """The same problem in the full schema."""
        return CodeContestsRow(
            name=self.id,
            description=self.description,
            cf_tags=self.tags,
            public_tests=TestCases(input=[t.input for t in self.tests], output=[t.output for t in self.tests]),
            solutions=Solutions(language=[PYTHON3], solution=[self.solution_py3]),
        )


class HumanEvalRow(_Record):
    """One problem of HumanEval; the prompt is the beginning of the program."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


class MbppRow(_Record):
    """One problem of MBPP."""

    task_id: int = Field(ge=1, le=974)
    text: str
    code: str
    test_setup_code: str
    test_list: list[str]
    challenge_test_list: list[str]


def parse_json(line: bytes, where: str) -> Any:
    """One line of JSON. Bytes that are no UTF-8 become lone surrogates, which no record type takes for text.

    Raises:
      UserError: it is not JSON; ``where`` (file and line) is named.
    """
    try:
        return json.loads(line.decode("utf-8", "surrogateescape").strip())
    except json.JSONDecodeError as error:
        raise UserError(f"{where}, column {error.colno}: broken JSON ({error.msg}); mend or remove that line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets by the thousand
        raise UserError(f"{where}: cannot be read ({str(error)[:60]}); mend or remove that line") from None


def is_text(value: Any) -> bool:
    """Whether all strings in a value are text: none with half of a surrogate pair, or bytes in an unknown encoding."""
    if isinstance(value, dict):
        return all(is_text(item) for item in value.values())
    if isinstance(value, list):
        return all(is_text(item) for item in value)
    try:
        return not isinstance(value, str) or value.encode() is not None
    except UnicodeEncodeError:
        return False


def validate(model: type[_Record], value: Any, where: str) -> Any:
    """Checks a value against a record type.

    Raises:
      UserError: all fields that are missing or of the wrong type, with ``where``.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object with fields, found {type(value).__name__}")
    for name, field in value.items():
        if not is_text(field):
            raise UserError(f"{where}: the field {name!r} is not UTF-8 text; mend or remove that row")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            if item["type"] == "missing":
                problems.append(f"the field {field!r} is missing")
            else:
                message = item["msg"].removeprefix("Value error, ")
                problems.append(f"the field {field!r}: {message}, found {item['input']!r:.60}")
        needed = ", ".join(name for name, field in model.model_fields.items() if field.is_required())
        raise UserError(f"{where}: {'; '.join(problems)}. Each row needs {needed}") from None
