"""Tables of numbers."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import GRID, SUMMARIES, choices

FOUR = "[(-1, 0), (1, 0), (0, -1), (0, 1)]"
EIGHT = "[(u, z) for u in (-1, 0, 1) for z in (-1, 0, 1) if u or z]"


def _grids(r, low, high, edges=(), square=False):
    made = []
    for _ in range(8):
        n, m = r.randint(1, 4), r.randint(1, 4)
        made.append([[r.randint(low, high) for _ in range(n if square else m)] for _ in range(n)])
    return [(list(map(list, g)),) for g in (*edges, *made)]


def _details_of_line_sums(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    by_row = p["line"] == "row"
    p["outer"], p["inner"], p["index"] = ("n", "m", "i") if by_row else ("m", "n", "j")
    p["cell"] = "i][j" if by_row else "j][i"
    p["op"], p["back"] = (">", "<") if p["what"] == "largest" else ("<", ">")
    return p


def _details_of_neighbours(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    greater = p["cmp"] == "greater"
    p["op"], p["strict"] = (">", ">") if greater else ("<", "<")
    p["notop"], p["wall"] = (">=", "-1") if greater else ("<=", "100")
    p["near"] = "(u or z)" if p["around"] == "8" else "abs(u) + abs(z) == 1"
    p["steps"] = EIGHT if p["around"] == "8" else FOUR
    return p


def _details_of_grid_path(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["steps"] = "((0, 1), (1, 0))" if p["moves"] == "right and down" else "((0, 1), (1, 0), (1, 1))"
    return p


FAMILIES = (
    Family(
        name="line_sums",
        difficulty=2,
        tags=("implementation",),
        kind=GRID,
        params=[
            _details_of_line_sums(p)
            for p in choices(line=("row", "column"), what=("largest", "smallest"), d=range(0, 9))
        ],
        tasks=(
            "Find the <what> <line> sum of the table. Add <d>.",
            "Sum up each <line> and report the <what> of these sums plus <d>.",
        ),
        output=(
            "Print one integer.",
            "Output the result.",
        ),
        cases=lambda r, p: _grids(r, -5, 9, [[[4]], [[1, 2, 3]], [[1], [2]], [[-1, -2], [-3, -4]]]),
        reference=lambda p, g: (
            (max if p["what"] == "largest" else min)(map(sum, g if p["line"] == "row" else zip(*g, strict=True)))
            + p["d"]
        ),
        solutions=(
            """
            pick = {'largest': max, 'smallest': min}['<what>']
            lines = g if '<line>' == 'row' else list(zip(*g))
            print(pick(sum(v) for v in lines) + <d>)
            """,
            """
            best = None
            for i in range(<outer>):
                cur = 0
                for j in range(<inner>):
                    cur += g[<cell>]
                if best is None or cur <op> best:
                    best = cur
            print(best + <d>)
            """,
            """
            res = [0] * <outer>
            for i in range(n):
                for j in range(m):
                    res[<index>] += g[i][j]
            res.sort()
            print((res[-1] if '<what>' == 'largest' else res[0]) + <d>)
            """,
        ),
        bugs=(
            ("range(<inner>)", "range(<inner> - 1)"),
            ("<op> best", "<back> best"),
            ("best = None", "best = 0"),
            (" is None or", " == 0 or"),
            ("cur = 0", "cur = 1"),
            ("res[-1]", "res[0]"),
            ("lines = g", "lines = list(zip(*g))"),
            ("list(zip(*g))", "g"),
            ("res[<index>] +=", "res[<index>] ="),
            ("best + <d>", "best"),
        ),
    ),
    Family(
        name="diagonals",
        difficulty=2,
        tags=("implementation",),
        kind=GRID,
        params=choices(which=("main", "anti"), op=("sum", "largest", "smallest"), d=(1, 2, 3, 4, 5, 6)),
        tasks=(
            "The table is square. Take the <which> diagonal and give <d> times the <op> of its numbers.",
            "In a square table find the <op> on the <which> diagonal and multiply it by <d>.",
        ),
        output=(
            "Print one integer.",
            "Output the product.",
        ),
        cases=lambda r, p: _grids(r, -9, 9, [[[4]], [[1, 2], [3, 4]], [[-5, -2], [-3, -9]]], square=True),
        reference=lambda p, g: (
            p["d"] * SUMMARIES[p["op"]]([g[i][i if p["which"] == "main" else len(g) - 1 - i] for i in range(len(g))])
        ),
        solutions=(
            """
            b = []
            for i in range(n):
                b.append(g[i][i] if '<which>' == 'main' else g[i][n - 1 - i])
            print(<d> * {'sum': sum, 'largest': max, 'smallest': min}['<op>'](b))
            """,
            """
            res = []
            for i in range(n):
                for j in range(n):
                    if (i == j if '<which>' == 'main' else i + j == n - 1):
                        res.append(g[i][j])
            print({'sum': sum, 'largest': max, 'smallest': min}['<op>'](res) * <d>)
            """,
            """
            if '<which>' == 'anti':
                g = [v[::-1] for v in g]
            if '<op>' == 'sum':
                total = 0
                for i in range(n):
                    total += g[i][i]
                print(total * <d>)
            else:
                res = sorted(g[i][i] for i in range(n))
                print(<d> * (res[0] if '<op>' == 'smallest' else res[-1]))
            """,
        ),
        bugs=(
            ("g[i][n - 1 - i]", "g[i][n - 2 - i]"),
            ("i + j == n - 1", "i + j == n"),
            ("range(n)", "range(n - 1)"),
            ("range(n)", "range(1, n)"),
            ("total = 0", "total = 1"),
            ("g[i][i] if", "g[i][0] if"),
            ("v[::-1] for", "v for"),
            ("i == j if", "i != j if"),
            ("res[0] if", "res[-1] if"),
        ),
    ),
    Family(
        name="neighbours",
        difficulty=4,
        tags=("implementation",),
        kind=GRID,
        params=[
            _details_of_neighbours(p) for p in choices(cmp=("greater", "smaller"), around=("4", "8"), d=range(0, 8))
        ],
        tasks=(
            (
                "A cell counts if it is strictly <cmp> than all its (up to <around>) neighbours and its "
                "value is at least <d>. Count such cells."
            ),
            (
                "Count the cells not below <d> that are strictly <cmp> than each of the <around> cells "
                "around (fewer at the border)."
            ),
        ),
        output=(
            "Print the count.",
            "Output one integer.",
        ),
        cases=lambda r, p: _grids(
            r,
            0,
            9,
            [[[4]], [[1, 2], [3, 4]], [[5, 5], [5, 5]], [[p["d"], 9, p["d"]]], [[9, 1, 8], [2, 7, 2]]],
        ),
        reference=lambda p, g: _peaks(p, g),
        solutions=(
            """
            res = 0
            for i in range(n):
                for j in range(m):
                    good = g[i][j] >= <d>
                    for u in (-1, 0, 1):
                        for z in (-1, 0, 1):
                            x, y = i + u, j + z
                            if <near> and 0 <= x < n and 0 <= y < m:
                                if g[x][y] <notop> g[i][j]:
                                    good = False
                    res += good
            print(res)
            """,
            """
            def at(x, y):
                if 0 <= x < n and 0 <= y < m:
                    return g[x][y]
                return <wall>
            steps = <steps>
            res = 0
            for i in range(n):
                for j in range(m):
                    if g[i][j] >= <d> and all(g[i][j] <op> at(i + u, j + z) for u, z in steps):
                        res += 1
            print(res)
            """,
            """
            steps = <steps>
            res = n * m
            for i in range(n):
                for j in range(m):
                    bad = g[i][j] < <d>
                    for u, z in steps:
                        if i + u in range(n) and j + z in range(m) and g[i + u][j + z] <notop> g[i][j]:
                            bad = True
                    if bad:
                        res -= 1
            print(res)
            """,
        ),
        bugs=(
            (">= <d>", "> <d>"),
            ("<op> at", "<op>= at"),
            ("return <wall>", "return 0"),
            ("0 <= x < n and", "0 < x < n and"),
            ("<notop> g[i][j]", "<strict> g[i][j]"),
            ("< <d>", "<= <d>"),
            ("res -= 1", "res -= 2"),
            ("j + z in range(m)", "j + z in range(n)"),
            ("good = False", "good = True"),
        ),
    ),
    Family(
        name="grid_path",
        difficulty=5,
        tags=("dp",),
        kind=GRID,
        params=[
            _details_of_grid_path(p)
            for p in choices(
                what=("largest", "smallest"),
                moves=("right and down", "right, down and diagonally"),
                d=range(0, 8),
            )
        ],
        tasks=(
            (
                "Walk from the top left to the bottom right cell, moving <moves>. Each cell's number is "
                "paid, and each move costs <d> more. Find the <what> total."
            ),
            (
                "Moves go <moves>. Sum the numbers of all cells visited from the upper left to the lower "
                "right corner, plus <d> per move; give the <what> possible sum."
            ),
        ),
        output=(
            "Print the total.",
            "Output one integer.",
        ),
        cases=lambda r, p: _grids(
            r,
            0,
            9,
            [[[4]], [[1, 9], [2, 3]], [[1, 2, 3]], [[5], [6], [7]], [[1, 1, 9], [9, 1, 1], [9, 9, 1]]],
        ),
        reference=lambda p, g: _path(p, g),
        solutions=(
            """
            pick = {'largest': max, 'smallest': min}['<what>']
            best = [[0] * m for _ in range(n)]
            for i in range(n):
                for j in range(m):
                    b = []
                    if i > 0:
                        b.append(best[i - 1][j])
                    if j > 0:
                        b.append(best[i][j - 1])
                    if '<moves>' != 'right and down' and i > 0 and j > 0:
                        b.append(best[i - 1][j - 1])
                    best[i][j] = g[i][j] + (pick(b) + <d> if b else 0)
            print(best[-1][-1])
            """,
            """
            from functools import lru_cache
            @lru_cache(None)
            def go(x, y):
                if x == n - 1 and y == m - 1:
                    return g[x][y]
                b = []
                for u, z in <steps>:
                    if x + u < n and y + z < m:
                        b.append(go(x + u, y + z) + <d>)
                return g[x][y] + {'largest': max, 'smallest': min}['<what>'](b)
            print(go(0, 0))
            """,
            """
            INF = 10 ** 9
            sign = 1 if '<what>' == 'smallest' else -1
            best = [[INF] * (m + 1) for _ in range(n + 1)]
            for i in range(1, n + 1):
                for j in range(1, m + 1):
                    cur = min(best[i - 1][j], best[i][j - 1])
                    if '<moves>' != 'right and down':
                        cur = min(cur, best[i - 1][j - 1])
                    cur = 0 if i == j == 1 else cur + sign * <d>
                    best[i][j] = cur + sign * g[i - 1][j - 1]
            print(sign * best[n][m])
            """,
        ),
        bugs=(
            (
                "if i > 0:\n            b.append(best[i - 1][j])\n",
                "if i > 1:\n            b.append(best[i - 1][j])\n",
            ),
            ("pick(b) + <d>", "pick(b)"),
            ("+ <d>)\n", ")\n"),
            ("go(0, 0)", "go(0, 0) + 1"),
            ("min(best[i - 1][j], best[i][j - 1])", "best[i][j - 1]"),
            ("'largest': max", "'largest': min"),
            ("'smallest': min", "'smallest': max"),
            ("cur + sign * <d>", "cur"),
            ("best[i][j - 1])\n", "best[i - 1][j])\n"),
            ("sign * g[i - 1][j - 1]", "sign * g[i - 1][0]"),
        ),
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
