"""Runs, brackets, prefixes."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import STR, TWO_STR, choices, strings, yes


def _two(r, alphabet, edges=()):
    one, two = strings(r, alphabet, at_most=6), strings(r, alphabet, at_most=6)
    return [*edges, *((s[0], t[0]) for s, t in zip(one, two, strict=True))]


def _details_of_brackets(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["o"], p["c"] = p["pair"]
    p["asked"], p["end"] = {
        "depth": (f"the greatest depth of nesting plus {p['d']}", "print(best + <d>)"),
        "missing": (f"how many brackets have no partner, plus {p['d']}", "print(cur + need + <d>)"),
        "balanced": (
            f"whether all brackets have partners and the depth is at least {p['d']} (YES or NO)",
            "print('YES' if cur == 0 and need == 0 and best >= <d> else 'NO')",
        ),
    }[p["what"]]
    p["end"] = p["end"].replace("<d>", str(p["d"]))
    return p


FAMILIES = (
    Family(
        name="run_length",
        difficulty=3,
        tags=("strings",),
        kind=STR,
        params=choices(
            form=("letter first", "count first"),
            ones=("always", "only above 1"),
            low=(1, 2, 3, 4),
            sep=("", "-"),
        ),
        tasks=(
            (
                "Compress s: each run of equal letters becomes the letter and its length (<form>, the length "
                "is written <ones>). Runs shorter than <low> are dropped. Join with '<sep>'."
            ),
            (
                "Write every run of at least <low> equal letters as letter and length, <form>, joined by "
                "'<sep>'; lengths are written <ones>."
            ),
        ),
        output=(
            "Print the result, or EMPTY if nothing is left.",
            "Output the compressed string (EMPTY when it has no run).",
        ),
        cases=lambda r, p: strings(r, "ab", ["a", "aab", "abb", "aaaa", "aabbbaaaa"], at_least=2),
        reference=lambda p, s: _runs(p, s),
        solutions=(
            """
            res = []
            i = 0
            while i < len(s):
                j = i
                while j < len(s) and s[j] == s[i]:
                    j += 1
                v = str(j - i) if '<ones>' == 'always' or j - i > 1 else ''
                if j - i >= <low>:
                    res.append(s[i] + v if '<form>' == 'letter first' else v + s[i])
                i = j
            print('<sep>'.join(res) or 'EMPTY')
            """,
            """
            from itertools import groupby
            res = []
            for c, run in groupby(s):
                size = len(list(run))
                if size < <low>:
                    continue
                v = str(size)
                if '<ones>' == 'only above 1' and size == 1:
                    v = ''
                res.append(c + v if '<form>' == 'letter first' else v + c)
            print('<sep>'.join(res) if res else 'EMPTY')
            """,
            """
            runs = []
            for c in s:
                if runs and runs[-1][0] == c:
                    runs[-1][1] += 1
                else:
                    runs.append([c, 1])
            res = []
            for c, v in runs:
                if v >= <low>:
                    v = '' if '<ones>' == 'only above 1' and v == 1 else str(v)
                    res.append(c + v if '<form>' == 'letter first' else v + c)
            print('<sep>'.join(res) or 'EMPTY')
            """,
        ),
        bugs=(
            ("'letter first'", "'count first'"),
            (">= <low>", "> <low>"),
            ("[c, 1]", "[c, 0]"),
            ("size < <low>", "size <= <low>"),
            ("str(j - i)", "str(j - i + 1)"),
            (" or 'EMPTY'", ""),
            ("i = j\n", "i = j + 1\n"),
            ("runs[-1][0] == c", "runs[0][0] == c"),
            (" if res else 'EMPTY'", ""),
        ),
    ),
    Family(
        name="brackets",
        difficulty=3,
        tags=("data structures",),
        kind=STR,
        params=[
            _details_of_brackets(p)
            for p in choices(pair=("()", "[]", "<>", "{}"), what=("depth", "missing", "balanced"), d=(0, 1, 2))
        ],
        tasks=(
            "s has brackets <pair> and dots. Give <asked>.",
            "Read the brackets <pair> of s from left to right (dots are ignored) and find <asked>.",
        ),
        output=(
            "Print the answer.",
            "Output the answer on one line.",
        ),
        cases=lambda r, p: strings(
            r,
            p["pair"] * 2 + ".",
            [
                p["pair"],
                p["pair"][::-1],
                p["pair"][0] * 3,
                p["pair"] + p["pair"][1],
                p["pair"][0] + p["pair"] + p["pair"][1],
            ],
        ),
        reference=lambda p, s: _brackets(p, s),
        solutions=(
            """
            cur = 0
            best = 0
            need = 0
            for c in s:
                if c == '<o>':
                    cur += 1
                elif c == '<c>':
                    if cur == 0:
                        need += 1
                    else:
                        cur -= 1
                best = max(best, cur)
            <end>
            """,
            """
            stack = []
            best = need = 0
            for c in s:
                if c == '<o>':
                    stack.append(c)
                    best = max(best, len(stack))
                if c == '<c>':
                    if stack:
                        stack.pop()
                    else:
                        need += 1
            cur = len(stack)
            <end>
            """,
            """
            cur = 0
            need = 0
            best = 0
            for i in range(len(s)):
                cur += (s[i] == '<o>') - (s[i] == '<c>')
                if cur < 0:
                    cur = 0
                    need += 1
                if cur > best:
                    best = cur
            <end>
            """,
        ),
        bugs=(
            ("need += 1", "need += 0"),
            ("cur -= 1", "cur = 0"),
            ("cur < 0", "cur <= 0"),
            ("stack.pop()", "stack.clear()"),
            ("best = max(best, cur)", "best = cur"),
            ("range(len(s))", "range(1, len(s))"),
            ("cur + need", "abs(cur - need)"),
            ("cur == 0 and need == 0", "cur == need"),
            ("best + <d>", "best"),
        ),
    ),
    Family(
        name="common_prefix",
        difficulty=2,
        tags=("strings",),
        kind=TWO_STR,
        params=choices(
            side=("prefix", "suffix"), what=("length", "text", "rest of s"), case=("none", "a", "b", "c", "d")
        ),
        tasks=(
            (
                "First remove all letters '<case>' from both strings (none: remove nothing). Find the "
                "longest common <side> and give its <what>."
            ),
            (
                "After dropping every '<case>' from s and t (none: drop nothing), give the <what> of the "
                "longest common <side>; 'rest of s' is s without it."
            ),
        ),
        output=(
            "Print it, or a single dot if it is empty.",
            "Output the answer; a dot stands for an empty string.",
        ),
        cases=lambda r, p: _two(
            r,
            "ab",
            [
                ("a", "a"),
                ("ab", "abb"),
                ("ba", "bba"),
                ("bad", "dad"),
                ("abc", "abd"),
                ("cba", "dba"),
                ("dd", "d"),
                ("xabx", "xacx"),
            ],
        ),
        reference=lambda p, s, t: _common(p, s, t),
        solutions=(
            """
            if '<case>' != 'none':
                s = s.replace('<case>', '')
                t = t.replace('<case>', '')
            if '<side>' == 'suffix':
                s = s[::-1]
                t = t[::-1]
            i = 0
            while i < len(s) and i < len(t) and s[i] == t[i]:
                i += 1
            res = s[:i]
            if '<what>' == 'rest of s':
                res = s[i:]
            if '<side>' == 'suffix':
                res = res[::-1]
            print(i if '<what>' == 'length' else res or '.')
            """,
            """
            s = ''.join(c for c in s if c != '<case>')
            t = ''.join(c for c in t if c != '<case>')
            best = 0
            for i in range(1, min(len(s), len(t)) + 1):
                if (s[:i] == t[:i] if '<side>' == 'prefix' else s[-i:] == t[-i:]):
                    best = i
            if '<what>' == 'length':
                print(best)
            elif '<side>' == 'prefix':
                print((s[:best] if '<what>' == 'text' else s[best:]) or '.')
            else:
                cut = len(s) - best
                print((s[cut:] if '<what>' == 'text' else s[:cut]) or '.')
            """,
            """
            x = [c for c in s if c != '<case>']
            y = [c for c in t if c != '<case>']
            end = 0 if '<side>' == 'prefix' else -1
            res = []
            while x and y and x[end] == y[end]:
                res.append(x.pop(end))
                y.pop(end)
            if '<side>' == 'suffix':
                res.reverse()
            if '<what>' == 'length':
                print(len(res))
            else:
                print(''.join(res if '<what>' == 'text' else x) or '.')
            """,
        ),
        bugs=(
            (" or '.'", ""),
            ("+ 1):", "):"),
            ("best = i", "best = i + 1"),
            ("res.reverse()", "res.sort()"),
            ("i = 0\n", "i = 1\n"),
            ("s[:i]\n", "s[:i - 1]\n"),
            ("end = 0 if", "end = -1 if"),
            ("t = t.replace", "t = s.replace"),
            ("y.pop(end)", "y.pop()"),
            ("len(res))", "len(x))"),
        ),
    ),
)


def _runs(p: dict, s: str) -> str:
    runs: list[list] = []
    for c in s:
        if runs and runs[-1][0] == c:
            runs[-1][1] += 1
        else:
            runs.append([c, 1])
    parts = []
    for c, length in runs:
        if length >= p["low"]:
            shown = "" if p["ones"] == "only above 1" and length == 1 else str(length)
            parts.append(c + shown if p["form"] == "letter first" else shown + c)
    return p["sep"].join(parts) or "EMPTY"


def _brackets(p: dict, s: str):
    depth = best = missing = 0
    for c in s:
        if c == p["pair"][0]:
            depth += 1
        elif c == p["pair"][1]:
            depth, missing = (depth - 1, missing) if depth else (0, missing + 1)
        best = max(best, depth)
    answers = {"depth": best + p["d"], "missing": depth + missing + p["d"]}
    return answers.get(p["what"], yes(depth == 0 and missing == 0 and best >= p["d"]))


def _common(p: dict, s: str, t: str):
    s, t = s.replace(p["case"], ""), t.replace(p["case"], "")
    step = 1 if p["side"] == "prefix" else -1
    s, t = s[::step], t[::step]
    i = 0
    while i < min(len(s), len(t)) and s[i] == t[i]:
        i += 1
    text = s[:i] if p["what"] == "text" else s[i:]
    return i if p["what"] == "length" else text[::step] or "."
