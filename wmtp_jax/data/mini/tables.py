"""Families of problems on tables and on lists of pairs."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import GRID, PAIRS, choices


def _grids(r, low, high, edges=(), square=False):
    made = []
    for _ in range(8):
        n, m = r.randint(1, 4), r.randint(1, 4)
        made.append([[r.randint(low, high) for _ in range(n if square else m)] for _ in range(n)])
    return [(list(map(list, g)),) for g in (*edges, *made)]


def _pair_lists(r, low, high, edges=(), ordered=False):
    made = [[(r.randint(low, high), r.randint(low, high)) for _ in range(r.randint(1, 6))] for _ in range(8)]
    lists = [*edges, *made]
    return [([tuple(sorted(q)) if ordered else q for q in p],) for p in lists]


FAMILIES = (
    Family(
        "line_sums", 2, ("implementation",), GRID, choices(line=("row", "column"), what=("largest", "smallest"), d=range(0, 9)),
        ("Find the <what> <line> sum of the table. Add <d>.", "Sum up each <line> and report the <what> of these sums plus <d>."),
        ("Print one integer.", "Output the result."),
        lambda r, p: _grids(r, -5, 9, [[[4]], [[1, 2, 3]], [[1], [2]], [[-1, -2], [-3, -4]]]),
        lambda p, g: (max if p["what"] == "largest" else min)(map(sum, g if p["line"] == "row" else zip(*g, strict=True))) + p["d"],
        ("pick = {'largest': max, 'smallest': min}['<what>']\nlines = g if '<line>' == 'row' else list(zip(*g))\nprint(pick(sum(v) for v in lines) + <d>)",
         "best = None\nfor i in range(<outer>):\n    cur = 0\n    for j in range(<inner>):\n        cur += g[<cell>]\n    if best is None or cur <op> best:\n        best = cur\nprint(best + <d>)",
         "res = [0] * <outer>\nfor i in range(n):\n    for j in range(m):\n        res[<index>] += g[i][j]\nres.sort()\nprint((res[-1] if '<what>' == 'largest' else res[0]) + <d>)"),
        (("range(<inner>)", "range(<inner> - 1)"), ("<op> best", "<back> best"), ("best = None", "best = 0"), (" is None or", " == 0 or"), ("cur = 0", "cur = 1"), ("res[-1]", "res[0]"), ("lines = g", "lines = list(zip(*g))"), ("list(zip(*g))", "g"), ("res[<index>] +=", "res[<index>] ="), ("best + <d>", "best")),
    ),
    Family(
        "diagonals", 2, ("implementation",), GRID, choices(which=("main", "anti"), op=("sum", "largest", "smallest"), d=(1, 2, 3, 4, 5, 6)),
        ("The table is square. Take the <which> diagonal and give <d> times the <op> of its numbers.", "In a square table find the <op> on the <which> diagonal and multiply it by <d>."),
        ("Print one integer.", "Output the product."),
        lambda r, p: _grids(r, -9, 9, [[[4]], [[1, 2], [3, 4]], [[-5, -2], [-3, -9]]], square=True),
        lambda p, g: p["d"] * {"sum": sum, "largest": max, "smallest": min}[p["op"]]([g[i][i if p["which"] == "main" else len(g) - 1 - i] for i in range(len(g))]),
        ("b = []\nfor i in range(n):\n    b.append(g[i][i] if '<which>' == 'main' else g[i][n - 1 - i])\nprint(<d> * {'sum': sum, 'largest': max, 'smallest': min}['<op>'](b))",
         "res = []\nfor i in range(n):\n    for j in range(n):\n        if (i == j if '<which>' == 'main' else i + j == n - 1):\n            res.append(g[i][j])\nprint({'sum': sum, 'largest': max, 'smallest': min}['<op>'](res) * <d>)",
         "if '<which>' == 'anti':\n    g = [v[::-1] for v in g]\nif '<op>' == 'sum':\n    total = 0\n    for i in range(n):\n        total += g[i][i]\n    print(total * <d>)\nelse:\n    res = sorted(g[i][i] for i in range(n))\n    print(<d> * (res[0] if '<op>' == 'smallest' else res[-1]))"),
        (("g[i][n - 1 - i]", "g[i][n - 2 - i]"), ("i + j == n - 1", "i + j == n"), ("range(n)", "range(n - 1)"), ("range(n)", "range(1, n)"), ("total = 0", "total = 1"), ("g[i][i] if", "g[i][0] if"), ("v[::-1] for", "v for"), ("i == j if", "i != j if"), ("res[0] if", "res[-1] if")),
    ),
    Family(
        "neighbours", 4, ("implementation",), GRID, choices(cmp=("greater", "smaller"), around=("4", "8"), d=range(0, 8)),
        ("A cell counts if it is strictly <cmp> than all its (up to <around>) neighbours and its value is at least <d>. Count such cells.",
         "Count the cells not below <d> that are strictly <cmp> than each of the <around> cells around (fewer at the border)."),
        ("Print the count.", "Output one integer."),
        lambda r, p: _grids(r, 0, 9, [[[4]], [[1, 2], [3, 4]], [[5, 5], [5, 5]], [[p["d"], 9, p["d"]]], [[9, 1, 8], [2, 7, 2]]]),
        lambda p, g: _peaks(p, g),
        ("res = 0\nfor i in range(n):\n    for j in range(m):\n        good = g[i][j] >= <d>\n        for u in (-1, 0, 1):\n            for z in (-1, 0, 1):\n                x, y = i + u, j + z\n                if <near> and 0 <= x < n and 0 <= y < m:\n                    if g[x][y] <notop> g[i][j]:\n                        good = False\n        res += good\nprint(res)",
         "def at(x, y):\n    if 0 <= x < n and 0 <= y < m:\n        return g[x][y]\n    return <wall>\nsteps = <steps>\nres = 0\nfor i in range(n):\n    for j in range(m):\n        if g[i][j] >= <d> and all(g[i][j] <op> at(i + u, j + z) for u, z in steps):\n            res += 1\nprint(res)",
         "steps = <steps>\nres = n * m\nfor i in range(n):\n    for j in range(m):\n        bad = g[i][j] < <d>\n        for u, z in steps:\n            if i + u in range(n) and j + z in range(m) and g[i + u][j + z] <notop> g[i][j]:\n                bad = True\n        if bad:\n            res -= 1\nprint(res)"),
        ((">= <d>", "> <d>"), ("<op> at", "<op>= at"), ("return <wall>", "return 0"), ("0 <= x < n and", "0 < x < n and"), ("<notop> g[i][j]", "<strict> g[i][j]"), ("< <d>", "<= <d>"), ("res -= 1", "res -= 2"), ("j + z in range(m)", "j + z in range(n)"), ("good = False", "good = True")),
    ),
    Family(
        "grid_path", 5, ("dp",), GRID, choices(what=("largest", "smallest"), moves=("right and down", "right, down and diagonally"), d=range(0, 8)),
        ("Walk from the top left to the bottom right cell, moving <moves>. Each cell's number is paid, and each move costs <d> more. Find the <what> total.",
         "Moves go <moves>. Sum the numbers of all cells visited from the upper left to the lower right corner, plus <d> per move; give the <what> possible sum."),
        ("Print the total.", "Output one integer."),
        lambda r, p: _grids(r, 0, 9, [[[4]], [[1, 9], [2, 3]], [[1, 2, 3]], [[5], [6], [7]], [[1, 1, 9], [9, 1, 1], [9, 9, 1]]]),
        lambda p, g: _path(p, g),
        ("pick = {'largest': max, 'smallest': min}['<what>']\nbest = [[0] * m for _ in range(n)]\nfor i in range(n):\n    for j in range(m):\n        b = []\n        if i > 0:\n            b.append(best[i - 1][j])\n        if j > 0:\n            b.append(best[i][j - 1])\n        if '<moves>' != 'right and down' and i > 0 and j > 0:\n            b.append(best[i - 1][j - 1])\n        best[i][j] = g[i][j] + (pick(b) + <d> if b else 0)\nprint(best[-1][-1])",
         "from functools import lru_cache\n@lru_cache(None)\ndef go(x, y):\n    if x == n - 1 and y == m - 1:\n        return g[x][y]\n    b = []\n    for u, z in <steps>:\n        if x + u < n and y + z < m:\n            b.append(go(x + u, y + z) + <d>)\n    return g[x][y] + {'largest': max, 'smallest': min}['<what>'](b)\nprint(go(0, 0))",
         "INF = 10 ** 9\nsign = 1 if '<what>' == 'smallest' else -1\nbest = [[INF] * (m + 1) for _ in range(n + 1)]\nfor i in range(1, n + 1):\n    for j in range(1, m + 1):\n        cur = min(best[i - 1][j], best[i][j - 1])\n        if '<moves>' != 'right and down':\n            cur = min(cur, best[i - 1][j - 1])\n        cur = 0 if i == j == 1 else cur + sign * <d>\n        best[i][j] = cur + sign * g[i - 1][j - 1]\nprint(sign * best[n][m])"),
        (("if i > 0:\n            b.append(best[i - 1][j])\n", "if i > 1:\n            b.append(best[i - 1][j])\n"), ("pick(b) + <d>", "pick(b)"), ("+ <d>)\n", ")\n"), ("go(0, 0)", "go(0, 0) + 1"), ("min(best[i - 1][j], best[i][j - 1])", "best[i][j - 1]"), ("'largest': max", "'largest': min"), ("'smallest': min", "'smallest': max"), ("cur + sign * <d>", "cur"), ("best[i][j - 1])\n", "best[i - 1][j])\n"), ("sign * g[i - 1][j - 1]", "sign * g[i - 1][0]")),
    ),
    Family(
        "interval_cover", 4, ("sortings",), PAIRS, choices(what=("covered", "covered twice or more"), low=range(0, 8), ends=("included", "not included")),
        ("Each pair l r is an interval of whole numbers with the right end <ends>. How many numbers not below <low> are <what>?",
         "Count the whole numbers from <low> up that are <what> by intervals l r (left end included, right end <ends>)."),
        ("Print the count.", "Output one integer."),
        lambda r, p: _pair_lists(r, 0, 14, [[(1, 3)], [(2, 2)], [(0, 5), (3, 8)], [(1, 2), (2, 3)], [(0, 14), (0, 14), (5, 6)]], ordered=True),
        lambda p, q: _cover(p, q),
        ("b = [0] * 100\nfor u, z in p:\n    for i in range(u, z<plus>):\n        b[i] += 1\nprint(len([v for v in b[<low>:] if v >= <need>]))",
         "res = 0\nfor i in range(<low>, 100):\n    v = 0\n    for u, z in p:\n        if u <= i <le> z:\n            v += 1\n    if v >= <need>:\n        res += 1\nprint(res)",
         "seen = set()\nagain = set()\nfor u, z in p:\n    for i in range(max(u, <low>), z<plus>):\n        if i in seen:\n            again.add(i)\n        seen.add(i)\nprint(len(seen) if <need> == 1 else len(again))"),
        (("z<plus>)", "z<minus>)"), ("b[<low>:]", "b[<low> + 1:]"), (">= <need>", "> <need>"), ("<le> z", "<ge> z"), ("range(<low>, 100)", "range(<low>, n)"), ("u <= i", "u < i"), ("b[i] += 1", "b[i] = 1"), ("max(u, <low>)", "u"), ("if i in seen:", "if i not in seen:"), ("range(u,", "range(u + 1,")),
    ),
    Family(
        "schedule", 5, ("greedy",), PAIRS, choices(gap=range(0, 16), reward=(1, 2)),
        ("Each pair is the start and end of a lecture. Choose as many as possible so that each starts at least <gap> after the end of the one before. Give <reward> times their number.",
         "Pick the most lectures (start, end) one person can visit when a break of at least <gap> is needed between two. Print <reward> points for each."),
        ("Print the number of points.", "Output one integer."),
        lambda r, p: _pair_lists(r, 0, 30 + 2 * p["gap"], [[(1, 2)], [(0, 9), (1, 2), (2 + p["gap"], 4 + p["gap"])], [(0, 20), (1, 3), (3 + p["gap"], 5 + p["gap"])], [(0, 1), (p["gap"], p["gap"] + 1)], [(1, 30), (2, 3), (4 + p["gap"], 5 + p["gap"]), (0, 2)]], ordered=True),
        lambda p, q: _visits(p, q),
        ("p.sort(key=lambda e: e[1])\nres = 0\ncur = -1000\nfor u, z in p:\n    if u >= cur + <gap>:\n        res += 1\n        cur = z\nprint(res * <reward>)",
         "best = {}\nfor z, u in sorted((b, a) for a, b in p):\n    before = [best[v] for v in best if v + <gap> <= u]\n    best[z] = max(best.get(z, 0), max(before, default=0) + 1)\nprint(<reward> * max(best.values()))",
         "left = list(p)\nres = 0\nwhile left:\n    cur = min(z for u, z in left)\n    start = [u for u, z in left if z == cur]\n    left = [e for e in left if e[0] >= cur + <gap> and e != (max(start), cur)]\n    res += <reward>\nprint(res)"),
        (("e[1]", "e[0]"), ("u >= cur", "u > cur"), ("<= u", "< u"), ("p.sort(key=lambda e: e[1])\n", ""), ("max(before, default=0)", "len(before)"), ("cur = z", "cur = max(cur, u)"), ("e[0] >= cur", "e[0] > cur"), ("cur + <gap>", "cur"), ("v + <gap>", "v"), ("cur = min(z", "cur = min(u")),
    ),
    Family(
        "budget", 2, ("greedy",), PAIRS, choices(cash=range(5, 36)),
        ("Each pair is the price of an item and how many are in stock. With <cash> coins buy as many items as you can. How many is that?",
         "A shop has items (price, amount). You own <cash> coins and want the largest number of items. Find that number."),
        ("Print the number of items.", "Output one integer."),
        lambda r, p: [([(u + 1, z) for u, z in q[0]],) for q in _pair_lists(r, 0, 9, [[(0, 3)], [(p["cash"] - 1, 1)], [(p["cash"], 1)], [(4, 9), (1, 2), (2, 2)], [(0, 100)]])],
        lambda p, q: _buy(p, q),
        ("p.sort()\ncash = <cash>\nres = 0\nfor u, z in p:\n    v = min(z, cash // u)\n    res += v\n    cash -= u * v\nprint(res)",
         "prices = []\nfor u, z in p:\n    prices += [u] * z\nprices.sort()\ntotal = 0\nres = 0\nfor v in prices:\n    if total + v <= <cash>:\n        total += v\n        res += 1\nprint(res)",
         "cash = <cash>\nres = 0\nfor u, z in sorted(p):\n    while z > 0 and cash >= u:\n        cash -= u\n        z -= 1\n        res += 1\nprint(res)"),
        (("p.sort()\n", ""), ("<= <cash>", "< <cash>"), ("min(z, cash // u)", "cash // u"), ("cash >= u", "cash > u"), ("in sorted(p)", "in p"), ("prices.sort()\n", ""), ("z > 0 and", "z > 1 and"), ("cash -= u * v", "cash -= v"), ("[u] * z", "[u]"), ("res += v", "res += 1")),
    ),
    Family(
        "rectangles", 2, ("geometry",), PAIRS, choices(what=("area", "perimeter"), pick=("largest", "smallest", "total"), low=range(1, 8)),
        ("Each pair gives the sides of a rectangle; those with a side shorter than <low> are ignored. Find the <pick> <what>.",
         "Among rectangles whose sides are both at least <low>, give the <pick> <what>."),
        ("Print it, or 0 if none is left.", "Output one integer; 0 without any rectangle."),
        lambda r, p: _pair_lists(r, 1, 12, [[(1, 9)], [(p["low"], p["low"])], [(9, 9), (p["low"] - 1 or 1, 12)], [(2, 9), (6, 4)], [(8, 12), (10, 9)]]),
        lambda p, q: _sizes(p, q),
        ("b = []\nfor u, z in p:\n    if u >= <low> and z >= <low>:\n        b.append(<size>)\nprint({'largest': max, 'smallest': min, 'total': sum}['<pick>'](b) if b else 0)",
         "b = [<size> for u, z in p if min(u, z) >= <low>]\nb.sort()\nif not b:\n    print(0)\nelif '<pick>' == 'total':\n    print(sum(b))\nelse:\n    print(b[-1] if '<pick>' == 'largest' else b[0])",
         "res = 0\nfor i in range(n):\n    u, z = p[i]\n    if u < <low> or z < <low>:\n        continue\n    v = <size>\n    if '<pick>' == 'total':\n        res += v\n    elif res == 0 or ('<pick>' == 'largest' and v > res) or ('<pick>' == 'smallest' and v < res):\n        res = v\nprint(res)"),
        ((">= <low> and", "> <low> and"), ("min(u, z)", "max(u, z)"), ("<size>", "<wrong>"), ("and z >= <low>", "or z >= <low>"), ("range(n)", "range(n - 1)"), ("or z < <low>", "and z < <low>"), ("res += v", "res = v"), ("b[-1] if", "b[0] if"), ("b[0]", "b[-1]"), ("print(0)", "print(-1)")),
    ),
)


def _peaks(p: dict, g: list[list[int]]) -> int:
    count = 0
    for i, row in enumerate(g):
        for j, value in enumerate(row):
            around = [
                g[x][y]
                for x in range(max(i - 1, 0), min(i + 2, len(g)))
                for y in range(max(j - 1, 0), min(j + 2, len(row)))
                if (x, y) != (i, j) and (p["around"] == "8" or x == i or y == j)
            ]
            wins = all(value > v if p["cmp"] == "greater" else value < v for v in around)
            count += wins and value >= p["d"]
    return count


def _path(p: dict, g: list[list[int]]) -> int:
    best: dict[tuple[int, int], int] = {}
    for i, row in enumerate(g):
        for j, value in enumerate(row):
            steps = [(1, 0), (0, 1)] + ([] if p["moves"] == "right and down" else [(1, 1)])
            before = [best[i - u, j - v] + p["d"] for u, v in steps if (i - u, j - v) in best]
            best[i, j] = value + ((max if p["what"] == "largest" else min)(before) if before else 0)
    return best[len(g) - 1, len(g[0]) - 1]


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
    return {"largest": max, "smallest": min, "total": sum}[p["pick"]](sizes) if sizes else 0


FOUR = "[(-1, 0), (1, 0), (0, -1), (0, 1)]"
EIGHT = "[(u, z) for u in (-1, 0, 1) for z in (-1, 0, 1) if u or z]"

for _family in FAMILIES:  # parameters that follow from another
    for _p in _family.params:
        if _family.name == "line_sums":
            by_row = _p["line"] == "row"
            _p["outer"], _p["inner"], _p["index"] = ("n", "m", "i") if by_row else ("m", "n", "j")
            _p["cell"] = "i][j" if by_row else "j][i"
            _p["op"], _p["back"] = (">", "<") if _p["what"] == "largest" else ("<", ">")
        elif _family.name == "neighbours":
            greater = _p["cmp"] == "greater"
            _p["op"], _p["strict"] = (">", ">") if greater else ("<", "<")
            _p["notop"], _p["wall"] = (">=", "-1") if greater else ("<=", "100")
            _p["near"] = "(u or z)" if _p["around"] == "8" else "abs(u) + abs(z) == 1"
            _p["steps"] = EIGHT if _p["around"] == "8" else FOUR
        elif _family.name == "grid_path":
            _p["steps"] = "((0, 1), (1, 0))" if _p["moves"] == "right and down" else "((0, 1), (1, 0), (1, 1))"
        elif _family.name == "interval_cover":
            included = _p["ends"] == "included"
            _p["plus"], _p["minus"] = (" + 1", "") if included else ("", " - 1")
            _p["le"], _p["ge"] = ("<=", "<") if included else ("<", "<=")
            _p["need"] = 1 if _p["what"] == "covered" else 2
        elif _family.name == "rectangles":
            area, around = "u * z", "2 * (u + z)"
            _p["size"], _p["wrong"] = (area, around) if _p["what"] == "area" else (around, area)
