"""Step by step: sequences, stairs, coins, clocks."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import INT, TWO, choices, numbers, pairs

FAMILIES = (
    Family(
        name="collatz",
        difficulty=2,
        tags=("simulation",),
        kind=INT,
        params=choices(
            mul=(3, 5, 7),
            add=(1, 3, 5),
            cap=(20, 30, 40, 50),
        ),
        tasks=(
            (
                "While n is above 1: if n is even halve it, otherwise replace it by <mul> * n + <add>. At "
                "most <cap> steps are made. How many are made?"
            ),
            (
                "A number is halved when even and becomes <mul> * n + <add> when odd; stop at 1 or after "
                "<cap> steps. Count the steps."
            ),
        ),
        output=(
            "Print the number of steps.",
            "Output the count.",
        ),
        cases=lambda r, p: numbers(r, 1, 80, [1, 2, 3, 5, 64]),
        reference=lambda p, n: _collatz(p, n),
        solutions=(
            """
            res = 0
            while n > 1 and res < <cap>:
                if n % 2 == 0:
                    n //= 2
                else:
                    n = <mul> * n + <add>
                res += 1
            print(res)
            """,
            """
            res = 0
            for i in range(<cap>):
                if n <= 1:
                    break
                n = n // 2 if n % 2 == 0 else <mul> * n + <add>
                res += 1
            print(res)
            """,
            """
            def steps(v, done):
                if v <= 1 or done == <cap>:
                    return done
                if v % 2:
                    return steps(<mul> * v + <add>, done + 1)
                return steps(v // 2, done + 1)
            print(steps(n, 0))
            """,
        ),
        bugs=(
            ("% 2 == 0", "% 2 == 1"),
            ("res = 0", "res = 1"),
            ("n > 1 and", "n > 2 and"),
            ("res < <cap>", "res <= <cap>"),
            ("n <= 1", "n < 1"),
            ("steps(n, 0)", "steps(n, 1)"),
            ("<mul> * n + <add>", "<mul> * n"),
            ("range(<cap>)", "range(<cap> + 1)"),
            ("if v % 2:", "if v % 2 == 0:"),
        ),
    ),
    Family(
        name="stairs",
        difficulty=4,
        tags=("dp",),
        kind=INT,
        params=choices(big=(2, 3, 4), bad=(3, 4, 5, 6, 7, 8), m=(97, 100)),
        tasks=(
            (
                "You climb n stairs, taking 1 to <big> at once, and must never stand on stair <bad> (unless "
                "it is the last). In how many ways, modulo <m>?"
            ),
            (
                "Steps of 1 up to <big> stairs are allowed; stair <bad> is broken, only as the final stair n "
                "it may be used. Count the ways to reach n modulo <m>."
            ),
        ),
        output=(
            "Print the count modulo <m>.",
            "Output the remainder.",
        ),
        cases=lambda r, p: numbers(r, 1, 20, [1, 2, 3, p["bad"], p["bad"] + 1]),
        reference=lambda p, n: _stairs(p, n),
        solutions=(
            """
            ways = [0] * (n + 1)
            ways[0] = 1
            for i in range(1, n + 1):
                if i != <bad> or i == n:
                    for j in range(1, <big> + 1):
                        if i - j >= 0:
                            ways[i] += ways[i - j]
            print(ways[n] % <m>)
            """,
            """
            memo = {0: 1}
            def count(v):
                if v < 0 or (v == <bad> and v != n):
                    return 0
                if v not in memo:
                    memo[v] = sum(count(v - j) for j in range(1, <big> + 1))
                return memo[v]
            print(count(n) % <m>)
            """,
            """
            ways = [1]
            for i in range(1, n + 1):
                v = sum(ways[-<big>:])
                if i == <bad> and i < n:
                    v = 0
                ways.append(v % <m>)
            print(ways[n])
            """,
        ),
        bugs=(
            ("i - j >= 0", "i - j > 0"),
            ("<big> + 1", "<big>"),
            ("ways[-<big>:]", "ways[-<big> - 1:]"),
            (" or i == n", ""),
            (" and v != n", ""),
            ("ways[0] = 1", "ways[0] = 0"),
            (" and i < n", ""),
            ("% <m>)", ")"),
            ("v % <m>)\nprint(ways[n])", "v)\nprint(ways[n])"),
        ),
    ),
    Family(
        name="coin_change",
        difficulty=4,
        tags=("greedy", "dp"),
        kind=INT,
        params=choices(u=(2, 3, 4), z=(5, 7, 9), what=("fewest coins", "number of ways"), m=(50, 100)),
        tasks=(
            (
                "Coins of value 1, <u> and <z> are at hand, as many as needed. For the amount n find the "
                "<what>, modulo <m>."
            ),
            (
                "Pay exactly n with coins of 1, <u> and <z>. What is the <what> (modulo <m>; the order of "
                "coins does not matter)?"
            ),
        ),
        output=(
            "Print one integer.",
            "Output the answer modulo <m>.",
        ),
        cases=lambda r, p: numbers(r, 1, 40, [1, p["u"] * 2, p["z"] + p["u"], p["z"] * 2 - 1]),
        reference=lambda p, n: _coins(p, n),
        solutions=(
            """
            if '<what>' == 'fewest coins':
                best = [0]
                for i in range(1, n + 1):
                    best.append(1 + min(best[i - v] for v in (1, <u>, <z>) if i >= v))
                print(best[n] % <m>)
            else:
                ways = [1] + [0] * n
                for v in (1, <u>, <z>):
                    for i in range(v, n + 1):
                        ways[i] += ways[i - v]
                print(ways[n] % <m>)
            """,
            """
            res = []
            for i in range(n // <z> + 1):
                for j in range((n - <z> * i) // <u> + 1):
                    res.append(i + j + n - <z> * i - <u> * j)
            print((min(res) if '<what>' == 'fewest coins' else len(res)) % <m>)
            """,
            """
            best = n
            total = 0
            i = 0
            while i <= n:
                for j in range(0, n - i + 1, <u>):
                    total += 1
                    best = min(best, i // <z> + j // <u> + n - i - j)
                i += <z>
            print((best if '<what>' == 'fewest coins' else total) % <m>)
            """,
        ),
        bugs=(
            ("i >= v", "i > v"),
            ("// <z> + 1", "// <z>"),
            ("while i <= n", "while i < n"),
            ("range(v, n + 1)", "range(v + 1, n + 1)"),
            ("// <u> + 1", "// <u>"),
            ("n - i + 1, <u>", "n - i, <u>"),
            ("[1] + [0]", "[0] + [0]"),
            ("best = [0]", "best = [1]"),
            ("min(res)", "res[-1]"),
            ("total = 0", "total = 1"),
        ),
    ),
    Family(
        name="clock",
        difficulty=3,
        tags=("math",),
        kind=TWO,
        params=choices(h=(10, 12, 16, 20, 24), m=(40, 50, 60, 80, 100), what=("hours", "minutes")),
        tasks=(
            (
                "A day has <h> hours of <m> minutes. It is x minutes after midnight; y minutes pass. Which "
                "<what> does the clock show?"
            ),
            (
                "The clock runs over <h> hours of <m> minutes each and starts again. Started x minutes after "
                "midnight, after y more minutes read off the <what>."
            ),
        ),
        output=(
            "Print that number.",
            "Output one integer.",
        ),
        cases=lambda r, p: pairs(
            r,
            0,
            p["h"] * p["m"],
            [(0, 0), (p["m"] - 1, 1), (p["h"] * p["m"] - 1, 1), (p["m"], p["h"] * p["m"])],
        ),
        reference=lambda p, x, y: (x + y) % (p["h"] * p["m"]) // p["m"] if p["what"] == "hours" else (x + y) % p["m"],
        solutions=(
            """
            total = (x + y) % (<h> * <m>)
            if '<what>' == 'hours':
                print(total // <m>)
            else:
                print(total % <m>)
            """,
            """
            cur = x + y
            while cur >= <h> * <m>:
                cur -= <h> * <m>
            print(cur // <m> if '<what>' == 'hours' else cur - cur // <m> * <m>)
            """,
            """
            i, j = divmod(x + y, <m>)
            print(i % <h> if '<what>' == 'hours' else j)
            """,
        ),
        bugs=(
            ("% (<h> * <m>)", "% (<h> * <m> + 1)"),
            (">= <h> * <m>", "> <h> * <m>"),
            ("x + y", "x"),
            ("print(total // <m>)", "print(total % <m>)"),
            ("print(total % <m>)", "print(total // <m>)"),
            ("i % <h>", "i"),
            ("cur // <m> if", "cur % <m> if"),
            ("divmod(x + y, <m>)", "divmod(x + y, <h>)"),
        ),
    ),
)


def _collatz(p: dict, n: int) -> int:
    steps = 0
    while n > 1 and steps < p["cap"]:
        n = n // 2 if n % 2 == 0 else p["mul"] * n + p["add"]
        steps += 1
    return steps


def _stairs(p: dict, n: int) -> int:
    ways = [1]
    for i in range(1, n + 1):
        broken = i == p["bad"] and i < n
        ways.append(0 if broken else sum(ways[max(i - p["big"], 0) : i]))
    return ways[n] % p["m"]


def _coins(p: dict, n: int) -> int:
    counts = [
        i + j + n - p["z"] * i - p["u"] * j
        for i in range(n // p["z"] + 1)
        for j in range((n - p["z"] * i) // p["u"] + 1)
    ]
    return (min(counts) if p["what"] == "fewest coins" else len(counts)) % p["m"]
