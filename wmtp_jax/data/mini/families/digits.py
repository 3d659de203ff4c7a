"""Digits, bits, sides of triangles."""

import math

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import INT, SUMMARIES, TWO, choices, numbers, pairs, yes


def _right_sides(z: int) -> list[tuple[int, int]]:
    """Two sides that make a right triangle with z, in both orders."""
    sides = [sorted((x, y, z)) for x in range(1, 26) for y in range(1, 26)]
    found = [b for b in sides if b[0] ** 2 + b[1] ** 2 == b[2] ** 2]
    result = []
    for b in found[:2]:
        b.remove(z)
        result += [(b[0], b[1]), (b[1], b[0])]
    return result


def _details_of_binary_ones(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["bit"] = 1 if p["word"] == "ones" else 0
    return p


FAMILIES = (
    Family(
        name="digit_sum",
        difficulty=1,
        tags=("math",),
        kind=INT,
        params=choices(base=(2, 3, 4, 5, 6, 7, 8, 9, 10), word=("sum", "largest", "number", "product of nonzero")),
        tasks=(
            "Write n in base <base>. Find the <word> of its digits.",
            "Look at the digits of n in base <base> and find their <word>.",
        ),
        output=(
            "Print the result in the ordinary decimal form.",
            "Output one decimal integer.",
        ),
        cases=lambda r, p: numbers(r, 1, 3000, [1, p["base"], p["base"] ** 3 - 1, 10 * p["base"]]),
        reference=lambda p, n: _digits(p, n),
        solutions=(
            """
            res = []
            while n > 0:
                res.append(n % <base>)
                n //= <base>
            if '<word>' == 'product of nonzero':
                total = 1
                for v in res:
                    if v > 0:
                        total *= v
                print(total)
            else:
                print({'sum': sum, 'largest': max, 'number': len}['<word>'](res))
            """,
            """
            total = 1 if '<word>' == 'product of nonzero' else 0
            while n:
                n, v = divmod(n, <base>)
                if '<word>' == 'sum':
                    total += v
                if '<word>' == 'number':
                    total += 1
                if '<word>' == 'largest':
                    total = max(total, v)
                if '<word>' == 'product of nonzero' and v:
                    total *= v
            print(total)
            """,
            """
            def digits(v):
                return [] if v == 0 else digits(v // <base>) + [v % <base>]
            res = digits(n)
            if '<word>' == 'product of nonzero':
                total = 1
                for v in res:
                    total *= v or 1
                print(total)
            else:
                print({'sum': sum, 'largest': max, 'number': len}['<word>'](res))
            """,
        ),
        bugs=(
            ("while n > 0:", "while n > <base>:"),
            ("divmod(n, <base>)", "divmod(n, <base> + 1)"),
            ("v == 0 else", "v < <base> else"),
            ("while n:", "while n > 1:"),
            ("total = 1\n    for", "total = 0\n    for"),
            ("res.append(n % <base>)", "res.append(n // <base>)"),
            ("'sum': sum", "'sum': max"),
            ("max(total, v)", "min(total, v)"),
            ("total += 1", "total += v"),
            ("'number': len", "'number': sum"),
        ),
    ),
    Family(
        name="binary_ones",
        difficulty=2,
        tags=("bitmasks",),
        kind=INT,
        params=[_details_of_binary_ones(p) for p in choices(word=("ones", "zeros"), d=range(0, 16))],
        tasks=(
            "Write n + <d> in binary without leading zeros. Count the <word>.",
            "How many <word> are in the binary form of n + <d>?",
        ),
        output=(
            "Print the count.",
            "Output one integer.",
        ),
        cases=lambda r, p: numbers(r, 1, 500, [1, 2, 7, 8, 255]),
        reference=lambda p, n: bin(n + p["d"])[2:].count("1" if p["word"] == "ones" else "0"),
        solutions=(
            "print(bin(n + <d>)[2:].count('1' if '<word>' == 'ones' else '0'))",
            """
            n += <d>
            res = 0
            while n > 0:
                if n % 2 == <bit>:
                    res += 1
                n //= 2
            print(res)
            """,
            """
            s = ''
            n = n + <d>
            while n:
                s += str(n % 2)
                n = n // 2
            print(len([c for c in s if c == '<bit>']))
            """,
        ),
        bugs=(
            ("[2:]", "[1:]"),
            ("n + <d>", "n"),
            ("while n > 0", "while n > 1"),
            ("res = 0", "res = 1"),
            ("% 2 == <bit>", "% 2 != <bit>"),
            ("while n:", "while n > 2:"),
            ("[2:]", "[3:]"),
            ("n += <d>\n", ""),
        ),
    ),
    Family(
        name="triangle_type",
        difficulty=2,
        tags=("geometry",),
        kind=TWO,
        params=[
            *choices(z=range(3, 20), word=("triangle",)),
            *choices(z=(3, 4, 5, 6, 8, 9, 10, 12, 13, 15, 16, 17, 20), word=("right triangle",)),
        ],
        tasks=(
            "Can sticks of length x, y and <z> form a <word>?",
            "Three sticks have lengths x, y and <z>. Do they make a proper <word>?",
        ),
        output=(
            "Print YES or NO.",
            "Output YES or NO.",
        ),
        cases=lambda r, p: pairs(
            r, 1, 24, [*_right_sides(p["z"]), (1, 1), (1, p["z"] - 1), (p["z"], p["z"]), (p["z"] + 1, 1)]
        ),
        reference=lambda p, x, y: (
            lambda b: yes(b[0] + b[1] > b[2] if p["word"] == "triangle" else b[0] ** 2 + b[1] ** 2 == b[2] ** 2)
        )(sorted((x, y, p["z"]))),
        solutions=(
            """
            b = sorted([x, y, <z>])
            if '<word>' == 'triangle':
                res = b[0] + b[1] > b[2]
            else:
                res = b[0] ** 2 + b[1] ** 2 == b[2] ** 2
            print('YES' if res else 'NO')
            """,
            """
            z = <z>
            if '<word>' == 'triangle':
                good = x + y > z and y + z > x and x + z > y
            else:
                good = x * x + y * y == z * z or y * y + z * z == x * x or x * x + z * z == y * y
            if good:
                print('YES')
            else:
                print('NO')
            """,
            """
            best = max(x, y, <z>)
            if '<word>' == 'triangle':
                good = 2 * best < x + y + <z>
            else:
                good = 2 * best ** 2 == x ** 2 + y ** 2 + <z> ** 2
            print('YES' if good else 'NO')
            """,
        ),
        bugs=(
            ("> b[2]", ">= b[2]"),
            (" and x + z > y", ""),
            ("2 * best <", "2 * best <="),
            ("sorted([x, y, <z>])", "[x, y, <z>]"),
            (" or x * x + z * z == y * y", ""),
            ("max(x, y, <z>)", "max(x, y)"),
            (" or y * y + z * z == x * x", ""),
            ("2 * best ** 2", "best ** 2"),
            ("y + z > x", "y + z >= x"),
        ),
    ),
)


def _digits(p: dict, n: int) -> int:
    digits = []
    while n:
        digits.append(n % p["base"])
        n //= p["base"]
    if p["word"] == "product of nonzero":
        return math.prod(d for d in digits if d)
    return SUMMARIES[p["word"]](digits)
