"""Families of problems on one list of integers."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import LIST, LIST_K, choices, lists, yes

COMPARE = {"greater than": ">", "less than": "<", "at least": ">=", "at most": "<="}


def _holds(sign: str, value: int, bound: int) -> bool:
    return {">": value > bound, "<": value < bound, ">=": value >= bound, "<=": value <= bound}[sign]


def _signs(**options) -> list[dict]:
    """Choices with a comparison in words, its sign, and the sign a careless author writes."""
    slip = {">": ">=", "<": "<=", ">=": ">", "<=": "<"}
    return [{**c, "sign": COMPARE[c["cmp"]], "slip": slip[COMPARE[c["cmp"]]]} for c in choices(cmp=COMPARE, **options)]


FAMILIES = (
    Family(
        "sum_bound", 1, ("math",), LIST, _signs(b=range(1, 16)),
        ("Find the sum of the numbers that are <cmp> <b>.", "Add up all values <cmp> <b>.",
         "Anna keeps only prices <cmp> <b>. What do they cost together?"),
        ("Print the sum, 0 if there are none.", "Output one number: the sum (0 when nothing is kept)."),
        lambda r, p: lists(r, p["b"] - 6, p["b"] + 6, [[p["b"]], [p["b"] - 1, p["b"] + 1], [p["b"]] * 3]),
        lambda p, a: sum(v for v in a if _holds(p["sign"], v, p["b"])),
        ("total = 0\nfor v in a:\n    if v <sign> <b>:\n        total += v\nprint(total)",
         "print(sum(v for v in a if v <sign> <b>))",
         "total = 0\nfor i in range(n):\n    if a[i] <sign> <b>:\n        total = total + a[i]\nprint(total)"),
        (("<sign> <b>", "<slip> <b>"), ("total = 0", "total = 1"), ("range(n)", "range(n - 1)"),
         ("total += v", "total += 1"), ("sum(v for", "sum(1 for"), ("range(n)", "range(1, n)")),
    ),
    Family(
        "count_bound", 1, ("counting",), LIST, _signs(b=range(0, 15)),
        ("How many numbers are <cmp> <b>?", "Count the values <cmp> <b>.",
         "A lamp is bright when its power is <cmp> <b>. Count the bright lamps."),
        ("Print the count.", "Output how many there are."),
        lambda r, p: lists(r, p["b"] - 5, p["b"] + 5, [[p["b"]], [p["b"], p["b"] + 1, p["b"] - 1], [p["b"]] * 4]),
        lambda p, a: sum(_holds(p["sign"], v, p["b"]) for v in a),
        ("res = 0\nfor v in a:\n    if v <sign> <b>:\n        res += 1\nprint(res)",
         "print(len([v for v in a if v <sign> <b>]))",
         "res = 0\ni = 0\nwhile i < n:\n    if a[i] <sign> <b>:\n        res += 1\n    i += 1\nprint(res)"),
        (("<sign> <b>", "<slip> <b>"), ("res = 0", "res = 1"), ("i < n:", "i < n - 1:"),
         ("res += 1", "res += v"), ("len([v", "sum([v"), ("i = 0", "i = 1")),
    ),
    Family(
        "count_multiples", 1, ("number theory",), LIST, choices(k=range(2, 14), word=("divisible by", "not divisible by")),
        ("Count the numbers <word> <k>.", "How many of the n values are <word> <k>?",
         "Boxes hold <k> eggs. Count the hens whose number of eggs is <word> <k>."),
        ("Print the count.", "Output one integer."),
        lambda r, p: lists(r, 0, 4 * p["k"], [[0], [p["k"]], [1, p["k"] + 1, 2 * p["k"]], [p["k"]] * 3]),
        lambda p, a: sum((v % p["k"] == 0) == (p["word"] == "divisible by") for v in a),
        ("res = 0\nfor v in a:\n    if v % <k> == 0:\n        res += 1\nprint(<sel>)".replace("<sel>", "res if '<word>' == 'divisible by' else n - res"),
         "res = len([v for v in a if v % <k> == 0])\nif '<word>' == 'not divisible by':\n    res = n - res\nprint(res)",
         "good = '<word>' == 'divisible by'\nprint(sum(1 for v in a if (v % <k> == 0) == good))"),
        (("% <k> == 0", "% <k> == 1"), ("% <k> == 0", "// <k> == 0"), ("res = 0\n", "res = 1\n"),
         ("n - res", "n - res - 1"), ("== good", "!= good")),
    ),
    Family(
        "extreme_difference", 2, ("greedy",), LIST, choices(how=("largest", "smallest"), f=range(1, 16)),
        ("Take the <how> number, multiply it by <f>, and subtract the first number.",
         "Compute <f> times the <how> value minus the first value of the list."),
        ("Print the result.", "Output one integer."),
        lambda r, p: lists(r, -9, 9, [[5], [-3, -7], [4, 9, 1], [0, 0]]),
        lambda p, a: p["f"] * (max(a) if p["how"] == "largest" else min(a)) - a[0],
        ("best = a[0]\nfor v in a:\n    if ('<how>' == 'largest' and v > best) or ('<how>' == 'smallest' and v < best):\n        best = v\nprint(<f> * best - a[0])",
         "pick = {'largest': max, 'smallest': min}['<how>']\nprint(pick(a) * <f> - a[0])",
         "b = sorted(a)\nif '<how>' == 'largest':\n    res = b[-1]\nelse:\n    res = b[0]\nprint(<f> * res - a[0])"),
        (("- a[0])", "- a[-1])"), ("best = a[0]", "best = 0"), ("res = b[-1]", "res = b[0]"),
         ("- a[0])", "+ a[0])"), ("<f> * res - a[0]", "<f> * (res - a[0])"), ("res = b[0]", "res = b[1]")),
    ),
    Family(
        "kth_value", 2, ("sortings",), LIST, choices(k=range(1, 8), order=("smallest", "largest"), dup=("", "distinct ")),
        ("Find the <order> number when the <k> - 1 <order> <dup>numbers are taken away.",
         "Sort the <dup>values and report number <k>, counted from the <order>."),
        ("Print that number, or -1 if there are too few.", "Output the value; -1 when it does not exist."),
        lambda r, p: lists(r, 1, 9, [[4], [2, 2], [3, 1, 2], [5, 5, 5, 1]], at_most=11),
        lambda p, a: (lambda b: b[p["k"] - 1] if len(b) >= p["k"] else -1)(
            sorted(set(a) if p["dup"] else a, reverse=p["order"] == "largest")),
        ("b = sorted(set(a) if '<dup>' else a)\nif '<order>' == 'largest':\n    b.reverse()\nif len(b) >= <k>:\n    print(b[<k> - 1])\nelse:\n    print(-1)",
         "b = list(a)\nif '<dup>':\n    b = list(set(b))\nb.sort(reverse='<order>' == 'largest')\nprint(b[<k> - 1] if len(b) > <k> - 1 else -1)",
         "b = []\nfor v in sorted(a):\n    if '<dup>' and b and b[-1] == v:\n        continue\n    b.append(v)\nif '<order>' == 'largest':\n    b = b[::-1]\nprint(-1 if len(b) < <k> else b[<k> - 1])"),
        (("b[<k> - 1]", "b[<k>]"), ("len(b) >= <k>", "len(b) > <k>"), ("b.reverse()", "b.sort()"),
         ("print(-1)", "print(0)"), ("b[::-1]", "b[::1]"), ("len(b) < <k>", "len(a) < <k>"), ("sorted(a):", "a:")),
    ),
    Family(
        "longest_run", 3, ("implementation",), LIST, choices(what=("equal", "increasing", "decreasing"), d=range(0, 10)),
        ("Find the length of the longest run of neighbouring numbers that is strictly <what>. Add <d> to it.",
         "A run is a stretch of neighbours that are <what> (strictly). Report the longest run's length plus <d>."),
        ("Print one integer.", "Output the answer."),
        lambda r, p: lists(r, 1, 3, [[2], [1, 1], [1, 2, 3], [3, 2, 1, 1], [1, 2, 2, 2]], at_most=12),
        lambda p, a: _run(p, a) + p["d"],
        ("best = 1\ncur = 1\nfor i in range(1, n):\n    if <op>:\n        cur += 1\n    else:\n        cur = 1\n    best = max(best, cur)\nprint(best + <d>)",
         "best = 0\ni = 0\nwhile i < n:\n    j = i\n    while j + 1 < n and <op2>:\n        j += 1\n    best = max(best, j - i + 1)\n    i = j + 1\nprint(best + <d>)",
         "runs = [1]\nfor i in range(1, n):\n    if <op>:\n        runs[-1] += 1\n    else:\n        runs.append(1)\nprint(max(runs) + <d>)"),
        (("cur = 1\n    best", "cur = 0\n    best"), ("range(1, n)", "range(1, n - 1)"), ("j - i + 1)", "j - i)"),
         ("a[i] == a[i - 1]", "a[i] >= a[i - 1]"), ("a[i] > a[i - 1]", "a[i] >= a[i - 1]"),
         ("a[i] < a[i - 1]", "a[i] <= a[i - 1]"), ("best = 1\n", "best = 0\n"), ("runs[-1] += 1", "runs[0] += 1")),
    ),
    Family(
        "prefix_sums", 2, ("math",), LIST, choices(sign=("sum", "product"), mod=(7, 9, 10, 11, 13, 16, 17, 19, 20, 21, 23, 25, 29, 31, 37)),
        ("For every position give the <sign> of all numbers up to it, modulo <mod>.",
         "Write the running <sign> after each number, as a remainder modulo <mod>."),
        ("Print n integers on one line.", "Output the remainders separated by spaces."),
        lambda r, p: lists(r, 1, 12, [[p["mod"]], [1, 1], [5, 4, 3], [12, 12, 12]]),
        lambda p, a: _running(p, a),
        ("cur = <start>\nres = []\nfor v in a:\n    cur = (cur <op> v) % <mod>\n    res.append(cur)\nprint(*res)",
         "cur = <start>\nfor i in range(n):\n    cur = cur <op> a[i]\n    a[i] = cur % <mod>\nprint(' '.join(map(str, a)))",
         "res = [a[0]]\nfor i in range(1, n):\n    res.append(res[-1] <op> a[i])\nprint(*[v % <mod> for v in res])"),
        (("res.append(cur)", "res.append(v)"), ("range(n)", "range(n - 1)"), ("% <mod>", "% (<mod> - 1)"),
         ("cur = <start>", "cur = 2"), ("range(1, n)", "range(2, n)"), ("res[-1] <op>", "res[0] <op>"), ("(cur <op> v)", "(cur + v + v)")),
    ),
    Family(
        "rotate", 2, ("implementation",), LIST, choices(way=("left", "right"), k=range(1, 16)),
        ("Rotate the list <k> places to the <way>.", "Shift all numbers cyclically by <k> to the <way>."),
        ("Print the list after the rotation.", "Output the numbers separated by spaces."),
        lambda r, p: lists(r, 1, 20, [[7], [1, 2], [1, 2, 3], list(range(1, 10))]),
        lambda p, a: (lambda z: a[z:] + a[:z])((p["k"] if p["way"] == "left" else -p["k"]) % len(a)),
        ("k = <k> % n\nif '<way>' == 'right':\n    k = (n - k) % n\nprint(*(a[k:] + a[:k]))",
         "for _ in range(<k>):\n    if '<way>' == 'left':\n        a.append(a.pop(0))\n    else:\n        a.insert(0, a.pop())\nprint(*a)",
         "step = <k> if '<way>' == 'left' else -<k>\nprint(*[a[(i + step) % n] for i in range(n)])"),
        (("k = <k> % n", "k = <k>"), ("(n - k) % n", "n - k - 1"), ("range(<k>)", "range(<k> - 1)"), ("(i + step)", "(i - step)"),
         ("a.append(a.pop(0))", "a.append(a.pop())"), ("a.insert(0, a.pop())", "a.insert(0, a.pop(0))"), ("a[k:] + a[:k]", "a[:k] + a[k:]")),
    ),
    Family(
        "pair_sum", 3, ("brute force",), LIST, choices(t=range(4, 34)),
        ("Are there two numbers at different places that add up to <t>?",
         "Two friends want to spend exactly <t> coins on two different items. Can they?"),
        ("Print YES or NO.", "Output YES if it is possible, otherwise NO."),
        lambda r, p: lists(r, 0, p["t"], [[p["t"]], [p["t"] // 2], [p["t"] // 2, p["t"] - p["t"] // 2], [0, p["t"]]], at_most=6),
        lambda p, a: yes(any(a[i] + a[j] == p["t"] for i in range(len(a)) for j in range(i))),
        ("res = 'NO'\nfor i in range(n):\n    for j in range(i + 1, n):\n        if a[i] + a[j] == <t>:\n            res = 'YES'\nprint(res)",
         "seen = set()\nres = 'NO'\nfor v in a:\n    if <t> - v in seen:\n        res = 'YES'\n    seen.add(v)\nprint(res)",
         "a.sort()\ni = 0\nj = n - 1\nwhile i < j and a[i] + a[j] != <t>:\n    if a[i] + a[j] < <t>:\n        i += 1\n    else:\n        j -= 1\nprint('YES' if i < j else 'NO')"),
        (("range(i + 1, n)", "range(i, n)"), ("a[i] + a[j] == <t>", "a[i] + a[j] >= <t>"), ("while i < j and", "while i <= j and"),
         ("<t> - v in seen", "v in seen"), ("a.sort()\n", ""), ("i < j else", "i <= j else"), ("if <t> - v in seen", "if <t> - v in a")),
    ),
    Family(
        "index_of", 1, ("implementation",), LIST, choices(which=("first", "last"), v=range(0, 15)),
        ("Find the position (from 1) of the <which> number equal to <v>.",
         "Seats are numbered from 1. On which seat does the <which> person with ticket <v> sit?"),
        ("Print the position, or 0 if there is none.", "Output the position; 0 when nothing fits."),
        lambda r, p: lists(r, p["v"] - 1, p["v"] + 1, [[p["v"]], [p["v"] + 1], [p["v"], 3, p["v"]], [99, p["v"], p["v"], 99]]),
        lambda p, a: ([0] + [i + 1 for i, v in enumerate(a) if v == p["v"]])[(1 if p["v"] in a else 0) if p["which"] == "first" else -1],
        ("res = 0\nfor i in range(n):\n    if a[i] == <v> and (res == 0 or '<which>' == 'last'):\n        res = i + 1\nprint(res)",
         "spots = [i + 1 for i in range(n) if a[i] == <v>]\nif not spots:\n    print(0)\nelse:\n    print(spots[0] if '<which>' == 'first' else spots[-1])",
         "order = range(n) if '<which>' == 'first' else range(n - 1, -1, -1)\nres = 0\nfor i in order:\n    if a[i] == <v>:\n        res = i + 1\n        break\nprint(res)"),
        (("res = i + 1", "res = i"), ("print(0)", "print(-1)"), ("        break\n", ""), ("range(n - 1, -1, -1)", "range(n - 1, 0, -1)"),
         ("[i + 1 for", "[i for"), ("spots[-1]", "spots[1]"), ("range(n):\n", "range(1, n):\n")),
    ),
    Family(
        "mean_bound", 2, ("math",), LIST, choices(word=("above", "below"), c=range(1, 16)),
        ("Count the numbers that are strictly <word> the average, and multiply the count by <c>.",
         "Each number strictly <word> the mean earns <c> points. How many points are earned?"),
        ("Print the result.", "Output one integer."),
        lambda r, p: lists(r, -4, 9, [[5], [1, 2], [3, 3, 3], [-1, -2, -6]]),
        lambda p, a: p["c"] * sum((v * len(a) > sum(a)) if p["word"] == "above" else (v * len(a) < sum(a)) for v in a),
        ("total = sum(a)\nres = 0\nfor v in a:\n    if v * n <op> total:\n        res += <c>\nprint(res)",
         "mean = sum(a) / n\nprint(<c> * len([v for v in a if v <op> mean]))",
         "total = 0\nfor v in a:\n    total += v\nprint(sum(<c> for v in a if v * n <op> total))"),
        (("/ n", "// n"), ("<op> total", "<op>= total"), ("<op> mean", "<op>= mean"), ("v * n", "v"), ("res += <c>", "res += 1"), ("sum(a) / n", "sum(a) / (n + 1)")),
    ),
    Family(
        "remove_value", 1, ("implementation",), LIST, choices(v=range(0, 15), keep=("first", "last")),
        ("Remove every number equal to <v> except the <keep> one.", "Of all numbers equal to <v> only the <keep> one stays."),
        ("Print the remaining numbers on one line.", "Output what is left, separated by spaces."),
        lambda r, p: lists(r, p["v"] - 1, p["v"] + 1, [[p["v"]], [p["v"], 50, p["v"]], [50, p["v"], p["v"], 51], [50]]),
        lambda p, a: _keep_one(p, a),
        ("if '<keep>' == 'last':\n    a.reverse()\nres = []\nfor v in a:\n    if v != <v> or v not in res:\n        res.append(v)\nif '<keep>' == 'last':\n    res.reverse()\nprint(*res)",
         "spots = [i for i in range(n) if a[i] == <v>]\nif spots:\n    spots.pop(0 if '<keep>' == 'first' else -1)\nprint(*[a[i] for i in range(n) if i not in spots])",
         "total = a.count(<v>)\nseen = 0\nres = []\nfor v in a:\n    if v == <v>:\n        seen += 1\n        if seen != (1 if '<keep>' == 'first' else total):\n            continue\n    res.append(v)\nprint(*res)"),
        (("v not in res", "v in res"), ("spots.pop(0 if", "spots.pop(-1 if"), ("seen = 0", "seen = 1"), ("    res.reverse()", "    res.sort()"),
         ("!= <v> or", "!= <v> and"), ("spots.pop(0 if '<keep>' == 'first' else -1)", "spots.pop()"), ("else total)", "else n)")),
    ),
    Family(
        "alternating_sum", 2, ("math",), LIST, choices(start=("plus", "minus"), step=(2, 3, 4, 5), m=(1, 2, 3, 4)),
        ("Signs change every <step> numbers, beginning with <start>. Find the signed sum times <m>.",
         "The first <step> numbers count as <start>, the next <step> with the other sign, and so on. Give <m> times the sum."),
        ("Print one integer.", "Output the result."),
        lambda r, p: lists(r, 1, 9, [[5], [1, 2, 3, 4, 5, 6, 7, 8, 9], [9] * p["step"], [3] * (p["step"] + 1)], at_most=12),
        lambda p, a: p["m"] * sum(v * (1 if (i // p["step"]) % 2 == (p["start"] == "minus") else -1) for i, v in enumerate(a)),
        ("cur = 1 if '<start>' == 'plus' else -1\ntotal = 0\nfor i in range(n):\n    total += cur * a[i]\n    if (i + 1) % <step> == 0:\n        cur = -cur\nprint(total * <m>)",
         "total = 0\nfor i in range(n):\n    if i // <step> % 2 == 0:\n        total += a[i]\n    else:\n        total -= a[i]\nprint(<m> * (total if '<start>' == 'plus' else -total))",
         "total = 0\ncur = <m> if '<start>' == 'plus' else -<m>\nfor i in range(0, n, <step>):\n    total += cur * sum(a[i:i + <step>])\n    cur = -cur\nprint(total)"),
        (("(i + 1) % <step>", "i % <step>"), ("i // <step> % 2 == 0", "i % 2 == 0"), ("a[i:i + <step>]", "a[i:i + <step> - 1]"),
         ("cur = 1 if", "cur = -1 if"), ("else -total", "else total"), ("total += cur * sum", "total = cur * sum")),
    ),
    Family(
        "window_best", 4, ("two pointers",), LIST_K, choices(what=("largest", "smallest"), d=range(-7, 8)),
        ("Find the <what> sum of k numbers in a row. Add <d>.", "Among all windows of k neighbours, report the <what> sum plus <d>."),
        ("Print one integer.", "Output the answer."),
        lambda r, p: [(a, k) for a, k in (([5], 1), ([1, 2, 3], 3), ([4, -9, 4], 1), ([-1, -2, -3], 2), *((x[0], r.randint(1, len(x[0]))) for x in lists(r, -9, 9)))],
        lambda p, a, k: (max if p["what"] == "largest" else min)(sum(a[i : i + k]) for i in range(len(a) - k + 1)) + p["d"],
        ("res = [sum(a[i:i + k]) for i in range(n - k + 1)]\nres.sort()\nprint((res[-1] if '<what>' == 'largest' else res[0]) + <d>)",
         "cur = sum(a[:k])\nbest = cur\nfor i in range(k, n):\n    cur += a[i] - a[i - k]\n    if (cur > best) == ('<what>' == 'largest'):\n        best = cur\nprint(best + <d>)",
         "pick = max if '<what>' == 'largest' else min\nbest = sum(a[:k])\nfor i in range(1, n - k + 1):\n    best = pick(best, sum(a[i:i + k]))\nprint(best + <d>)"),
        (("n - k + 1", "n - k"), ("a[i - k]", "a[i - k + 1]"), ("best = cur\nfor", "best = 0\nfor"), ("a[i:i + k]", "a[i:i + k + 1]"),
         ("range(k, n)", "range(k + 1, n)"), ("res[0])", "res[1])")),
    ),
    Family(
        "nearest_value", 3, ("implementation",), LIST, choices(t=range(0, 30)),
        ("Which number is closest to <t>? If two are equally close, take the smaller one.",
         "The target is <t>. Find the value nearest to it; of two equally near ones the smaller wins."),
        ("Print that number.", "Output the value."),
        lambda r, p: lists(r, p["t"] - 5, p["t"] + 5, [[p["t"]], [p["t"] + 2, p["t"] - 2], [p["t"] - 3, p["t"] + 3, p["t"] + 9], [p["t"] - 1, p["t"] + 1]]),
        lambda p, a: min(a, key=lambda v: (abs(v - p["t"]), v)),
        ("best = a[0]\nfor v in a:\n    if abs(v - <t>) < abs(best - <t>):\n        best = v\n    elif abs(v - <t>) == abs(best - <t>) and v < best:\n        best = v\nprint(best)",
         "print(min(a, key=lambda v: (abs(v - <t>), v)))",
         "a.sort()\nres = a[0]\nfor v in a:\n    if abs(v - <t>) < abs(res - <t>):\n        res = v\nprint(res)"),
        (("and v < best", "and v > best"), ("a.sort()\n", ""), ("(abs(v - <t>), v)", "abs(v - <t>)"), ("< abs(res", "<= abs(res"), ("abs(v - <t>), v", "v - <t>, v"), ("< abs(best", "> abs(best")),
    ),
    Family(
        "distinct_count", 2, ("data structures",), LIST, choices(m=range(2, 17), word=("distinct", "repeated")),
        ("How many <word> remainders modulo <m> are there among the numbers?",
         "Replace each number by its remainder modulo <m>. How many <word> remainders are there?"),
        ("Print the count (a repeated one counts once).", "Output one integer; each remainder counts at most once."),
        lambda r, p: lists(r, 0, 3 * p["m"], [[1], [0, p["m"]], [1, p["m"] + 1, 2], [3, 3, 3]]),
        lambda p, a: (lambda b: len([v for v in set(b) if p["word"] == "distinct" or b.count(v) > 1]))([v % p["m"] for v in a]),
        ("b = [v % <m> for v in a]\nres = 0\nfor v in set(b):\n    if '<word>' == 'distinct' or b.count(v) > 1:\n        res += 1\nprint(res)",
         "seen = {}\nfor v in a:\n    seen[v % <m>] = seen.get(v % <m>, 0) + 1\nneed = 1 if '<word>' == 'distinct' else 2\nprint(len([v for v in seen.values() if v >= need]))",
         "seen = set()\nagain = set()\nfor v in a:\n    c = v % <m>\n    if c in seen:\n        again.add(c)\n    seen.add(c)\nprint(len(seen) if '<word>' == 'distinct' else len(again))"),
        (("% <m>", "% (<m> + 1)"), ("set(b)", "b"), ("> 1", "> 2"), (", 0) + 1", ", 1) + 1"), ("v >= need", "v > need"), ("    if c in seen:", "    if c not in seen:"), ("c = v % <m>", "c = v // <m>")),
    ),
    Family(
        "sort_by", 3, ("sortings",), LIST, choices(m=range(2, 17), way=("rising", "falling")),
        ("Sort the numbers by their remainder modulo <m>, <way>; equal remainders by the number itself, rising.",
         "Order by the remainder modulo <m> (<way>), and among equal remainders from small to large."),
        ("Print the sorted list.", "Output the numbers separated by spaces."),
        lambda r, p: lists(r, 1, 3 * p["m"], [[4], [p["m"], 1], [p["m"] + 1, 1], [5, 4, 3, 2, 1]], at_most=8),
        lambda p, a: sorted(a, key=lambda v: (v % p["m"] * (1 if p["way"] == "rising" else -1), v)),
        ("a.sort()\na.sort(key=lambda v: v % <m>, reverse='<way>' == 'falling')\nprint(*a)",
         "sign = 1 if '<way>' == 'rising' else -1\nprint(*sorted(a, key=lambda v: (sign * (v % <m>), v)))",
         "order = range(<m>) if '<way>' == 'rising' else range(<m> - 1, -1, -1)\nres = []\nfor i in order:\n    res += sorted(v for v in a if v % <m> == i)\nprint(*res)"),
        (("a.sort()\n", ""), ("v % <m>, reverse", "v // <m>, reverse"), ("(sign * (v % <m>), v)", "(v % <m>, sign * v)"), ("range(<m> - 1, -1, -1)", "range(<m> - 1, 0, -1)"),
         ("range(<m>)", "range(1, <m>)"), ("res += sorted(v", "res += list(v"), ("(sign * (v % <m>), v)", "sign * (v % <m>)")),
    ),
)


def _run(p: dict, a: list[int]) -> int:
    best = length = 1
    for before, v in zip(a, a[1:], strict=False):
        good = {"equal": v == before, "increasing": v > before, "decreasing": v < before}[p["what"]]
        length = length + 1 if good else 1
        best = max(best, length)
    return best


def _running(p: dict, a: list[int]) -> list[int]:
    total, result = (0, []) if p["sign"] == "sum" else (1, [])
    for v in a:
        total = total + v if p["sign"] == "sum" else total * v
        result.append(total % p["mod"])
    return result


def _keep_one(p: dict, a: list[int]) -> list[int]:
    places = [i for i, v in enumerate(a) if v == p["v"]]
    kept = places[:1] if p["keep"] == "first" else places[-1:]
    return [v for i, v in enumerate(a) if v != p["v"] or i in kept]


for _family in FAMILIES:  # operators that follow from another parameter
    for _p in _family.params:
        if _family.name == "longest_run":
            _sign = {"equal": "==", "increasing": ">", "decreasing": "<"}[_p["what"]]
            _p["op"], _p["op2"] = f"a[i] {_sign} a[i - 1]", f"a[j + 1] {_sign} a[j]"
        elif _family.name == "prefix_sums":
            _p["op"], _p["start"] = ("+", 0) if _p["sign"] == "sum" else ("*", 1)
        elif _family.name == "mean_bound":
            _p["op"] = ">" if _p["word"] == "above" else "<"
