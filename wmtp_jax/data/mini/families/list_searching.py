"""Finding something in a list."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import LIST, LIST_K, choices, lists, yes

FAMILIES = (
    Family(
        name="extreme_difference",
        difficulty=2,
        tags=("greedy",),
        kind=LIST,
        params=choices(how=("largest", "smallest"), f=range(1, 16)),
        tasks=(
            "Take the <how> number, multiply it by <f>, and subtract the first number.",
            "Compute <f> times the <how> value minus the first value of the list.",
        ),
        output=(
            "Print the result.",
            "Output one integer.",
        ),
        cases=lambda r, p: lists(r, -9, 9, [[5], [-3, -7], [4, 9, 1], [0, 0]]),
        reference=lambda p, a: p["f"] * (max(a) if p["how"] == "largest" else min(a)) - a[0],
        solutions=(
            """
            best = a[0]
            for v in a:
                if ('<how>' == 'largest' and v > best) or ('<how>' == 'smallest' and v < best):
                    best = v
            print(<f> * best - a[0])
            """,
            """
            pick = {'largest': max, 'smallest': min}['<how>']
            print(pick(a) * <f> - a[0])
            """,
            """
            b = sorted(a)
            if '<how>' == 'largest':
                res = b[-1]
            else:
                res = b[0]
            print(<f> * res - a[0])
            """,
        ),
        bugs=(
            ("- a[0])", "- a[-1])"),
            ("best = a[0]", "best = 0"),
            ("res = b[-1]", "res = b[0]"),
            ("- a[0])", "+ a[0])"),
            ("<f> * res - a[0]", "<f> * (res - a[0])"),
            ("res = b[0]", "res = b[1]"),
        ),
    ),
    Family(
        name="kth_value",
        difficulty=2,
        tags=("sortings",),
        kind=LIST,
        params=choices(k=range(1, 8), order=("smallest", "largest"), dup=("", "distinct ")),
        tasks=(
            "Find the <order> number when the <k> - 1 <order> <dup>numbers are taken away.",
            "Sort the <dup>values and report number <k>, counted from the <order>.",
        ),
        output=(
            "Print that number, or -1 if there are too few.",
            "Output the value; -1 when it does not exist.",
        ),
        cases=lambda r, p: lists(r, 1, 9, [[4], [2, 2], [3, 1, 2], [5, 5, 5, 1]], at_most=11),
        reference=lambda p, a: (lambda b: b[p["k"] - 1] if len(b) >= p["k"] else -1)(
            sorted(set(a) if p["dup"] else a, reverse=p["order"] == "largest")
        ),
        solutions=(
            """
            b = sorted(set(a) if '<dup>' else a)
            if '<order>' == 'largest':
                b.reverse()
            if len(b) >= <k>:
                print(b[<k> - 1])
            else:
                print(-1)
            """,
            """
            b = list(a)
            if '<dup>':
                b = list(set(b))
            b.sort(reverse='<order>' == 'largest')
            print(b[<k> - 1] if len(b) > <k> - 1 else -1)
            """,
            """
            b = []
            for v in sorted(a):
                if '<dup>' and b and b[-1] == v:
                    continue
                b.append(v)
            if '<order>' == 'largest':
                b = b[::-1]
            print(-1 if len(b) < <k> else b[<k> - 1])
            """,
        ),
        bugs=(
            ("b[<k> - 1]", "b[<k>]"),
            ("len(b) >= <k>", "len(b) > <k>"),
            ("b.reverse()", "b.sort()"),
            ("print(-1)", "print(0)"),
            ("b[::-1]", "b[::1]"),
            ("len(b) < <k>", "len(a) < <k>"),
            ("sorted(a):", "a:"),
        ),
    ),
    Family(
        name="index_of",
        difficulty=1,
        tags=("implementation",),
        kind=LIST,
        params=choices(which=("first", "last"), v=range(0, 15)),
        tasks=(
            "Find the position (from 1) of the <which> number equal to <v>.",
            "Seats are numbered from 1. On which seat does the <which> person with ticket <v> sit?",
        ),
        output=(
            "Print the position, or 0 if there is none.",
            "Output the position; 0 when nothing fits.",
        ),
        cases=lambda r, p: lists(
            r, p["v"] - 1, p["v"] + 1, [[p["v"]], [p["v"] + 1], [p["v"], 3, p["v"]], [99, p["v"], p["v"], 99]]
        ),
        reference=lambda p, a: ([0] + [i + 1 for i, v in enumerate(a) if v == p["v"]])[
            (1 if p["v"] in a else 0) if p["which"] == "first" else -1
        ],
        solutions=(
            """
            res = 0
            for i in range(n):
                if a[i] == <v> and (res == 0 or '<which>' == 'last'):
                    res = i + 1
            print(res)
            """,
            """
            spots = [i + 1 for i in range(n) if a[i] == <v>]
            if not spots:
                print(0)
            else:
                print(spots[0] if '<which>' == 'first' else spots[-1])
            """,
            """
            order = range(n) if '<which>' == 'first' else range(n - 1, -1, -1)
            res = 0
            for i in order:
                if a[i] == <v>:
                    res = i + 1
                    break
            print(res)
            """,
        ),
        bugs=(
            ("res = i + 1", "res = i"),
            ("print(0)", "print(-1)"),
            ("        break\n", ""),
            ("range(n - 1, -1, -1)", "range(n - 1, 0, -1)"),
            ("[i + 1 for", "[i for"),
            ("spots[-1]", "spots[1]"),
            ("range(n):\n", "range(1, n):\n"),
        ),
    ),
    Family(
        name="nearest_value",
        difficulty=3,
        tags=("implementation",),
        kind=LIST,
        params=choices(t=range(0, 30)),
        tasks=(
            "Which number is closest to <t>? If two are equally close, take the smaller one.",
            "The target is <t>. Find the value nearest to it; of two equally near ones the smaller wins.",
        ),
        output=(
            "Print that number.",
            "Output the value.",
        ),
        cases=lambda r, p: lists(
            r,
            p["t"] - 5,
            p["t"] + 5,
            [
                [p["t"]],
                [p["t"] + 2, p["t"] - 2],
                [p["t"] - 3, p["t"] + 3, p["t"] + 9],
                [p["t"] - 1, p["t"] + 1],
            ],
        ),
        reference=lambda p, a: min(a, key=lambda v: (abs(v - p["t"]), v)),
        solutions=(
            """
            best = a[0]
            for v in a:
                if abs(v - <t>) < abs(best - <t>):
                    best = v
                elif abs(v - <t>) == abs(best - <t>) and v < best:
                    best = v
            print(best)
            """,
            "print(min(a, key=lambda v: (abs(v - <t>), v)))",
            """
            a.sort()
            res = a[0]
            for v in a:
                if abs(v - <t>) < abs(res - <t>):
                    res = v
            print(res)
            """,
        ),
        bugs=(
            ("and v < best", "and v > best"),
            ("a.sort()\n", ""),
            ("(abs(v - <t>), v)", "abs(v - <t>)"),
            ("< abs(res", "<= abs(res"),
            ("abs(v - <t>), v", "v - <t>, v"),
            ("< abs(best", "> abs(best"),
        ),
    ),
    Family(
        name="pair_sum",
        difficulty=3,
        tags=("brute force",),
        kind=LIST,
        params=choices(t=range(4, 34)),
        tasks=(
            "Are there two numbers at different places that add up to <t>?",
            "Two friends want to spend exactly <t> coins on two different items. Can they?",
        ),
        output=(
            "Print YES or NO.",
            "Output YES if it is possible, otherwise NO.",
        ),
        cases=lambda r, p: lists(
            r,
            0,
            p["t"],
            [[p["t"]], [p["t"] // 2], [p["t"] // 2, p["t"] - p["t"] // 2], [0, p["t"]]],
            at_most=6,
        ),
        reference=lambda p, a: yes(any(a[i] + a[j] == p["t"] for i in range(len(a)) for j in range(i))),
        solutions=(
            """
            res = 'NO'
            for i in range(n):
                for j in range(i + 1, n):
                    if a[i] + a[j] == <t>:
                        res = 'YES'
            print(res)
            """,
            """
            seen = set()
            res = 'NO'
            for v in a:
                if <t> - v in seen:
                    res = 'YES'
                seen.add(v)
            print(res)
            """,
            """
            a.sort()
            i = 0
            j = n - 1
            while i < j and a[i] + a[j] != <t>:
                if a[i] + a[j] < <t>:
                    i += 1
                else:
                    j -= 1
            print('YES' if i < j else 'NO')
            """,
        ),
        bugs=(
            ("range(i + 1, n)", "range(i, n)"),
            ("a[i] + a[j] == <t>", "a[i] + a[j] >= <t>"),
            ("while i < j and", "while i <= j and"),
            ("<t> - v in seen", "v in seen"),
            ("a.sort()\n", ""),
            ("i < j else", "i <= j else"),
            ("if <t> - v in seen", "if <t> - v in a"),
        ),
    ),
    Family(
        name="window_best",
        difficulty=4,
        tags=("two pointers",),
        kind=LIST_K,
        params=choices(what=("largest", "smallest"), d=range(-7, 8)),
        tasks=(
            "Find the <what> sum of k numbers in a row. Add <d>.",
            "Among all windows of k neighbours, report the <what> sum plus <d>.",
        ),
        output=(
            "Print one integer.",
            "Output the answer.",
        ),
        cases=lambda r, p: [
            (a, k)
            for a, k in (
                ([5], 1),
                ([1, 2, 3], 3),
                ([4, -9, 4], 1),
                ([-1, -2, -3], 2),
                *((x[0], r.randint(1, len(x[0]))) for x in lists(r, -9, 9)),
            )
        ],
        reference=lambda p, a, k: (
            (max if p["what"] == "largest" else min)(sum(a[i : i + k]) for i in range(len(a) - k + 1)) + p["d"]
        ),
        solutions=(
            """
            res = [sum(a[i:i + k]) for i in range(n - k + 1)]
            res.sort()
            print((res[-1] if '<what>' == 'largest' else res[0]) + <d>)
            """,
            """
            cur = sum(a[:k])
            best = cur
            for i in range(k, n):
                cur += a[i] - a[i - k]
                if (cur > best) == ('<what>' == 'largest'):
                    best = cur
            print(best + <d>)
            """,
            """
            pick = max if '<what>' == 'largest' else min
            best = sum(a[:k])
            for i in range(1, n - k + 1):
                best = pick(best, sum(a[i:i + k]))
            print(best + <d>)
            """,
        ),
        bugs=(
            ("n - k + 1", "n - k"),
            ("a[i - k]", "a[i - k + 1]"),
            ("best = cur\nfor", "best = 0\nfor"),
            ("a[i:i + k]", "a[i:i + k + 1]"),
            ("range(k, n)", "range(k + 1, n)"),
            ("res[0])", "res[1])"),
        ),
    ),
)
