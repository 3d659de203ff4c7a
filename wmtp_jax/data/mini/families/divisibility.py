"""Divisors, multiples, primes, remainders."""

import math

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import INT, TWO, choices, numbers, pairs


def _details_of_count_divisors(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["bit"] = 1 if p["word"] == "odd" else 0
    return p


def _details_of_primes_between(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["end"] = {"count": "len(res)", "sum": "sum(res)", "largest": "max(res) if res else 0"}[p["what"]]
    return p


def _details_of_sum_of_multiples(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["wrong"] = "and" if p["word"] == "or" else "or"
    return p


FAMILIES = (
    Family(
        name="count_divisors",
        difficulty=2,
        tags=("number theory",),
        kind=INT,
        params=[_details_of_count_divisors(p) for p in choices(word=("even", "odd", "all"), b=range(1, 12))],
        tasks=(
            "Count the divisors of n that are at least <b> (<word> ones).",
            "How many divisors of n are not below <b>? Count <word> divisors.",
        ),
        output=(
            "Print the count.",
            "Output one integer.",
        ),
        cases=lambda r, p: numbers(r, 1, 120, [1, 2, 12, 36, p["b"]]),
        reference=lambda p, n: len(
            [
                d
                for d in range(p["b"], n + 1)
                if n % d == 0 and (p["word"] == "all" or (d % 2 == 0) == (p["word"] == "even"))
            ]
        ),
        solutions=(
            """
            res = 0
            for i in range(<b>, n + 1):
                if n % i == 0 and ('<word>' == 'all' or i % 2 == <bit>):
                    res += 1
            print(res)
            """,
            """
            res = [i for i in range(1, n + 1) if n % i == 0 and i >= <b>]
            if '<word>' != 'all':
                res = [v for v in res if v % 2 == <bit>]
            print(len(res))
            """,
            """
            res = set()
            i = 1
            while i * i <= n:
                if n % i == 0:
                    res.add(i)
                    res.add(n // i)
                i += 1
            print(len([v for v in res if v >= <b> and ('<word>' == 'all' or v % 2 == <bit>)]))
            """,
        ),
        bugs=(
            ("n + 1", "n"),
            ("i * i <= n", "i * i < n"),
            (">= <b>", "> <b>"),
            ("range(<b>, n + 1)", "range(<b> + 1, n + 1)"),
            ("res.add(n // i)", "res.add(i + 1)"),
            ("% 2 == <bit>", "% 2 != <bit>"),
            ("        res.add(n // i)\n", ""),
        ),
    ),
    Family(
        name="gcd_lcm",
        difficulty=2,
        tags=("number theory",),
        kind=TWO,
        params=choices(what=("greatest common divisor", "least common multiple"), d=range(0, 16)),
        tasks=(
            "Find the <what> of x and y. Add <d> to it.",
            "Compute the <what> of the two numbers plus <d>.",
        ),
        output=(
            "Print the result.",
            "Output one integer.",
        ),
        cases=lambda r, p: pairs(r, 1, 60, [(1, 1), (7, 7), (6, 4), (4, 6)]),
        reference=lambda p, x, y: (
            (math.gcd(x, y) if p["what"] == "greatest common divisor" else x * y // math.gcd(x, y)) + p["d"]
        ),
        solutions=(
            """
            import math
            res = math.gcd(x, y)
            if '<what>' == 'least common multiple':
                res = x * y // res
            print(res + <d>)
            """,
            """
            def gcd(u, z):
                while z:
                    u, z = z, u % z
                return u
            print((gcd(x, y) if '<what>' == 'greatest common divisor' else x // gcd(x, y) * y) + <d>)
            """,
            """
            if '<what>' == 'greatest common divisor':
                i = min(x, y)
                while x % i or y % i:
                    i -= 1
            else:
                i = max(x, y)
                while i % x or i % y:
                    i += 1
            print(i + <d>)
            """,
        ),
        bugs=(
            ("x * y // res", "x * y"),
            ("x % i or y % i", "x % i and y % i"),
            ("i % x or i % y", "i % x and i % y"),
            ("return u", "return z"),
            ("i = max(x, y)", "i = x * y"),
            ("i = min(x, y)", "i = x"),
            ("res + <d>", "res"),
            ("x // gcd(x, y) * y", "x * y"),
        ),
    ),
    Family(
        name="primes_between",
        difficulty=3,
        tags=("number theory",),
        kind=TWO,
        params=[_details_of_primes_between(p) for p in choices(what=("count", "sum", "largest"), d=range(2, 13))],
        tasks=(
            "Consider the primes p with x <= p <= y and p not less than <d>. Give their <what>.",
            ("Among the prime numbers from x to y (both ends count) that are at least <d>, find the <what>."),
        ),
        output=(
            "Print it, or 0 if there is no such prime.",
            "Output one integer (0 without any prime).",
        ),
        cases=lambda r, p: [(min(c), max(c)) for c in pairs(r, 0, 60, [(0, 3), (2, 2), (4, 4), (1, 13), (9, 25)])],
        reference=lambda p, x, y: _primes(p, x, y),
        solutions=(
            """
            def prime(v):
                if v < 2:
                    return False
                for i in range(2, v):
                    if v % i == 0:
                        return False
                return True
            res = [v for v in range(x, y + 1) if prime(v) and v >= <d>]
            print(<end>)
            """,
            """
            res = []
            for v in range(max(x, <d>), y + 1):
                i = 2
                while i * i <= v and v % i:
                    i += 1
                if i * i > v:
                    res.append(v)
            print(<end>)
            """,
            """
            res = []
            for v in range(x, y + 1):
                if v >= <d> and len([i for i in range(1, v + 1) if v % i == 0]) == 2:
                    res.append(v)
            print(<end>)
            """,
        ),
        bugs=(
            ("y + 1)", "y)"),
            ("i * i <= v", "i * i < v"),
            ("range(1, v + 1)", "range(1, v)"),
            (">= <d>", "> <d>"),
            ("v < 2", "v < 0"),
            ("max(x, <d>)", "max(x, <d> + 1)"),
            ("range(x, y + 1)", "range(x + 1, y + 1)"),
            ("i = 2\n", "i = 3\n"),
        ),
    ),
    Family(
        name="sum_of_multiples",
        difficulty=1,
        tags=("math",),
        kind=INT,
        params=[
            _details_of_sum_of_multiples(p)
            for p in choices(u=(2, 3, 4, 5, 6, 7), z=(5, 7, 8, 9, 11), word=("or", "and"))
        ],
        tasks=(
            "Add up all numbers from 1 to n that are multiples of <u> <word> <z>.",
            "Find the sum of the multiples of <u> <word> <z> not above n.",
        ),
        output=(
            "Print the sum.",
            "Output one integer.",
        ),
        cases=lambda r, p: numbers(r, 1, 150, [1, p["u"], p["z"], p["u"] * p["z"]]),
        reference=lambda p, n: sum(
            v for v in range(1, n + 1) if ((v % p["u"] == 0) + (v % p["z"] == 0)) >= (1 if p["word"] == "or" else 2)
        ),
        solutions=(
            """
            total = 0
            for i in range(1, n + 1):
                if i % <u> == 0 <word> i % <z> == 0:
                    total += i
            print(total)
            """,
            "print(sum(i for i in range(n + 1) if not i % <u> <word> not i % <z>))",
            """
            total = 0
            i = 1
            while i <= n:
                if i % <u> == 0 <word> i % <z> == 0:
                    total = total + i
                i += 1
            print(total)
            """,
        ),
        bugs=(
            ("n + 1", "n"),
            ("i <= n", "i < n"),
            (" <word> ", " <wrong> "),
            ("total += i", "total += 1"),
            ("i % <z>", "i % (<z> + 1)"),
            ("total = 0", "total = 1"),
        ),
    ),
    Family(
        name="leap_years",
        difficulty=3,
        tags=("implementation",),
        kind=TWO,
        params=choices(every=(3, 4, 5, 6, 7, 8), skip=(20, 30, 50, 100), more=("count", "last")),
        tasks=(
            (
                "On planet Zed a year is long if it is divisible by <every> but not by <skip>. Give the "
                "<more> of the long years from x to y."
            ),
            (
                "A year divisible by <every>, except those divisible by <skip>, has one more day. For years "
                "x to y (both included) find the <more> of such years."
            ),
        ),
        output=(
            "Print the number, or 0 if there is no such year.",
            "Output one integer, 0 when there is none.",
        ),
        cases=lambda r, p: [
            (min(c), max(c))
            for c in pairs(
                r, 1, 220, [(p["every"], p["every"]), (1, 2), (p["skip"] * p["every"],) * 2, (1, p["every"])]
            )
        ],
        reference=lambda p, x, y: (lambda b: len(b) if p["more"] == "count" else b[-1] if b else 0)(
            [v for v in range(x, y + 1) if v % p["every"] == 0 and v % p["skip"]]
        ),
        solutions=(
            """
            res = 0
            for v in range(x, y + 1):
                if v % <every> == 0 and v % <skip> != 0:
                    res = res + 1 if '<more>' == 'count' else v
            print(res)
            """,
            """
            b = [v for v in range(x, y + 1) if v % <every> == 0 and v % <skip>]
            if '<more>' == 'count':
                print(len(b))
            else:
                print(b[-1] if b else 0)
            """,
            """
            res = 0
            v = x
            while v <= y:
                if v % <every> == 0:
                    if v % <skip> != 0:
                        if '<more>' == 'count':
                            res += 1
                        else:
                            res = v
                v += 1
            print(res)
            """,
        ),
        bugs=(
            ("y + 1", "y"),
            ("v <= y", "v < y"),
            ("and v % <skip>", "or v % <skip>"),
            ("b[-1]", "b[0]"),
            ("% <skip> != 0", "% <skip> == 0"),
            ("range(x, y + 1)", "range(x + 1, y + 1)"),
            ("v = x\n", "v = x + 1\n"),
        ),
    ),
    Family(
        name="fizz_count",
        difficulty=2,
        tags=("implementation",),
        kind=INT,
        params=choices(
            u=(2, 3, 4),
            z=(5, 6, 7, 9),
            w1=("Fizz", "Tick", "Ping"),
        ),
        tasks=(
            (
                "Count from 1 to n, but say <w1> for multiples of <u>, Buzz for multiples of <z>, and both "
                "joined for both."
            ),
            (
                "For each i from 1 to n write <w1> if <u> divides i, Buzz if <z> divides i (<w1>Buzz if both "
                "do), otherwise i."
            ),
        ),
        output=(
            "Print everything on one line, separated by spaces.",
            "Output the n items on one line.",
        ),
        cases=lambda r, p: numbers(r, 1, 24, [1, p["u"], p["z"], p["u"] * p["z"]]),
        reference=lambda p, n: [
            (p["w1"] * (i % p["u"] == 0) + "Buzz" * (i % p["z"] == 0)) or i for i in range(1, n + 1)
        ],
        solutions=(
            """
            res = []
            for i in range(1, n + 1):
                if i % <u> == 0 and i % <z> == 0:
                    res.append('<w1>Buzz')
                elif i % <u> == 0:
                    res.append('<w1>')
                elif i % <z> == 0:
                    res.append('Buzz')
                else:
                    res.append(str(i))
            print(' '.join(res))
            """,
            """
            res = []
            for i in range(1, n + 1):
                c = ''
                if i % <u> == 0:
                    c += '<w1>'
                if i % <z> == 0:
                    c += 'Buzz'
                res.append(c or str(i))
            print(*res)
            """,
            """
            print(*[('<w1>' * (i % <u> == 0) + 'Buzz' * (i % <z> == 0)) or i for i in range(1, n + 1)])
            """,
        ),
        bugs=(
            ("n + 1", "n"),
            ("range(1, n + 1)", "range(n + 1)"),
            ("== 0 and i", "== 0 or i"),
            ("c += 'Buzz'", "c = 'Buzz'"),
            ("'<w1>Buzz'", "'Buzz<w1>'"),
            ("i % <z> == 0", "i % <z> == 1"),
            ("c or str(i)", "c"),
        ),
    ),
    Family(
        name="power_mod",
        difficulty=3,
        tags=("math",),
        kind=TWO,
        params=choices(m=range(7, 37)),
        tasks=(
            "Find x to the power y, modulo <m>.",
            "Multiply y copies of x together and take the remainder modulo <m> (no copies give 1).",
        ),
        output=(
            "Print the remainder.",
            "Output one integer.",
        ),
        cases=lambda r, p: pairs(r, 0, 12, [(0, 0), (5, 0), (0, 4), (p["m"], 2), (1, 9)]),
        reference=lambda p, x, y: pow(x, y, p["m"]),
        solutions=(
            """
            res = 1
            for _ in range(y):
                res = res * x % <m>
            print(res % <m>)
            """,
            "print(pow(x, y, <m>))",
            """
            res = 1
            while y > 0:
                if y % 2 == 1:
                    res = res * x % <m>
                x = x * x % <m>
                y //= 2
            print(res)
            """,
        ),
        bugs=(
            ("res = 1", "res = x"),
            ("range(y)", "range(y - 1)"),
            ("pow(x, y, <m>)", "pow(y, x, <m>)"),
            ("y % 2 == 1", "y % 2 == 0"),
            ("x = x * x % <m>", "x = x * 2 % <m>"),
            ("pow(x, y, <m>)", "x * y % <m>"),
            ("y > 0", "y > 1"),
            ("res = 1", "res = 0"),
        ),
    ),
)


def _primes(p: dict, x: int, y: int) -> int:
    primes = [v for v in range(max(x, 2), y + 1) if all(v % d for d in range(2, v)) and v >= p["d"]]
    return {"count": len(primes), "sum": sum(primes), "largest": max(primes, default=0)}[p["what"]]
