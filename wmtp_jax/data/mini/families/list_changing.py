"""Runs, rotations, removals, orders of a list."""

import itertools

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import (
    LIST,
    choices,
    lists,
)


def _details_of_longest_run(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    sign = {"equal": "==", "increasing": ">", "decreasing": "<"}[p["what"]]
    p["op"], p["op2"] = f"a[i] {sign} a[i - 1]", f"a[j + 1] {sign} a[j]"
    return p


FAMILIES = (
    Family(
        name="longest_run",
        difficulty=3,
        tags=("implementation",),
        kind=LIST,
        params=[
            _details_of_longest_run(p) for p in choices(what=("equal", "increasing", "decreasing"), d=range(0, 10))
        ],
        tasks=(
            ("Find the length of the longest run of neighbouring numbers that is strictly <what>. Add <d> to it."),
            ("A run is a stretch of neighbours that are <what> (strictly). Report the longest run's length plus <d>."),
        ),
        output=(
            "Print one integer.",
            "Output the answer.",
        ),
        cases=lambda r, p: lists(r, 1, 3, [[2], [1, 1], [1, 2, 3], [3, 2, 1, 1], [1, 2, 2, 2]], at_most=12),
        reference=lambda p, a: _run(p, a) + p["d"],
        solutions=(
            """
            best = 1
            cur = 1
            for i in range(1, n):
                if <op>:
                    cur += 1
                else:
                    cur = 1
                best = max(best, cur)
            print(best + <d>)
            """,
            """
            best = 0
            i = 0
            while i < n:
                j = i
                while j + 1 < n and <op2>:
                    j += 1
                best = max(best, j - i + 1)
                i = j + 1
            print(best + <d>)
            """,
            """
            runs = [1]
            for i in range(1, n):
                if <op>:
                    runs[-1] += 1
                else:
                    runs.append(1)
            print(max(runs) + <d>)
            """,
        ),
        bugs=(
            ("cur = 1\n    best", "cur = 0\n    best"),
            ("range(1, n)", "range(1, n - 1)"),
            ("j - i + 1)", "j - i)"),
            ("a[i] == a[i - 1]", "a[i] >= a[i - 1]"),
            ("a[i] > a[i - 1]", "a[i] >= a[i - 1]"),
            ("a[i] < a[i - 1]", "a[i] <= a[i - 1]"),
            ("best = 1\n", "best = 0\n"),
            ("runs[-1] += 1", "runs[0] += 1"),
        ),
    ),
    Family(
        name="rotate",
        difficulty=2,
        tags=("implementation",),
        kind=LIST,
        params=choices(way=("left", "right"), k=range(1, 16)),
        tasks=(
            "Rotate the list <k> places to the <way>.",
            "Shift all numbers cyclically by <k> to the <way>.",
        ),
        output=(
            "Print the list after the rotation.",
            "Output the numbers separated by spaces.",
        ),
        cases=lambda r, p: lists(r, 1, 20, [[7], [1, 2], [1, 2, 3], list(range(1, 10))]),
        reference=lambda p, a: (lambda z: a[z:] + a[:z])((p["k"] if p["way"] == "left" else -p["k"]) % len(a)),
        solutions=(
            """
            k = <k> % n
            if '<way>' == 'right':
                k = (n - k) % n
            print(*(a[k:] + a[:k]))
            """,
            """
            for _ in range(<k>):
                if '<way>' == 'left':
                    a.append(a.pop(0))
                else:
                    a.insert(0, a.pop())
            print(*a)
            """,
            """
            step = <k> if '<way>' == 'left' else -<k>
            print(*[a[(i + step) % n] for i in range(n)])
            """,
        ),
        bugs=(
            ("k = <k> % n", "k = <k>"),
            ("(n - k) % n", "n - k - 1"),
            ("range(<k>)", "range(<k> - 1)"),
            ("(i + step)", "(i - step)"),
            ("a.append(a.pop(0))", "a.append(a.pop())"),
            ("a.insert(0, a.pop())", "a.insert(0, a.pop(0))"),
            ("a[k:] + a[:k]", "a[:k] + a[k:]"),
        ),
    ),
    Family(
        name="remove_value",
        difficulty=1,
        tags=("implementation",),
        kind=LIST,
        params=choices(v=range(0, 15), keep=("first", "last")),
        tasks=(
            "Remove every number equal to <v> except the <keep> one.",
            "Of all numbers equal to <v> only the <keep> one stays.",
        ),
        output=(
            "Print the remaining numbers on one line.",
            "Output what is left, separated by spaces.",
        ),
        cases=lambda r, p: lists(
            r, p["v"] - 1, p["v"] + 1, [[p["v"]], [p["v"], 50, p["v"]], [50, p["v"], p["v"], 51], [50]]
        ),
        reference=lambda p, a: _keep_one(p, a),
        solutions=(
            """
            if '<keep>' == 'last':
                a.reverse()
            res = []
            for v in a:
                if v != <v> or v not in res:
                    res.append(v)
            if '<keep>' == 'last':
                res.reverse()
            print(*res)
            """,
            """
            spots = [i for i in range(n) if a[i] == <v>]
            if spots:
                spots.pop(0 if '<keep>' == 'first' else -1)
            print(*[a[i] for i in range(n) if i not in spots])
            """,
            """
            total = a.count(<v>)
            seen = 0
            res = []
            for v in a:
                if v == <v>:
                    seen += 1
                    if seen != (1 if '<keep>' == 'first' else total):
                        continue
                res.append(v)
            print(*res)
            """,
        ),
        bugs=(
            ("v not in res", "v in res"),
            ("spots.pop(0 if", "spots.pop(-1 if"),
            ("seen = 0", "seen = 1"),
            ("    res.reverse()", "    res.sort()"),
            ("!= <v> or", "!= <v> and"),
            ("spots.pop(0 if '<keep>' == 'first' else -1)", "spots.pop()"),
            ("else total)", "else n)"),
        ),
    ),
    Family(
        name="sort_by",
        difficulty=3,
        tags=("sortings",),
        kind=LIST,
        params=choices(m=range(2, 17), way=("rising", "falling")),
        tasks=(
            ("Sort the numbers by their remainder modulo <m>, <way>; equal remainders by the number itself, rising."),
            "Order by the remainder modulo <m> (<way>), and among equal remainders from small to large.",
        ),
        output=(
            "Print the sorted list.",
            "Output the numbers separated by spaces.",
        ),
        cases=lambda r, p: lists(r, 1, 3 * p["m"], [[4], [p["m"], 1], [p["m"] + 1, 1], [5, 4, 3, 2, 1]], at_most=8),
        reference=lambda p, a: sorted(a, key=lambda v: (v % p["m"] * (1 if p["way"] == "rising" else -1), v)),
        solutions=(
            """
            a.sort()
            a.sort(key=lambda v: v % <m>, reverse='<way>' == 'falling')
            print(*a)
            """,
            """
            sign = 1 if '<way>' == 'rising' else -1
            print(*sorted(a, key=lambda v: (sign * (v % <m>), v)))
            """,
            """
            order = range(<m>) if '<way>' == 'rising' else range(<m> - 1, -1, -1)
            res = []
            for i in order:
                res += sorted(v for v in a if v % <m> == i)
            print(*res)
            """,
        ),
        bugs=(
            ("a.sort()\n", ""),
            ("v % <m>, reverse", "v // <m>, reverse"),
            ("(sign * (v % <m>), v)", "(v % <m>, sign * v)"),
            ("range(<m> - 1, -1, -1)", "range(<m> - 1, 0, -1)"),
            ("range(<m>)", "range(1, <m>)"),
            ("res += sorted(v", "res += list(v"),
            ("(sign * (v % <m>), v)", "sign * (v % <m>)"),
        ),
    ),
)


def _run(p: dict, a: list[int]) -> int:
    best = length = 1
    for before, v in itertools.pairwise(a):
        good = {"equal": v == before, "increasing": v > before, "decreasing": v < before}[p["what"]]
        length = length + 1 if good else 1
        best = max(best, length)
    return best


def _keep_one(p: dict, a: list[int]) -> list[int]:
    places = [i for i, v in enumerate(a) if v == p["v"]]
    kept = places[:1] if p["keep"] == "first" else places[-1:]
    return [v for i, v in enumerate(a) if v != p["v"] or i in kept]
