"""The embedded problems: schema, verified labels, splits, determinism."""

import json
import random
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from wmtp_jax.data import mini
from wmtp_jax.data.mini import generator
from wmtp_jax.data.mini.families import FAMILIES
from wmtp_jax.data.mini.generator import passes
from wmtp_jax.data.schema import CodeContestsRow, validate


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, dict]]:
    return list(mini.generate(n_solutions=4000, seed=3, workers=2))


def programs(row: dict, key: str) -> list[str]:
    return row[key]["solution"]


def cases_of(row: dict) -> list[tuple[str, str]]:
    groups = (row[f"{name}_tests"] for name in ("public", "private", "generated"))
    return [pair for group in groups for pair in zip(group["input"], group["output"], strict=True)]


def test_many_families_and_every_row_fits_the_schema(rows):
    assert len(FAMILIES) >= 40
    assert len({row["name"].rsplit("_", 1)[0] for _, row in rows}) == len(FAMILIES)
    for _, row in rows:
        validate(CodeContestsRow, row, row["name"])
        assert row["solutions"]["language"] == [3] * len(programs(row, "solutions"))
        assert len(programs(row, "solutions")) >= 3
        assert len(programs(row, "incorrect_solutions")) >= 2
        everything = programs(row, "solutions") + programs(row, "incorrect_solutions")
        assert len(set(everything)) == len(everything)
        assert all(max(len(p) + len(row["description"]), 0) < 1500 for p in everything)
        assert json.dumps(row).isascii()
        assert 1 <= row["difficulty"] <= 11
        assert len(row["public_tests"]["input"]) == 2
    names = [row["name"] for _, row in rows]
    assert len(set(names)) == len(names)


def test_size(rows):
    total = sum(len(programs(row, key)) for _, row in rows for key in ("solutions", "incorrect_solutions"))
    assert 4000 <= total <= 4020
    correct = sum(len(programs(row, "solutions")) for _, row in rows)
    assert 0.5 <= correct / total <= 0.6
    few = list(mini.generate(n_solutions=200, workers=1))
    assert {split for split, _ in few} == {"train", "valid", "test"}
    assert sum(len(programs(row, "solutions")) for _, row in few) >= 100


def test_labels_hold_in_a_python_of_their_own(rows):
    """Independently of the generator's way of running: a real interpreter, one process a test."""

    def accepted(program: str, tests: list[tuple[str, str]]) -> bool:
        for given, expected in tests:
            done = subprocess.run(
                [sys.executable, "-c", program],
                input=given,
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            if done.returncode or done.stdout.split() != expected.split():
                return False
        return True

    for _, row in random.Random(0).sample(rows, 4):
        for key, expected in (("solutions", True), ("incorrect_solutions", False)):
            assert accepted(programs(row, key)[0], cases_of(row)) is expected


def test_all_labels_hold(rows):
    for _, row in rows[::5]:
        tests = cases_of(row)
        assert all(passes(program, tests) for program in programs(row, "solutions"))
        assert not any(passes(program, tests) for program in programs(row, "incorrect_solutions"))


def test_validation_asks_for_something_new(rows):
    """No choice of parameters stands in two splits."""
    seen = defaultdict(set)
    for split, name, choice, _, _ in (job for job, _ in zip(generator._plan(FAMILIES, 0), range(2000), strict=False)):
        seen[name, choice].add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    share = Counter(
        split for split, _, _, _, _ in (j for j, _ in zip(generator._plan(FAMILIES, 0), range(1100), strict=False))
    )
    assert 0.03 < share["valid"] / 1100 < 0.08
    assert 0.03 < share["test"] / 1100 < 0.08
    by_split = defaultdict(set)
    for split, row in rows:
        by_split[split].add(row["description"])
    assert not by_split["train"] & by_split["valid"]
    assert not by_split["train"] & by_split["test"]


def test_same_seed_same_rows_for_any_number_of_workers(rows):
    alone = list(mini.generate(n_solutions=400, seed=3, workers=1))
    assert alone == rows[: len(alone)]
    assert alone != list(mini.generate(n_solutions=400, seed=4, workers=1))


def test_every_family_has_enough_to_ask():
    for family in FAMILIES:
        assert len(family.params) >= 24, family.name
        assert len({json.dumps(p, default=str) for p in family.params}) == len(family.params), family.name
        assert len(family.solutions) >= 3, family.name
        assert len(family.bugs) >= 4, family.name
        assert len(family.tasks) >= 2, family.name


@pytest.mark.parametrize(
    ("program", "good"),
    [
        ("print(int(input()) + 1)", True),
        ("import sys\nprint(int(sys.stdin.read()) + 1)", True),
        ("print(int(input()))", False),
        ("while True: pass", False),
        ("raise SystemExit(0)", False),
        ("print(1 / 0)", False),
        ("def f(): f()\nf()", False),
        ("print(2)\nprint(2)", False),
    ],
)
def test_running(program: str, good: bool):
    before = sys.stdin, sys.stdout
    assert passes(program, [("1\n", "2\n")]) is good
    assert (sys.stdin, sys.stdout) == before


def test_what_is_decided_by_parameters_is_not_asked_again():
    assert generator._decide("if 'left' == 'left':\n    f()\nelse:\n    g()") == "f()"
    assert generator._decide("x = a if 'u' == 'v' else b") == "x = b"
    assert generator._decide("print(best or 'NONE')") == "print(best or 'NONE')"
    assert generator._decide("y = {'min': min, 'max': max}['max'](a)") == "y = max(a)"
    assert generator._decide("if '' and c or d:\n    f()") == "if d:\n    f()"
    assert generator._decide("b = (u > v) == ('p' == 'q')") == "b = not u > v"


def test_bad_arguments():
    with pytest.raises(ValueError, match="n_solutions is 0"):
        next(mini.generate(n_solutions=0))


def test_progress():
    counts: list[int] = []
    list(mini.generate(n_solutions=300, workers=1, on_progress=counts.append))
    assert sum(counts) == 300
