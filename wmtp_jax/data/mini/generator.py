"""Problems from families: parameters, wording, programs in several styles, bugs, and verified labels.

A `Family` says what its problems have in common. A problem is a family with one choice of parameters
and words. Its programs are the family's solutions, right ones and ones with a bug put in, written with
other variable names, other ways of reading the input, with or without a function around them. Every
program is run on the problem's tests, and its label is what that showed.
"""

from __future__ import annotations

import ast
import io
import keyword
import multiprocessing
import os
import random
import re
import signal
import sys
import textwrap
import token
import tokenize
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

PYTHON3 = 3
PROGRAMS_PER_PROBLEM = 18
CORRECT_SHARE = 0.56
MAX_SECONDS = 0.2  # of processor time, for one program on one test
N_PUBLIC, N_PRIVATE = 2, 4

Params = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A form of input: how it is described, written, and read.

    Attributes:
      descriptions: sentences that tell what the input is.
      write: arguments of the reference -> input text.
      readers: Python statements that read it into the names that solutions use.
    """

    descriptions: tuple[str, ...]
    write: Callable[..., str]
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Problems of one sort.

    In texts and programs, ``<name>`` stands for the parameter of that name.

    Attributes:
      name, difficulty (1 to 11), tags: as in a CodeContests row.
      kind: form of the input.
      params: all choices of parameters.
      tasks: sentences that say what to do; one is chosen.
      output: sentences that say what to print; one is chosen.
      cases: makes arguments for the reference, edge cases first, at least 10.
      reference: ``(params, *arguments) -> answer``, in plain Python.
      solutions: at least three programs without their reading of the input.
      bugs: ``(old, new)``: a realistic slip; put into every solution that holds ``old``.
    """

    name: str
    difficulty: int
    tags: tuple[str, ...]
    kind: Kind
    params: list[Params]
    tasks: tuple[str, ...]
    output: tuple[str, ...]
    cases: Callable[[random.Random, Params], list[tuple[Any, ...]]]
    reference: Callable[..., Any]
    solutions: tuple[str, ...]
    bugs: tuple[tuple[str, str], ...]


