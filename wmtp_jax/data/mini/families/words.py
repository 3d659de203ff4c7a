"""Lines of words."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import WORDS, choices

WORD_LIST = (
    "sun",
    "moon",
    "sea",
    "tree",
    "bird",
    "ash",
    "echo",
    "oak",
    "noon",
    "level",
    "to",
    "an",
    "i",
    "river",
)


def _words(r, edges=()):
    return [(list(w),) for w in (*edges, *([r.choice(WORD_LIST) for _ in range(r.randint(1, 7))] for _ in range(8)))]


def _details_of_word_lengths(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    sign = ">" if p["what"] == "longest" else "<"
    p["op"], p["slip"] = (sign, sign + "=") if p["tie"] == "first" else (sign + "=", sign)
    p["end"] = "[::-1]" if p["up"] == "reversed" else ""
    return p


def _details_of_word_order(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["key"] = {"alphabetically": "v", "by length": "len(v)", "by last letter": "v[-1]"}[p["order"]]
    other = {
        "alphabetically": "res[i - 1]",
        "by length": "len(res[i - 1])",
        "by last letter": "res[i - 1][-1]",
    }
    p["before"] = f"{other[p['order']]} {'>' if p['way'] == 'rising' else '<'} {p['key']}"
    return p


def _details_of_acronym(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["at"], p["off"] = (0, -1) if p["pos"] == "first" else (-1, 0)
    p["fn"] = "upper" if p["case"] == "upper case" else "lower"
    return p


FAMILIES = (
    Family(
        name="word_lengths",
        difficulty=1,
        tags=("strings",),
        kind=WORDS,
        params=[
            _details_of_word_lengths(p)
            for p in choices(
                what=("longest", "shortest"),
                tie=("first", "last"),
                d=(0, 1, 2, 3),
                up=("as it is", "reversed"),
            )
        ],
        tasks=(
            "Find the <what> word with more than <d> letters; of several take the <tie>. Write it <up>.",
            "Among words longer than <d> letters take the <what> (the <tie> one of equals), <up>.",
        ),
        output=(
            "Print the word, or NONE.",
            "Output the word; NONE if no word is long enough.",
        ),
        cases=lambda r, p: _words(
            r,
            [["a"], ["ab", "ba"], ["abc", "de", "fgh"], ["i", "an", "to"], ["level", "river", "oak", "ash"]],
        ),
        reference=lambda p, w: _pick_word(p, w),
        solutions=(
            """
            b = [v for v in w if len(v) > <d>]
            if '<tie>' == 'last':
                b.reverse()
            if b:
                best = {'longest': max, 'shortest': min}['<what>'](b, key=len)
                print(best<end>)
            else:
                print('NONE')
            """,
            """
            best = ''
            for v in w:
                if len(v) > <d> and (best == '' or len(v) <op> len(best)):
                    best = v
            print(best<end> or 'NONE')
            """,
            """
            res = 'NONE'
            found = False
            for i in range(len(w)):
                if len(w[i]) <= <d>:
                    continue
                if not found or len(w[i]) <op> len(res):
                    found = True
                    res = w[i]
            print(res<end> if found else res)
            """,
        ),
        bugs=(
            ("> <d>", ">= <d>"),
            ("b.reverse()", "b.sort()"),
            ("<= <d>", "< <d>"),
            ("<op> len", "<slip> len"),
            (" or 'NONE'", ""),
            ("key=len)", "key=str)"),
            ("best<end>", "best"),
            ("range(len(w))", "range(len(w) - 1)"),
            ("not found or ", ""),
        ),
    ),
    Family(
        name="word_order",
        difficulty=2,
        tags=("strings",),
        kind=WORDS,
        params=[
            _details_of_word_order(p)
            for p in choices(
                order=("alphabetically", "by length", "by last letter"),
                way=("rising", "falling"),
                low=(1, 2, 3, 4),
                dup=("keep", "drop"),
            )
        ],
        tasks=(
            (
                "Sort the words <order>, <way> (equal ones stay in the order given). Leave out words shorter "
                "than <low>; <dup> repeated words."
            ),
            (
                "Order the words with at least <low> letters <order>, <way>, stable; <dup> second and later "
                "copies of a word."
            ),
        ),
        output=(
            "Print the words on one line, or NONE.",
            "Output the words separated by spaces (NONE if there is none).",
        ),
        cases=lambda r, p: _words(
            r, [["a"], ["oak", "ash", "oak"], ["tree", "sea", "bird"], ["noon", "an", "i", "to", "moon"]]
        ),
        reference=lambda p, w: _order_words(p, w) or "NONE",
        solutions=(
            """
            b = []
            for v in w:
                if len(v) >= <low> and ('<dup>' == 'keep' or v not in b):
                    b.append(v)
            b.sort(key=lambda v: <key>, reverse='<way>' == 'falling')
            print(*b) if b else print('NONE')
            """,
            """
            b = [v for v in w if len(v) >= <low>]
            if '<dup>' == 'drop':
                b = list(dict.fromkeys(b))
            res = sorted(b, key=lambda v: <key>, reverse='<way>' == 'falling')
            print(' '.join(res) or 'NONE')
            """,
            """
            res = []
            for v in w:
                if len(v) < <low> or ('<dup>' == 'drop' and v in res):
                    continue
                i = len(res)
                while i > 0 and <before>:
                    i -= 1
                res.insert(i, v)
            print(' '.join(res) if res else 'NONE')
            """,
        ),
        bugs=(
            (">= <low>", "> <low>"),
            ("reverse='<way>' == 'falling'", "reverse='<way>' == 'rising'"),
            ("v not in b", "v in b"),
            ("list(dict.fromkeys(b))", "list(b)"),
            ("< <low>", "<= <low>"),
            (" or 'NONE'", ""),
            ("key=lambda v: <key>", "key=lambda v: v[0]"),
            ("while i > 0", "while i > 1"),
            (" if res else 'NONE'", ""),
        ),
    ),
    Family(
        name="acronym",
        difficulty=1,
        tags=("strings",),
        kind=WORDS,
        params=[
            _details_of_acronym(p)
            for p in choices(
                pos=("first", "last"), low=(1, 2, 3, 4), case=("upper case", "lower case"), join=("-", ".")
            )
        ],
        tasks=(
            ("Take the <pos> letter of every word with at least <low> letters, in <case>, joined by '<join>'."),
            (
                "Build an acronym from the <pos> letters (<case>, '<join>' between them) of words not "
                "shorter than <low>."
            ),
        ),
        output=(
            "Print the acronym, or NONE if no word counts.",
            "Output the result; NONE when it is empty.",
        ),
        cases=lambda r, p: _words(r, [["a"], ["ab", "c"], ["sun", "sea"], ["i", "an", "oak", "tree"]]),
        reference=lambda p, w: (
            getattr(p["join"].join(v[p["at"]] for v in w if len(v) >= p["low"]), p["fn"])() or "NONE"
        ),
        solutions=(
            """
            res = []
            for v in w:
                if len(v) >= <low>:
                    res.append(v[<at>].<fn>())
            print('<join>'.join(res) or 'NONE')
            """,
            """
            res = '<join>'.join(v[<at>] for v in w if len(v) >= <low>).<fn>()
            print(res if res else 'NONE')
            """,
            """
            res = ''
            for i in range(len(w)):
                if len(w[i]) < <low>:
                    continue
                if res:
                    res += '<join>'
                res += w[i][<at>].<fn>()
            print(res or 'NONE')
            """,
        ),
        bugs=(
            (">= <low>", "> <low>"),
            ("< <low>", "<= <low>"),
            ("[<at>]", "[<off>]"),
            (" or 'NONE'", ""),
            (".<fn>()", ""),
            ("range(len(w))", "range(1, len(w))"),
            (" if res else 'NONE'", ""),
            ("'<join>'.join(res)", "' '.join(res)"),
        ),
    ),
)


def _pick_word(p: dict, w: list[str]) -> str:
    words = [v for v in w if len(v) > p["d"]]
    if not words:
        return "NONE"
    words = words if p["tie"] == "first" else words[::-1]
    best = (max if p["what"] == "longest" else min)(words, key=len)
    return best if p["up"] == "as it is" else best[::-1]


def _order_words(p: dict, w: list[str]) -> str:
    words = [v for v in w if len(v) >= p["low"]]
    words = list(dict.fromkeys(words)) if p["dup"] == "drop" else words
    key = {"alphabetically": lambda v: v, "by length": len, "by last letter": lambda v: v[-1]}[p["order"]]
    return " ".join(sorted(words, key=key, reverse=p["way"] == "falling"))
