"""Counting and adding up in a list."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import LIST, choices, lists

COMPARE = {"greater than": ">", "less than": "<", "at least": ">=", "at most": "<="}


def _holds(sign: str, value: int, bound: int) -> bool:
    return {">": value > bound, "<": value < bound, ">=": value >= bound, "<=": value <= bound}[sign]


def _signs(**options) -> list[dict]:
    """Choices with a comparison in words, its sign, and the sign a careless author writes."""
    slip = {">": ">=", "<": "<=", ">=": ">", "<=": "<"}
    return [{**c, "sign": COMPARE[c["cmp"]], "slip": slip[COMPARE[c["cmp"]]]} for c in choices(cmp=COMPARE, **options)]


def _details_of_mean_bound(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["op"] = ">" if p["word"] == "above" else "<"
    return p


def _details_of_prefix_sums(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["op"], p["start"] = ("+", 0) if p["sign"] == "sum" else ("*", 1)
    return p


FAMILIES = (
    Family(
        name="sum_bound",
        difficulty=1,
        tags=("math",),
        kind=LIST,
        params=_signs(b=range(1, 16)),
        tasks=(
            "Find the sum of the numbers that are <cmp> <b>.",
            "Add up all values <cmp> <b>.",
            "Anna keeps only prices <cmp> <b>. What do they cost together?",
        ),
        output=(
            "Print the sum, 0 if there are none.",
            "Output one number: the sum (0 when nothing is kept).",
        ),
        cases=lambda r, p: lists(r, p["b"] - 6, p["b"] + 6, [[p["b"]], [p["b"] - 1, p["b"] + 1], [p["b"]] * 3]),
        reference=lambda p, a: sum(v for v in a if _holds(p["sign"], v, p["b"])),
        solutions=(
            """
            total = 0
            for v in a:
                if v <sign> <b>:
                    total += v
            print(total)
            """,
            "print(sum(v for v in a if v <sign> <b>))",
            """
            total = 0
            for i in range(n):
                if a[i] <sign> <b>:
                    total = total + a[i]
            print(total)
            """,
        ),
        bugs=(
            ("<sign> <b>", "<slip> <b>"),
            ("total = 0", "total = 1"),
            ("range(n)", "range(n - 1)"),
            ("total += v", "total += 1"),
            ("sum(v for", "sum(1 for"),
            ("range(n)", "range(1, n)"),
        ),
    ),
    Family(
        name="count_bound",
        difficulty=1,
        tags=("counting",),
        kind=LIST,
        params=_signs(b=range(0, 15)),
        tasks=(
            "How many numbers are <cmp> <b>?",
            "Count the values <cmp> <b>.",
            "A lamp is bright when its power is <cmp> <b>. Count the bright lamps.",
        ),
        output=(
            "Print the count.",
            "Output how many there are.",
        ),
        cases=lambda r, p: lists(r, p["b"] - 5, p["b"] + 5, [[p["b"]], [p["b"], p["b"] + 1, p["b"] - 1], [p["b"]] * 4]),
        reference=lambda p, a: sum(_holds(p["sign"], v, p["b"]) for v in a),
        solutions=(
            """
            res = 0
            for v in a:
                if v <sign> <b>:
                    res += 1
            print(res)
            """,
            "print(len([v for v in a if v <sign> <b>]))",
            """
            res = 0
            i = 0
            while i < n:
                if a[i] <sign> <b>:
                    res += 1
                i += 1
            print(res)
            """,
        ),
        bugs=(
            ("<sign> <b>", "<slip> <b>"),
            ("res = 0", "res = 1"),
            ("i < n:", "i < n - 1:"),
            ("res += 1", "res += v"),
            ("len([v", "sum([v"),
            ("i = 0", "i = 1"),
        ),
    ),
    Family(
        name="count_multiples",
        difficulty=1,
        tags=("number theory",),
        kind=LIST,
        params=choices(k=range(2, 14), word=("divisible by", "not divisible by")),
        tasks=(
            "Count the numbers <word> <k>.",
            "How many of the n values are <word> <k>?",
            "Boxes hold <k> eggs. Count the hens whose number of eggs is <word> <k>.",
        ),
        output=(
            "Print the count.",
            "Output one integer.",
        ),
        cases=lambda r, p: lists(r, 0, 4 * p["k"], [[0], [p["k"]], [1, p["k"] + 1, 2 * p["k"]], [p["k"]] * 3]),
        reference=lambda p, a: sum((v % p["k"] == 0) == (p["word"] == "divisible by") for v in a),
        solutions=(
            """
            res = 0
            for v in a:
                if v % <k> == 0:
                    res += 1
            print(res if '<word>' == 'divisible by' else n - res)
            """,
            """
            res = len([v for v in a if v % <k> == 0])
            if '<word>' == 'not divisible by':
                res = n - res
            print(res)
            """,
            """
            good = '<word>' == 'divisible by'
            print(sum(1 for v in a if (v % <k> == 0) == good))
            """,
        ),
        bugs=(
            ("% <k> == 0", "% <k> == 1"),
            ("% <k> == 0", "// <k> == 0"),
            ("res = 0\n", "res = 1\n"),
            ("n - res", "n - res - 1"),
            ("== good", "!= good"),
        ),
    ),
    Family(
        name="mean_bound",
        difficulty=2,
        tags=("math",),
        kind=LIST,
        params=[_details_of_mean_bound(p) for p in choices(word=("above", "below"), c=range(1, 16))],
        tasks=(
            "Count the numbers that are strictly <word> the average, and multiply the count by <c>.",
            "Each number strictly <word> the mean earns <c> points. How many points are earned?",
        ),
        output=(
            "Print the result.",
            "Output one integer.",
        ),
        cases=lambda r, p: lists(r, -4, 9, [[5], [1, 2], [3, 3, 3], [-1, -2, -6]]),
        reference=lambda p, a: (
            p["c"] * sum((v * len(a) > sum(a)) if p["word"] == "above" else (v * len(a) < sum(a)) for v in a)
        ),
        solutions=(
            """
            total = sum(a)
            res = 0
            for v in a:
                if v * n <op> total:
                    res += <c>
            print(res)
            """,
            """
            mean = sum(a) / n
            print(<c> * len([v for v in a if v <op> mean]))
            """,
            """
            total = 0
            for v in a:
                total += v
            print(sum(<c> for v in a if v * n <op> total))
            """,
        ),
        bugs=(
            ("/ n", "// n"),
            ("<op> total", "<op>= total"),
            ("<op> mean", "<op>= mean"),
            ("v * n", "v"),
            ("res += <c>", "res += 1"),
            ("sum(a) / n", "sum(a) / (n + 1)"),
        ),
    ),
    Family(
        name="distinct_count",
        difficulty=2,
        tags=("data structures",),
        kind=LIST,
        params=choices(m=range(2, 17), word=("distinct", "repeated")),
        tasks=(
            "How many <word> remainders modulo <m> are there among the numbers?",
            "Replace each number by its remainder modulo <m>. How many <word> remainders are there?",
        ),
        output=(
            "Print the count (a repeated one counts once).",
            "Output one integer; each remainder counts at most once.",
        ),
        cases=lambda r, p: lists(r, 0, 3 * p["m"], [[1], [0, p["m"]], [1, p["m"] + 1, 2], [3, 3, 3]]),
        reference=lambda p, a: (lambda b: len([v for v in set(b) if p["word"] == "distinct" or b.count(v) > 1]))(
            [v % p["m"] for v in a]
        ),
        solutions=(
            """
            b = [v % <m> for v in a]
            res = 0
            for v in set(b):
                if '<word>' == 'distinct' or b.count(v) > 1:
                    res += 1
            print(res)
            """,
            """
            seen = {}
            for v in a:
                seen[v % <m>] = seen.get(v % <m>, 0) + 1
            need = 1 if '<word>' == 'distinct' else 2
            print(len([v for v in seen.values() if v >= need]))
            """,
            """
            seen = set()
            again = set()
            for v in a:
                c = v % <m>
                if c in seen:
                    again.add(c)
                seen.add(c)
            print(len(seen) if '<word>' == 'distinct' else len(again))
            """,
        ),
        bugs=(
            ("% <m>", "% (<m> + 1)"),
            ("set(b)", "b"),
            ("> 1", "> 2"),
            (", 0) + 1", ", 1) + 1"),
            ("v >= need", "v > need"),
            ("    if c in seen:", "    if c not in seen:"),
            ("c = v % <m>", "c = v // <m>"),
        ),
    ),
    Family(
        name="alternating_sum",
        difficulty=2,
        tags=("math",),
        kind=LIST,
        params=choices(start=("plus", "minus"), step=(2, 3, 4, 5), m=(1, 2, 3, 4)),
        tasks=(
            "Signs change every <step> numbers, beginning with <start>. Find the signed sum times <m>.",
            (
                "The first <step> numbers count as <start>, the next <step> with the other sign, and so on. "
                "Give <m> times the sum."
            ),
        ),
        output=(
            "Print one integer.",
            "Output the result.",
        ),
        cases=lambda r, p: lists(
            r, 1, 9, [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [9] * p["step"], [3] * (p["step"] + 1)], at_most=12
        ),
        reference=lambda p, a: (
            p["m"] * sum(v * (1 if (i // p["step"]) % 2 == (p["start"] == "minus") else -1) for i, v in enumerate(a))
        ),
        solutions=(
            """
            cur = 1 if '<start>' == 'plus' else -1
            total = 0
            for i in range(n):
                total += cur * a[i]
                if (i + 1) % <step> == 0:
                    cur = -cur
            print(total * <m>)
            """,
            """
            total = 0
            for i in range(n):
                if i // <step> % 2 == 0:
                    total += a[i]
                else:
                    total -= a[i]
            print(<m> * (total if '<start>' == 'plus' else -total))
            """,
            """
            total = 0
            cur = <m> if '<start>' == 'plus' else -<m>
            for i in range(0, n, <step>):
                total += cur * sum(a[i:i + <step>])
                cur = -cur
            print(total)
            """,
        ),
        bugs=(
            ("(i + 1) % <step>", "i % <step>"),
            ("i // <step> % 2 == 0", "i % 2 == 0"),
            ("a[i:i + <step>]", "a[i:i + <step> - 1]"),
            ("cur = 1 if", "cur = -1 if"),
            ("else -total", "else total"),
            ("total += cur * sum", "total = cur * sum"),
        ),
    ),
    Family(
        name="prefix_sums",
        difficulty=2,
        tags=("math",),
        kind=LIST,
        params=[
            _details_of_prefix_sums(p)
            for p in choices(sign=("sum", "product"), mod=(7, 9, 10, 11, 13, 16, 17, 19, 20, 21, 23, 25, 29, 31, 37))
        ],
        tasks=(
            "For every position give the <sign> of all numbers up to it, modulo <mod>.",
            "Write the running <sign> after each number, as a remainder modulo <mod>.",
        ),
        output=(
            "Print n integers on one line.",
            "Output the remainders separated by spaces.",
        ),
        cases=lambda r, p: lists(r, 1, 12, [[p["mod"]], [1, 1], [5, 4, 3], [12, 12, 12]]),
        reference=lambda p, a: _running(p, a),
        solutions=(
            """
            cur = <start>
            res = []
            for v in a:
                cur = (cur <op> v) % <mod>
                res.append(cur)
            print(*res)
            """,
            """
            cur = <start>
            for i in range(n):
                cur = cur <op> a[i]
                a[i] = cur % <mod>
            print(' '.join(map(str, a)))
            """,
            """
            res = [a[0]]
            for i in range(1, n):
                res.append(res[-1] <op> a[i])
            print(*[v % <mod> for v in res])
            """,
        ),
        bugs=(
            ("res.append(cur)", "res.append(v)"),
            ("range(n)", "range(n - 1)"),
            ("% <mod>", "% (<mod> - 1)"),
            ("cur = <start>", "cur = 2"),
            ("range(1, n)", "range(2, n)"),
            ("res[-1] <op>", "res[0] <op>"),
            ("(cur <op> v)", "(cur + v + v)"),
        ),
    ),
)


def _running(p: dict, a: list[int]) -> list[int]:
    total, result = (0, []) if p["sign"] == "sum" else (1, [])
    for v in a:
        total = total + v if p["sign"] == "sum" else total * v
        result.append(total % p["mod"])
    return result