def generate(
    families: Sequence[Family],
    n_solutions: int = 20_000,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ``(split, row)``: rows in CodeContests' schema, in an order that depends on the seed alone.

    Args:
      families: what to draw from, evenly.
      n_solutions: programs in all; met to within one problem.
      seed: same seed, same rows, for any number of workers.
      workers: processes; None for one a core, 1 for this process alone.
      on_progress: called with the number of further programs that have been run.

    Raises:
      ValueError: ``n_solutions`` is below 1.
      RuntimeError: a family's own solution fails a test: its reference or the solution is wrong.
    """
    if n_solutions < 1:
        raise ValueError(f"n_solutions is {n_solutions}; it must be 1 or more")
    workers = workers or os.cpu_count() or 1
    jobs = _plan(families, seed)
    # The number of unique programs differs a little from problem to problem, so go on until there are enough.
    done = 0
    for split, row in _run(jobs, workers):
        count = len(row["solutions"]["solution"]) + len(row["incorrect_solutions"]["solution"])
        yield split, row
        done += count
        if on_progress:
            on_progress(min(count, n_solutions - (done - count)))
        if done >= n_solutions:
            return


def _run(jobs: Iterator[tuple[Any, ...]], workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers == 1:
        yield from map(_make_problem, jobs)
        return
    # spawn: a forked copy of a program with threads (jax, a test runner) may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            while chunk := list(islice(jobs, 32 * workers)):
                yield from pool.map(_make_problem, chunk, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


def _plan(families: Sequence[Family], seed: int) -> Iterator[tuple[Any, ...]]:
    """Endless jobs, one problem each: families in turn, each problem with parameters of its split alone.

    Of every 20 problems of a family one is for validation and one for testing, and no choice of
    parameters is used in two splits: a validation problem asks for something that no training problem
    of its family asks for.
    """
    choices: dict[str, dict[str, list[int]]] = {}
    for family in families:
        order = list(range(len(family.params)))
        random.Random(f"{seed}/{family.name}").shuffle(order)
        held_out = max(len(order) // 20, 1)
        choices[family.name] = {
            "valid": order[:held_out],
            "test": order[held_out : 2 * held_out],
            "train": order[2 * held_out :],
        }
    round_number, used = 0, {(f.name, s): 0 for f in families for s in ("train", "valid", "test")}
    while True:
        split = {10: "valid", 19: "test"}.get(round_number % 20, "train")
        # With few problems asked for, every split still gets some: families take turns in being early.
        for position, family in enumerate(families):
            here = split if round_number else {3: "valid", 7: "test"}.get(position % 10, "train")
            options = choices[family.name][here]
            number = used[family.name, here]
            used[family.name, here] += 1
            yield here, family.name, options[number % len(options)], round_number, seed
        round_number += 1


def _make_problem(job: tuple[str, str, int, int, int]) -> tuple[str, dict[str, Any]]:
    from wmtp_jax.data.mini.families import BY_NAME  # here: worker processes import it themselves

    split, name, choice, number, seed = job
    family = BY_NAME[name]
    params = family.params[choice]
    rng = random.Random(f"{seed}/{name}/{number}")
    description = "\n".join(
        _fill(part, params)
        for part in (
            rng.choice(family.tasks),
            rng.choice(family.kind.descriptions),
            rng.choice(family.output),
        )
    )
    arguments = family.cases(rng, params)
    tests = [(family.kind.write(*case), _show(family.reference(params, *case))) for case in arguments]
    correct, incorrect = _write_programs(family, params, tests, rng)
    rest = N_PUBLIC + N_PRIVATE
    # Edge cases come first in `cases`: they are private, and the public ones are ordinary.
    groups = {
        "public_tests": tests[-N_PUBLIC:],
        "private_tests": tests[:N_PRIVATE],
        "generated_tests": tests[N_PRIVATE : len(tests) - N_PUBLIC],
    }
    assert len(tests) > rest, f"{name}: {len(tests)} cases, more than {rest} are needed"
    row = {
        "name": f"mini_{name}_{number}",
        "description": description,
        **{key: {"input": [t[0] for t in group], "output": [t[1] for t in group]} for key, group in groups.items()},
        "source": 0,
        "difficulty": family.difficulty,
        "cf_rating": 0,
        "cf_tags": list(family.tags),
        "time_limit": {"seconds": 1, "nanos": 0},
        "solutions": {"language": [PYTHON3] * len(correct), "solution": correct},
        "incorrect_solutions": {"language": [PYTHON3] * len(incorrect), "solution": incorrect},
    }
    return split, row


def _write_programs(
    family: Family, params: Params, tests: list[tuple[str, str]], rng: random.Random
) -> tuple[list[str], list[str]]:
    """Unique programs that pass all tests, and ones that do not."""
    filled = [_fill(textwrap.dedent(text).strip(), params) for text in family.solutions]
    bugs = [(_fill(old, params), _fill(new, params)) for old, new in family.bugs]
    slips = [_decide(s.replace(old, new, 1)) for s in filled for old, new in bugs if old in s and old != new]
    solutions = [_decide(text) for text in filled]
    # A slip may do no harm with these parameters (x < 1 for x <= 0): then it is no bug.
    slips = [text for text in slips if not passes(_style(family, text, None), tests)]
    n_correct = round(PROGRAMS_PER_PROBLEM * CORRECT_SHARE)
    result = []
    for texts, wanted, is_correct in (
        (solutions, n_correct, True),
        (slips, PROGRAMS_PER_PROBLEM - n_correct, False),
    ):
        programs: list[str] = []
        rng.shuffle(texts)
        for attempt in range(4 * wanted if texts else 0):
            program = _style(family, texts[attempt % len(texts)], rng)
            if program in programs:
                continue
            if passes(program, tests) != is_correct:
                if is_correct:
                    raise RuntimeError(f"family {family.name}, {params}: this solution fails a test:\n{program}")
                continue
            programs.append(program)
            if len(programs) == wanted:
                break
        result.append(programs)
    return result[0], result[1]


# Names that solutions use, and what people call the same thing.
SYNONYMS = {
    "n": ("n", "n", "size", "count"),
    "m": ("m", "cols", "width"),
    "k": ("k", "limit", "q"),
    "a": ("a", "nums", "values", "arr", "numbers"),
    "x": ("x", "first", "p"),
    "y": ("y", "second", "r"),
    "s": ("s", "text", "line", "word"),
    "t": ("t", "other", "text2"),
    "w": ("w", "words", "tokens"),
    "g": ("g", "grid", "rows", "table"),
    "p": ("p", "pairs", "items"),
    "v": ("v", "value", "num", "e"),
    "c": ("c", "ch", "letter"),
    "i": ("i", "idx", "pos"),
    "j": ("j", "other_idx"),
    "res": ("res", "result", "ans", "answer", "out"),
    "total": ("total", "acc", "tally"),
    "best": ("best", "top", "record"),
    "cur": ("cur", "current", "now"),
}


class _Decide(ast.NodeTransformer):
    """Carries out what is already decided once parameters are filled in.

    Templates may ask ``if '<way>' == 'left'``; a person who solves this one problem writes one branch.
    """

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        left, right, sign = node.left, node.comparators[0], node.ops[0]
        if len(node.ops) > 1 or not isinstance(sign, ast.Eq | ast.NotEq) or not isinstance(right, ast.Constant):
            return node
        if isinstance(left, ast.Constant) and isinstance(left.value, str):
            return ast.Constant((left.value == right.value) == isinstance(sign, ast.Eq))
        if isinstance(right.value, bool):  # (u > v) == True
            return left if right.value == isinstance(sign, ast.Eq) else ast.UnaryOp(ast.Not(), left)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        decisive = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for position, value in enumerate(node.values):
            # A text in the last place is the result (``found or 'NONE'``), not a condition.
            is_result = isinstance(value, ast.Constant) and isinstance(value.value, str)
            known = None if is_result and position == len(node.values) - 1 else _decided(value)
            if known is decisive:
                return ast.Constant(decisive)
            if known is None:
                kept.append(value)
        if not kept:
            return ast.Constant(not decisive)
        return kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return {True: node.body, False: node.orelse, None: node}[_decided(node.test)]

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        known = _decided(node.test)
        if known is None:
            return node
        return node.body if known else node.orelse

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Dict) and isinstance(node.slice, ast.Constant):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == node.slice.value:
                    return value
        return node


def _decided(node: ast.AST) -> bool | None:
    """Truth of a condition that is a constant text or truth value; None if it is not decided yet."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bool):
        return bool(node.value)
    return None


def _decide(program: str) -> str:
    return ast.unparse(_Decide().visit(ast.parse(program)))


def _style(family: Family, text: str, rng: random.Random | None) -> str:
    """A whole program: a way of reading, names, perhaps a function around it. Without rng the plainest."""
    reader = rng.choice(family.kind.readers) if rng else family.kind.readers[0]
    lines = f"{reader}\n{text}".split("\n")
    imports = sorted({line for line in lines if line.startswith(("import ", "from "))})
    body = [line for line in lines if line not in imports]
    program = "\n".join(body)
    if rng is None:
        return "\n".join([*imports, program])
    program = _rename(program, rng)
    wrapper = rng.choice((None, None, "main", "solve"))
    if wrapper:
        indented = "\n".join("    " + line if line else line for line in program.split("\n"))
        program = f"def {wrapper}():\n{indented}\n\n{wrapper}()"
    return "\n".join([*imports, *([""] if wrapper and imports else []), program])


def _rename(program: str, rng: random.Random) -> str:
    tokens = list(tokenize.generate_tokens(io.StringIO(program + "\n").readline))
    used = {t.string for t in tokens if t.type == token.NAME}
    names: dict[str, str] = {}
    for name, options in SYNONYMS.items():
        if name in used:
            free = [o for o in options if o == name or (o not in used and o not in names.values())]
            names[name] = rng.choice([o for o in free if not keyword.iskeyword(o)])
    # From the end, so that earlier positions stay true; never after a point: that is a method.
    lines = program.split("\n")
    for before, t in reversed(list(zip([None, *tokens], tokens, strict=False))):
        if t.type == token.NAME and t.string in names and not (before and before.string == "."):
            row, start = t.start
            line = lines[row - 1]
            lines[row - 1] = line[:start] + names[t.string] + line[start + len(t.string) :]
    return "\n".join(lines)


def _fill(text: str, params: Params) -> str:
    return re.sub(r"<(\w+)>", lambda match: str(params[match.group(1)]), text)


def _show(answer: Any) -> str:
    if isinstance(answer, list | tuple):
        return " ".join(map(str, answer))
    return str(answer)


def passes(program: str, tests: list[tuple[str, str]]) -> bool:
    """Whether a program gives every expected output; an error or too long a run is a failure.

    For our own generated programs alone: it runs them in this process.
    """
    code = compile(program, "<program>", "exec")
    stdin, stdout, handler = sys.stdin, sys.stdout, signal.getsignal(signal.SIGVTALRM)
    signal.signal(signal.SIGVTALRM, _too_long)
    try:
        for given, expected in tests:
            sys.stdin, sys.stdout = io.StringIO(given), io.StringIO()
            signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
            try:
                exec(code, {"__name__": "__main__"})
                printed = sys.stdout.getvalue()
            except (Exception, SystemExit):  # whatever a program with a bug raises, it has failed
                return False
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            if _words(printed) != _words(expected):
                return False
        return True
    finally:
        sys.stdin, sys.stdout = stdin, stdout
        signal.signal(signal.SIGVTALRM, handler)


def _too_long(*_: object) -> None:
    raise TimeoutError


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]
