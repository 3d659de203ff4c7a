"""Lists of pairs: intervals, prices, sides."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import PAIRS, SUMMARIES, choices


def _pair_lists(r, low, high, edges=(), ordered=False):
    made = [[(r.randint(low, high), r.randint(low, high)) for _ in range(r.randint(1, 6))] for _ in range(8)]
    lists = [*edges, *made]
    return [([tuple(sorted(q)) if ordered else q for q in p],) for p in lists]


def _details_of_interval_cover(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    included = p["ends"] == "included"
    p["plus"], p["minus"] = (" + 1", "") if included else ("", " - 1")
    p["le"], p["ge"] = ("<=", "<") if included else ("<", "<=")
    p["need"] = 1 if p["what"] == "covered" else 2
    return p


def _details_of_rectangles(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    area, around = "u * z", "2 * (u + z)"
    p["size"], p["wrong"] = (area, around) if p["what"] == "area" else (around, area)
    return p


FAMILIES = (
    Family(
        name="interval_cover",
        difficulty=4,
        tags=("sortings",),
        kind=PAIRS,
        params=[
            _details_of_interval_cover(p)
            for p in choices(
                what=("covered", "covered twice or more"), low=range(0, 8), ends=("included", "not included")
            )
        ],
        tasks=(
            (
                "Each pair l r is an interval of whole numbers with the right end <ends>. How many numbers "
                "not below <low> are <what>?"
            ),
            (
                "Count the whole numbers from <low> up that are <what> by intervals l r (left end included, "
                "right end <ends>)."
            ),
        ),
        output=(
            "Print the count.",
            "Output one integer.",
        ),
        cases=lambda r, p: _pair_lists(
            r,
            0,
            14,
            [[(1, 3)], [(2, 2)], [(0, 5), (3, 8)], [(1, 2), (2, 3)], [(0, 14), (0, 14), (5, 6)]],
            ordered=True,
        ),
        reference=lambda p, q: _cover(p, q),
        solutions=(
            """
            b = [0] * 100
            for u, z in p:
                for i in range(u, z<plus>):
                    b[i] += 1
            print(len([v for v in b[<low>:] if v >= <need>]))
            """,
            """
            res = 0
            for i in range(<low>, 100):
                v = 0
                for u, z in p:
                    if u <= i <le> z:
                        v += 1
                if v >= <need>:
                    res += 1
            print(res)
            """,
            """
            seen = set()
            again = set()
            for u, z in p:
                for i in range(max(u, <low>), z<plus>):
                    if i in seen:
                        again.add(i)
                    seen.add(i)
            print(len(seen) if <need> == 1 else len(again))
            """,
        ),
        bugs=(
            ("z<plus>)", "z<minus>)"),
            ("b[<low>:]", "b[<low> + 1:]"),
            (">= <need>", "> <need>"),
            ("<le> z", "<ge> z"),
            ("range(<low>, 100)", "range(<low>, n)"),
            ("u <= i", "u < i"),
            ("b[i] += 1", "b[i] = 1"),
            ("max(u, <low>)", "u"),
            ("if i in seen:", "if i not in seen:"),
            ("range(u,", "range(u + 1,"),
        ),
    ),
    Family(
        name="schedule",
        difficulty=5,
        tags=("greedy",),
        kind=PAIRS,
        params=choices(gap=range(0, 16), reward=(1, 2)),
        tasks=(
            (
                "Each pair is the start and end of a lecture. Choose as many as possible so that each starts "
                "at least <gap> after the end of the one before. Give <reward> times their number."
            ),
            (
                "Pick the most lectures (start, end) one person can visit when a break of at least <gap> is "
                "needed between two. Print <reward> points for each."
            ),
        ),
        output=(
            "Print the number of points.",
            "Output one integer.",
        ),
        cases=lambda r, p: _pair_lists(
            r,
            0,
            30 + 2 * p["gap"],
            [
                [(1, 2)],
                [(0, 9), (1, 2), (2 + p["gap"], 4 + p["gap"])],
                [(0, 20), (1, 3), (3 + p["gap"], 5 + p["gap"])],
                [(0, 1), (p["gap"], p["gap"] + 1)],
                [(1, 30), (2, 3), (4 + p["gap"], 5 + p["gap"]), (0, 2)],
            ],
            ordered=True,
        ),
        reference=lambda p, q: _visits(p, q),
        solutions=(
            """
            p.sort(key=lambda e: e[1])
            res = 0
            cur = -1000
            for u, z in p:
                if u >= cur + <gap>:
                    res += 1
                    cur = z
            print(res * <reward>)
            """,
            """
            best = {}
            for z, u in sorted((b, a) for a, b in p):
                before = [best[v] for v in best if v + <gap> <= u]
                best[z] = max(best.get(z, 0), max(before, default=0) + 1)
            print(<reward> * max(best.values()))
            """,
            """
            left = list(p)
            res = 0
            while left:
                cur = min(z for u, z in left)
                start = [u for u, z in left if z == cur]
                left = [e for e in left if e[0] >= cur + <gap> and e != (max(start), cur)]
                res += <reward>
            print(res)
            """,
        ),
        bugs=(
            ("e[1]", "e[0]"),
            ("u >= cur", "u > cur"),
            ("<= u", "< u"),
            ("p.sort(key=lambda e: e[1])\n", ""),
            ("max(before, default=0)", "len(before)"),
            ("cur = z", "cur = max(cur, u)"),
            ("e[0] >= cur", "e[0] > cur"),
            ("cur + <gap>", "cur"),
            ("v + <gap>", "v"),
            ("cur = min(z", "cur = min(u"),
        ),
    ),
    Family(
        name="budget",
        difficulty=2,
        tags=("greedy",),
        kind=PAIRS,
        params=choices(cash=range(5, 36)),
        tasks=(
            (
                "Each pair is the price of an item and how many are in stock. With <cash> coins buy as many "
                "items as you can. How many is that?"
            ),
            (
                "A shop has items (price, amount). You own <cash> coins and want the largest number of "
                "items. Find that number."
            ),
        ),
        output=(
            "Print the number of items.",
            "Output one integer.",
        ),
        cases=lambda r, p: [
            ([(u + 1, z) for u, z in q[0]],)
            for q in _pair_lists(
                r,
                0,
                9,
                [[(0, 3)], [(p["cash"] - 1, 1)], [(p["cash"], 1)], [(4, 9), (1, 2), (2, 2)], [(0, 100)]],
            )
        ],
        reference=lambda p, q: _buy(p, q),
        solutions=(
            """
            p.sort()
            cash = <cash>
            res = 0
            for u, z in p:
                v = min(z, cash // u)
                res += v
                cash -= u * v
            print(res)
            """,
            """
            prices = []
            for u, z in p:
                prices += [u] * z
            prices.sort()
            total = 0
            res = 0
            for v in prices:
                if total + v <= <cash>:
                    total += v
                    res += 1
            print(res)
            """,
            """
            cash = <cash>
            res = 0
            for u, z in sorted(p):
                while z > 0 and cash >= u:
                    cash -= u
                    z -= 1
                    res += 1
            print(res)
            """,
        ),
        bugs=(
            ("p.sort()\n", ""),
            ("<= <cash>", "< <cash>"),
            ("min(z, cash // u)", "cash // u"),
            ("cash >= u", "cash > u"),
            ("in sorted(p)", "in p"),
            ("prices.sort()\n", ""),
            ("z > 0 and", "z > 1 and"),
            ("cash -= u * v", "cash -= v"),
            ("[u] * z", "[u]"),
            ("res += v", "res += 1"),
        ),
    ),
    Family(
        name="rectangles",
        difficulty=2,
        tags=("geometry",),
        kind=PAIRS,
        params=[
            _details_of_rectangles(p)
            for p in choices(what=("area", "perimeter"), pick=("largest", "smallest", "total"), low=range(1, 8))
        ],
        tasks=(
            (
                "Each pair gives the sides of a rectangle; those with a side shorter than <low> are ignored. "
                "Find the <pick> <what>."
            ),
            "Among rectangles whose sides are both at least <low>, give the <pick> <what>.",
        ),
        output=(
            "Print it, or 0 if none is left.",
            "Output one integer; 0 without any rectangle.",
        ),
        cases=lambda r, p: _pair_lists(
            r,
            1,
            12,
            [
                [(1, 9)],
                [(p["low"], p["low"])],
                [(9, 9), (p["low"] - 1 or 1, 12)],
                [(2, 9), (6, 4)],
                [(8, 12), (10, 9)],
            ],
        ),
        reference=lambda p, q: _sizes(p, q),
        solutions=(
            """
            b = []
            for u, z in p:
                if u >= <low> and z >= <low>:
                    b.append(<size>)
            print({'largest': max, 'smallest': min, 'total': sum}['<pick>'](b) if b else 0)
            """,
            """
            b = [<size> for u, z in p if min(u, z) >= <low>]
            b.sort()
            if not b:
                print(0)
            elif '<pick>' == 'total':
                print(sum(b))
            else:
                print(b[-1] if '<pick>' == 'largest' else b[0])
            """,
            """
            res = 0
            for i in range(n):
                u, z = p[i]
                if u < <low> or z < <low>:
                    continue
                v = <size>
                if '<pick>' == 'total':
                    res += v
                elif res == 0 or ('<pick>' == 'largest' and v > res) or ('<pick>' == 'smallest' and v < res):
                    res = v
            print(res)
            """,
        ),
        bugs=(
            (">= <low> and", "> <low> and"),
            ("min(u, z)", "max(u, z)"),
            ("<size>", "<wrong>"),
            ("and z >= <low>", "or z >= <low>"),
            ("range(n)", "range(n - 1)"),
            ("or z < <low>", "and z < <low>"),
            ("res += v", "res = v"),
            ("b[-1] if", "b[0] if"),
            ("b[0]", "b[-1]"),
            ("print(0)", "print(-1)"),
        ),
    ),
)


def _cover(p: dict, intervals: list[tuple[int, int]]) -> int:
    last = 1 if p["ends"] == "included" else 0
    count = [sum(low <= v < high + last for low, high in intervals) for v in range(100)]
    return sum(c >= (1 if p["what"] == "covered" else 2) for c in count[p["low"] :])


def _visits(p: dict, lectures: list[tuple[int, int]]) -> int:
    free, count = -1000, 0
    for start, end in sorted(lectures, key=lambda lecture: lecture[1]):
        if start >= free:
            free, count = end + p["gap"], count + 1
    return count * p["reward"]


def _buy(p: dict, items: list[tuple[int, int]]) -> int:
    cash, count = p["cash"], 0
    for price, amount in sorted(items):
        bought = min(amount, cash // price)
        cash, count = cash - bought * price, count + bought
    return count


def _sizes(p: dict, sides: list[tuple[int, int]]) -> int:
    sizes = [u * z if p["what"] == "area" else 2 * (u + z) for u, z in sides if min(u, z) >= p["low"]]
    return SUMMARIES[p["pick"]](sizes) if sizes else 0
