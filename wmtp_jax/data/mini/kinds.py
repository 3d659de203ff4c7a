"""Forms of input that families share, and makers of test cases."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wmtp_jax.data.mini.generator import Kind

LIST = Kind(
    (
        "The first line has n, the second line has n integers.",
        "Input: a number n, then n integers on the next line.",
        "You are given n on one line and n integers on the following line.",
    ),
    lambda a: f"{len(a)}\n{' '.join(map(str, a))}\n",
    (
        "n = int(input())\na = list(map(int, input().split()))",
        "n = int(input())\na = [int(z) for z in input().split()]",
        "import sys\ndata = sys.stdin.read().split()\nn = int(data[0])\na = list(map(int, data[1:n + 1]))",
    ),
)
LIST_K = Kind(
    (
        "The first line has n and k, the second line has n integers.",
        "Input: two numbers n and k, then n integers on the next line.",
    ),
    lambda a, k: f"{len(a)} {k}\n{' '.join(map(str, a))}\n",
    (
        "n, k = map(int, input().split())\na = list(map(int, input().split()))",
        "import sys\ndata = list(map(int, sys.stdin.read().split()))\nn, k = data[0], data[1]\na = data[2:]",
    ),
)
INT = Kind(
    ("The only line has one integer n.", "Input: an integer n.", "You are given one integer n."),
    lambda n: f"{n}\n",
    ("n = int(input())", "import sys\nn = int(sys.stdin.readline())", "n = int(input().strip())"),
)
TWO = Kind(
    ("The only line has two integers x and y.", "Input: two integers x and y on one line."),
    lambda x, y: f"{x} {y}\n",
    (
        "x, y = map(int, input().split())",
        "import sys\nx, y = [int(z) for z in sys.stdin.read().split()]",
        "data = input().split()\nx = int(data[0])\ny = int(data[1])",
    ),
)
STR = Kind(
    ("The only line has a string s.", "Input: one line with a string s.", "You are given a string s."),
    lambda s: f"{s}\n",
    ("s = input()", "s = input().strip()", "import sys\ns = sys.stdin.readline().strip()"),
)
TWO_STR = Kind(
    (
        "The first line has a string s, the second line a string t.",
        "Input: strings s and t, each on its own line.",
    ),
    lambda s, t: f"{s}\n{t}\n",
    (
        "s = input()\nt = input()",
        "import sys\ns, t = sys.stdin.read().split()",
        "s = input().strip()\nt = input().strip()",
    ),
)
WORDS = Kind(
    (
        "The only line has words separated by spaces.",
        "Input: one line of words.",
        "You are given a line of words.",
    ),
    lambda w: " ".join(w) + "\n",
    ("w = input().split()", "import sys\nw = sys.stdin.read().split()", "w = input().strip().split()"),
)
GRID = Kind(
    (
        "The first line has n and m, then n lines follow with m integers each.",
        "Input: the sizes n and m of a table, then its n rows of m integers.",
    ),
    lambda g: f"{len(g)} {len(g[0])}\n" + "".join(" ".join(map(str, row)) + "\n" for row in g),
    (
        "n, m = map(int, input().split())\ng = [list(map(int, input().split())) for _ in range(n)]",
        "n, m = map(int, input().split())\ng = []\nfor _ in range(n):\n    g.append(list(map(int, input().split())))",
    ),
)
PAIRS = Kind(
    (
        "The first line has n, then n lines follow with two integers each.",
        "Input: a number n, then n lines, each with a pair of integers.",
    ),
    lambda p: f"{len(p)}\n" + "".join(f"{u} {z}\n" for u, z in p),
    (
        "n = int(input())\np = [tuple(map(int, input().split())) for _ in range(n)]",
        "n = int(input())\np = []\nfor _ in range(n):\n    u, z = map(int, input().split())\n    p.append((u, z))",
    ),
)

# Ways to sum up a list, by the words of a task.
SUMMARIES: dict[str, Callable[[Any], Any]] = {
    "sum": sum,
    "total": sum,
    "largest": max,
    "smallest": min,
    "number": len,
}


def choices(**options: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the options, as parameters."""
    result: list[dict[str, Any]] = [{}]
    for name, values in options.items():
        result = [{**params, name: value} for params in result for value in values]
    return result


def lists(
    rng: random.Random,
    low: int,
    high: int,
    edges: Sequence[Sequence[int]] = (),
    at_least: int = 1,
    at_most: int = 9,
) -> list[tuple[list[int]]]:
    """Cases of kind LIST: the edges, then random lists of numbers from low to high."""
    made = [[rng.randint(low, high) for _ in range(rng.randint(at_least, at_most))] for _ in range(8)]
    return [(list(a),) for a in (*edges, *made)]


def numbers(rng: random.Random, low: int, high: int, edges: Sequence[int] = ()) -> list[tuple[int]]:
    """Cases of kind INT: the edges, then random numbers."""
    return [(n,) for n in (*edges, *(rng.randint(low, high) for _ in range(8)))]


def pairs(rng: random.Random, low: int, high: int, edges: Sequence[tuple[int, int]] = ()) -> list[tuple[int, int]]:
    """Cases of kind TWO: the edges, then random pairs."""
    return [*edges, *((rng.randint(low, high), rng.randint(low, high)) for _ in range(8))]


def strings(
    rng: random.Random, alphabet: str, edges: Sequence[str] = (), at_least: int = 1, at_most: int = 12
) -> list[tuple[str]]:
    """Cases of kind STR: the edges, then random strings over an alphabet."""
    made = ["".join(rng.choice(alphabet) for _ in range(rng.randint(at_least, at_most))) for _ in range(8)]
    return [(s,) for s in (*edges, *made)]


def yes(condition: bool) -> str:
    """The answer of a question."""
    return "YES" if condition else "NO"
