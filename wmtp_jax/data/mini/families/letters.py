"""Letters of strings."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import STR, TWO_STR, choices, strings, yes

LETTERS = "abcde"


def _two(r, alphabet, edges=()):
    one, two = strings(r, alphabet, at_most=6), strings(r, alphabet, at_most=6)
    return [*edges, *((s[0], t[0]) for s, t in zip(one, two, strict=True))]


def _details_of_caesar(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["op"], p["back"] = ("+", "-") if p["way"] == "forward" else ("-", "+")
    return p


def _details_of_frequent_letter(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["op"] = ">" if p["what"] == "most" else "<"
    p["end"] = {"letter": "best", "count": "s.count(best)", "both": "best, s.count(best)"}[p["show"]]
    return p


def _details_of_anagram(p: dict) -> dict:
    """Adds the parameters that follow from the chosen ones."""
    p["part"] = {
        "letters": "v",
        "vowels": "[c for c in v if c in 'aeiou']",
        "consonants": "[c for c in v if c not in 'aeiou']",
        "letters after the first": "v[1:]",
    }[p["what"]]
    return p


FAMILIES = (
    Family(
        name="count_letters",
        difficulty=1,
        tags=("strings",),
        kind=STR,
        params=choices(group=("aeiou", "xyz", "abc", "qwerty", "aei", "mnop"), word=("in", "not in"), d=range(0, 5)),
        tasks=(
            "Count the letters of s that are <word> the set <group>. Add <d>.",
            "How many characters of s are <word> '<group>'? Give that number plus <d>.",
        ),
        output=(
            "Print one integer.",
            "Output the result.",
        ),
        cases=lambda r, p: strings(r, "abcxyzoime", ["a", "z", "aaa", "xyz", "q"]),
        reference=lambda p, s: sum((c in p["group"]) == (p["word"] == "in") for c in s) + p["d"],
        solutions=(
            """
            res = <d>
            for c in s:
                if c <word> '<group>':
                    res += 1
            print(res)
            """,
            "print(<d> + len([c for c in s if c <word> '<group>']))",
            """
            good = set('<group>')
            res = 0
            for i in range(len(s)):
                if s[i] <word> good:
                    res = res + 1
            print(res + <d>)
            """,
        ),
        bugs=(
            ("range(len(s))", "range(len(s) - 1)"),
            ("res += 1", "res = 1"),
            ("res = 0", "res = 1"),
            ("res + <d>)", "res)"),
            ("for c in s:", "for c in s[1:]:"),
            ("for c in s if", "for c in set(s) if"),
            ("range(len(s))", "range(1, len(s))"),
        ),
    ),
    Family(
        name="palindrome",
        difficulty=2,
        tags=("strings",),
        kind=STR,
        params=choices(drop=(*LETTERS, "none"), d=(1, 2, 3, 4, 5, 6)),
        tasks=(
            "Remove every letter '<drop>' from s. Is the rest a palindrome of at least <d> letters?",
            ("Ignore all '<drop>' in s. Does what remains read the same backwards, and has it <d> letters or more?"),
        ),
        output=(
            "Print YES or NO.",
            "Output YES or NO.",
        ),
        cases=lambda r, p: [
            *strings(r, "ab", ["a", "ab", "aba", "abba", p["drop"][0], "aa" + p["drop"][0], "abcdcba"], at_most=5),
            ("a" * p["d"],),
            ("ba" * (p["d"] - 1) + "b",),
            ("a" * (p["d"] - 1) or "b",),
        ],
        reference=lambda p, s: (lambda t: yes(t == t[::-1] and len(t) >= p["d"]))(s.replace(p["drop"], "")),
        solutions=(
            """
            t = s.replace('<drop>', '')
            if t == t[::-1] and len(t) >= <d>:
                print('YES')
            else:
                print('NO')
            """,
            """
            t = [c for c in s if c != '<drop>']
            i = 0
            j = len(t) - 1
            good = len(t) >= <d>
            while i < j:
                if t[i] != t[j]:
                    good = False
                i += 1
                j -= 1
            print('YES' if good else 'NO')
            """,
            """
            t = ''
            for c in s:
                if c != '<drop>':
                    t += c
            good = all(t[i] == t[-1 - i] for i in range(len(t) // 2))
            print('YES' if good and len(t) > <d> - 1 else 'NO')
            """,
        ),
        bugs=(
            (">= <d>", "> <d>"),
            ("t[-1 - i]", "t[-i]"),
            ("and len(t)", "or len(t)"),
            ("len(t) > <d> - 1", "len(s) > <d> - 1"),
            ("len(t) - 1", "len(t) - 2"),
            ("t == t[::-1]", "s == s[::-1]"),
            ("good = len(t) >= <d>", "good = True"),
            ("len(t) // 2", "len(t) // 4"),
        ),
    ),
    Family(
        name="caesar",
        difficulty=2,
        tags=("strings",),
        kind=STR,
        params=[_details_of_caesar(p) for p in choices(k=range(1, 26), way=("forward", "backward"))],
        tasks=(
            "Shift every letter of s by <k> places <way> in the alphabet (after z comes a).",
            "Encrypt s: move each letter <k> steps <way> around the alphabet.",
        ),
        output=(
            "Print the new string.",
            "Output the result.",
        ),
        cases=lambda r, p: strings(r, "abcxyzmn", ["a", "z", "abcxyz"]),
        reference=lambda p, s: "".join(
            chr((ord(c) - 97 + p["k"] * (1 if p["way"] == "forward" else -1)) % 26 + 97) for c in s
        ),
        solutions=(
            """
            res = ''
            for c in s:
                v = ord(c) - ord('a') <op> <k>
                res += chr(v % 26 + ord('a'))
            print(res)
            """,
            """
            abc = 'abcdefghijklmnopqrstuvwxyz'
            print(''.join(abc[(abc.index(c) <op> <k>) % 26] for c in s))
            """,
            """
            abc = 'abcdefghijklmnopqrstuvwxyz'
            k = <k> if '<way>' == 'forward' else 26 - <k>
            shifted = abc[k:] + abc[:k]
            print(''.join(shifted[abc.index(c)] for c in s))
            """,
        ),
        bugs=(
            ("<op> <k>", "<back> <k>"),
            ("% 26", "% 25"),
            ("26 - <k>", "25 - <k>"),
            ("abc[:k]", "abc[:k - 1]"),
            ("chr(v % 26 + ord('a'))", "chr(v + ord('a'))"),
            ("<op> <k>", "<op> <k> + 1"),
            ("k = <k> if", "k = 26 - <k> if"),
        ),
    ),
    Family(
        name="frequent_letter",
        difficulty=2,
        tags=("strings",),
        kind=STR,
        params=[
            _details_of_frequent_letter(p)
            for p in choices(
                what=("most", "least"),
                tie=("smallest", "largest"),
                show=("letter", "count", "both"),
                d=(1, 2, 3),
            )
        ],
        tasks=(
            ("Which letter occurs <what> often in s (at least <d> times)? Of several take the <tie>. Give the <show>."),
            (
                "Among letters that occur <d> times or more find the one that occurs <what> often; ties go "
                "to the alphabetically <tie>. Give the <show>."
            ),
        ),
        output=(
            "Print it ('both' means letter and count), or -1 if there is none.",
            "Output the answer; -1 when no letter fits, letter and count for 'both'.",
        ),
        cases=lambda r, p: strings(r, "abc", ["a", "ab", "ba", "aabb", "abcabcc"], at_least=2),
        reference=lambda p, s: _frequent(p, s),
        solutions=(
            """
            best = None
            for c in sorted(set(s), reverse='<tie>' == 'largest'):
                v = s.count(c)
                if v >= <d> and (best is None or v <op> s.count(best)):
                    best = c
            if best is None:
                print(-1)
            else:
                print(<end>)
            """,
            """
            from collections import Counter
            count = Counter(s)
            res = sorted(c for c in count if count[c] >= <d>)
            if '<tie>' == 'largest':
                res.reverse()
            if res:
                best = {'most': max, 'least': min}['<what>'](res, key=lambda c: count[c])
                print(<end>)
            else:
                print(-1)
            """,
            """
            total = {}
            for c in s:
                total[c] = total.get(c, 0) + 1
            res = [(v, c) for c, v in total.items() if v >= <d>]
            res.sort(key=lambda e: e[1], reverse='<tie>' == 'largest')
            res.sort(key=lambda e: e[0], reverse='<what>' == 'most')
            if not res:
                print(-1)
            else:
                best = res[0][1]
                print(<end>)
            """,
        ),
        bugs=(
            (">= <d>", "> <d>"),
            ("reverse='<tie>' == 'largest'", "reverse='<tie>' == 'smallest'"),
            ("<op> s.count", "<op>= s.count"),
            (", 0) + 1", ", 1) + 1"),
            ("res[0][1]", "res[-1][1]"),
            ("res.reverse()", "res.sort()"),
            ("print(-1)", "print(0)"),
            ("lambda c: count[c]", "lambda c: c"),
        ),
    ),
    Family(
        name="replace_every",
        difficulty=1,
        tags=("strings",),
        kind=STR,
        params=choices(k=(2, 3, 4, 5), c=("x", "o", "*", "#"), start=("first", "last")),
        tasks=(
            "Replace every <k>th character by '<c>', counting from the <start> one.",
            "Counting from the <start> character, change positions <k>, 2*<k>, ... to '<c>'.",
        ),
        output=(
            "Print the string.",
            "Output the new string.",
        ),
        cases=lambda r, p: strings(r, LETTERS, ["a", "ab", "abc", "abcde" * 2, "abcd"], at_most=14),
        reference=lambda p, s: "".join(
            p["c"] if ((i + 1) if p["start"] == "first" else len(s) - i) % p["k"] == 0 else v for i, v in enumerate(s)
        ),
        solutions=(
            """
            b = list(s)
            if '<start>' == 'last':
                b.reverse()
            for i in range(<k> - 1, len(b), <k>):
                b[i] = '<c>'
            if '<start>' == 'last':
                b.reverse()
            print(''.join(b))
            """,
            """
            res = ''
            for i in range(len(s)):
                v = i + 1 if '<start>' == 'first' else len(s) - i
                res += '<c>' if v % <k> == 0 else s[i]
            print(res)
            """,
            """
            s = s if '<start>' == 'first' else s[::-1]
            res = ''
            cur = 0
            for v in s:
                cur += 1
                if cur == <k>:
                    res += '<c>'
                    cur = 0
                else:
                    res += v
            print(res if '<start>' == 'first' else res[::-1])
            """,
        ),
        bugs=(
            ("range(<k> - 1,", "range(<k>,"),
            ("v = i + 1 if", "v = i if"),
            ("len(s) - i\n", "len(s) - i - 1\n"),
            ("cur = 0\nfor", "cur = 1\nfor"),
            ("<k>):", "<k> - 1):"),
            ("        cur = 0\n", "        cur = 1\n"),
            ("range(<k> - 1,", "range(0,"),
            ("% <k> == 0", "% <k> == 1"),
        ),
    ),
    Family(
        name="anagram",
        difficulty=2,
        tags=("strings",),
        kind=TWO_STR,
        params=[
            _details_of_anagram(p)
            for p in choices(d=range(0, 8), what=("letters", "vowels", "consonants", "letters after the first"))
        ],
        tasks=(
            (
                "Look only at the <what> of s and t. At most <d> of them may differ in number (summed over "
                "all letters). Are they near anagrams?"
            ),
            (
                "Count each letter among the <what> of both strings; the differences of the counts add up. "
                "Is the sum at most <d>?"
            ),
        ),
        output=(
            "Print YES or NO.",
            "Output YES or NO.",
        ),
        cases=lambda r, p: _two(
            r,
            "aebc",
            [
                ("a", "a"),
                ("abc", "cab"),
                ("aab", "abb"),
                ("ab", "a" * 8),
                ("e", "b"),
                ("aaee", "bbcc"),
                ("a" + "b" * p["d"], "a"),
                ("e" * (p["d"] + 1), "b"),
                ("ab" * p["d"] + "b", "ab"),
            ],
        ),
        reference=lambda p, s, t: yes(_letter_gap(p, s, t) <= p["d"]),
        solutions=(
            """
            def part(v):
                return <part>
            x = part(s)
            y = part(t)
            total = sum(abs(x.count(c) - y.count(c)) for c in set(x + y))
            print('YES' if total <= <d> else 'NO')
            """,
            """
            total = {}
            for v, z in ((s, 1), (t, -1)):
                for c in <part>:
                    total[c] = total.get(c, 0) + z
            res = 0
            for v in total.values():
                res += abs(v)
            print('NO' if res > <d> else 'YES')
            """,
            """
            res = 0
            x, y = [<part> for v in (s, t)]
            for c in 'abcdefghijklmnopqrstuvwxyz':
                res += abs(x.count(c) - y.count(c))
            if res <= <d>:
                print('YES')
            else:
                print('NO')
            """,
        ),
        bugs=(
            ("<= <d>", "< <d>"),
            ("abs(v)", "v"),
            ("set(x + y)", "set(x)"),
            ("res > <d>", "res >= <d>"),
            ("abs(x.count(c) - y.count(c))", "max(x.count(c) - y.count(c), 0)"),
            ("(t, -1)", "(t, 1)"),
            ("set(x + y)", "x + y"),
            ("for v in (s, t)", "for v in (t, t)"),
        ),
    ),
)


def _frequent(p: dict, s: str):
    counts = {c: s.count(c) for c in sorted(set(s), reverse=p["tie"] == "largest") if s.count(c) >= p["d"]}
    if not counts:
        return -1
    best = (max if p["what"] == "most" else min)(counts, key=counts.__getitem__)
    return {"letter": best, "count": counts[best], "both": [best, counts[best]]}[p["show"]]


def _letter_gap(p: dict, s: str, t: str) -> int:
    def part(v: str) -> str:
        if p["what"] == "letters after the first":
            return v[1:]
        return "".join(c for c in v if p["what"] == "letters" or (c in "aeiou") == (p["what"] == "vowels"))

    s, t = part(s), part(t)
    return sum(abs(s.count(c) - t.count(c)) for c in sorted(set(s + t)))
