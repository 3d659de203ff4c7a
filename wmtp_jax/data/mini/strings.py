"""Families of problems on strings and words."""

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import STR, TWO_STR, WORDS, choices, strings, yes

LETTERS = "abcde"
WORD_LIST = ("sun", "moon", "sea", "tree", "bird", "ash", "echo", "oak", "noon", "level", "to", "an", "i", "river")


def _words(r, edges=()):
    return [(list(w),) for w in (*edges, *([r.choice(WORD_LIST) for _ in range(r.randint(1, 7))] for _ in range(8)))]


def _two(r, alphabet, edges=()):
    one, two = strings(r, alphabet, at_most=6), strings(r, alphabet, at_most=6)
    return [*edges, *((s[0], t[0]) for s, t in zip(one, two, strict=True))]


FAMILIES = (
    Family(
        "count_letters", 1, ("strings",), STR,
        choices(group=("aeiou", "xyz", "abc", "qwerty", "aei", "mnop"), word=("in", "not in"), d=range(0, 5)),
        ("Count the letters of s that are <word> the set <group>. Add <d>.", "How many characters of s are <word> '<group>'? Give that number plus <d>."),
        ("Print one integer.", "Output the result."),
        lambda r, p: strings(r, "abcxyzoime", ["a", "z", "aaa", "xyz", "q"]),
        lambda p, s: sum((c in p["group"]) == (p["word"] == "in") for c in s) + p["d"],
        ("res = <d>\nfor c in s:\n    if c <word> '<group>':\n        res += 1\nprint(res)",
         "print(<d> + len([c for c in s if c <word> '<group>']))",
         "good = set('<group>')\nres = 0\nfor i in range(len(s)):\n    if s[i] <word> good:\n        res = res + 1\nprint(res + <d>)"),
        (("range(len(s))", "range(len(s) - 1)"), ("res += 1", "res = 1"), ("res = 0", "res = 1"), ("res + <d>)", "res)"), ("for c in s:", "for c in s[1:]:"), ("for c in s if", "for c in set(s) if"), ("range(len(s))", "range(1, len(s))")),
    ),
    Family(
        "palindrome", 2, ("strings",), STR, choices(drop=(*LETTERS, "none"), d=(1, 2, 3, 4, 5, 6)),
        ("Remove every letter '<drop>' from s. Is the rest a palindrome of at least <d> letters?",
         "Ignore all '<drop>' in s. Does what remains read the same backwards, and has it <d> letters or more?"),
        ("Print YES or NO.", "Output YES or NO."),
        lambda r, p: [*strings(r, "ab", ["a", "ab", "aba", "abba", p["drop"][0], "aa" + p["drop"][0], "abcdcba"], at_most=5), ("a" * p["d"],), ("ba" * (p["d"] - 1) + "b",), ("a" * (p["d"] - 1) or "b",)],
        lambda p, s: (lambda t: yes(t == t[::-1] and len(t) >= p["d"]))(s.replace(p["drop"], "")),
        ("t = s.replace('<drop>', '')\nif t == t[::-1] and len(t) >= <d>:\n    print('YES')\nelse:\n    print('NO')",
         "t = [c for c in s if c != '<drop>']\ni = 0\nj = len(t) - 1\ngood = len(t) >= <d>\nwhile i < j:\n    if t[i] != t[j]:\n        good = False\n    i += 1\n    j -= 1\nprint('YES' if good else 'NO')",
         "t = ''\nfor c in s:\n    if c != '<drop>':\n        t += c\ngood = all(t[i] == t[-1 - i] for i in range(len(t) // 2))\nprint('YES' if good and len(t) > <d> - 1 else 'NO')"),
        ((">= <d>", "> <d>"), ("t[-1 - i]", "t[-i]"), ("and len(t)", "or len(t)"), ("len(t) > <d> - 1", "len(s) > <d> - 1"), ("len(t) - 1", "len(t) - 2"), ("t == t[::-1]", "s == s[::-1]"), ("good = len(t) >= <d>", "good = True"), ("len(t) // 2", "len(t) // 4")),
    ),
    Family(
        "caesar", 2, ("strings",), STR, choices(k=range(1, 26), way=("forward", "backward")),
        ("Shift every letter of s by <k> places <way> in the alphabet (after z comes a).", "Encrypt s: move each letter <k> steps <way> around the alphabet."),
        ("Print the new string.", "Output the result."),
        lambda r, p: strings(r, "abcxyzmn", ["a", "z", "abcxyz"]),
        lambda p, s: "".join(chr((ord(c) - 97 + p["k"] * (1 if p["way"] == "forward" else -1)) % 26 + 97) for c in s),
        ("res = ''\nfor c in s:\n    v = ord(c) - ord('a') <op> <k>\n    res += chr(v % 26 + ord('a'))\nprint(res)",
         "abc = 'abcdefghijklmnopqrstuvwxyz'\nprint(''.join(abc[(abc.index(c) <op> <k>) % 26] for c in s))",
         "abc = 'abcdefghijklmnopqrstuvwxyz'\nk = <k> if '<way>' == 'forward' else 26 - <k>\nshifted = abc[k:] + abc[:k]\nprint(''.join(shifted[abc.index(c)] for c in s))"),
        (("<op> <k>", "<back> <k>"), ("% 26", "% 25"), ("26 - <k>", "25 - <k>"), ("abc[:k]", "abc[:k - 1]"), ("chr(v % 26 + ord('a'))", "chr(v + ord('a'))"), ("<op> <k>", "<op> <k> + 1"), ("k = <k> if", "k = 26 - <k> if")),
    ),
    Family(
        "run_length", 3, ("strings",), STR, choices(form=("letter first", "count first"), ones=("always", "only above 1"), low=(1, 2, 3, 4), sep=("", "-")),
        ("Compress s: each run of equal letters becomes the letter and its length (<form>, the length is written <ones>). Runs shorter than <low> are dropped. Join with '<sep>'.",
         "Write every run of at least <low> equal letters as letter and length, <form>, joined by '<sep>'; lengths are written <ones>."),
        ("Print the result, or EMPTY if nothing is left.", "Output the compressed string (EMPTY when it has no run)."),
        lambda r, p: strings(r, "ab", ["a", "aab", "abb", "aaaa", "aabbbaaaa"], at_least=2),
        lambda p, s: _runs(p, s),
        ("res = []\ni = 0\nwhile i < len(s):\n    j = i\n    while j < len(s) and s[j] == s[i]:\n        j += 1\n    v = str(j - i) if '<ones>' == 'always' or j - i > 1 else ''\n    if j - i >= <low>:\n        res.append(s[i] + v if '<form>' == 'letter first' else v + s[i])\n    i = j\nprint('<sep>'.join(res) or 'EMPTY')",
         "from itertools import groupby\nres = []\nfor c, run in groupby(s):\n    size = len(list(run))\n    if size < <low>:\n        continue\n    v = str(size)\n    if '<ones>' == 'only above 1' and size == 1:\n        v = ''\n    res.append(c + v if '<form>' == 'letter first' else v + c)\nprint('<sep>'.join(res) if res else 'EMPTY')",
         "runs = []\nfor c in s:\n    if runs and runs[-1][0] == c:\n        runs[-1][1] += 1\n    else:\n        runs.append([c, 1])\nres = []\nfor c, v in runs:\n    if v >= <low>:\n        v = '' if '<ones>' == 'only above 1' and v == 1 else str(v)\n        res.append(c + v if '<form>' == 'letter first' else v + c)\nprint('<sep>'.join(res) or 'EMPTY')"),
        (("'letter first'", "'count first'"), (">= <low>", "> <low>"), ("[c, 1]", "[c, 0]"), ("size < <low>", "size <= <low>"), ("str(j - i)", "str(j - i + 1)"), (" or 'EMPTY'", ""), ("i = j\n", "i = j + 1\n"), ("runs[-1][0] == c", "runs[0][0] == c"), (" if res else 'EMPTY'", "")),
    ),
    Family(
        "brackets", 3, ("data structures",), STR, choices(pair=("()", "[]", "<>", "{}"), what=("depth", "missing", "balanced"), d=(0, 1, 2)),
        ("s has brackets <pair> and dots. Give <asked>.", "Read the brackets <pair> of s from left to right (dots are ignored) and find <asked>."),
        ("Print the answer.", "Output the answer on one line."),
        lambda r, p: strings(r, p["pair"] * 2 + ".", [p["pair"], p["pair"][::-1], p["pair"][0] * 3, p["pair"] + p["pair"][1], p["pair"][0] + p["pair"] + p["pair"][1]]),
        lambda p, s: _brackets(p, s),
        ("cur = 0\nbest = 0\nneed = 0\nfor c in s:\n    if c == '<o>':\n        cur += 1\n    elif c == '<c>':\n        if cur == 0:\n            need += 1\n        else:\n            cur -= 1\n    best = max(best, cur)\n<end>",
         "stack = []\nbest = need = 0\nfor c in s:\n    if c == '<o>':\n        stack.append(c)\n        best = max(best, len(stack))\n    if c == '<c>':\n        if stack:\n            stack.pop()\n        else:\n            need += 1\ncur = len(stack)\n<end>",
         "cur = 0\nneed = 0\nbest = 0\nfor i in range(len(s)):\n    cur += (s[i] == '<o>') - (s[i] == '<c>')\n    if cur < 0:\n        cur = 0\n        need += 1\n    if cur > best:\n        best = cur\n<end>"),
        (("need += 1", "need += 0"), ("cur -= 1", "cur = 0"), ("cur < 0", "cur <= 0"), ("stack.pop()", "stack.clear()"), ("best = max(best, cur)", "best = cur"), ("range(len(s))", "range(1, len(s))"), ("cur + need", "abs(cur - need)"), ("cur == 0 and need == 0", "cur == need"), ("best + <d>", "best")),
    ),
    Family(
        "frequent_letter", 2, ("strings",), STR, choices(what=("most", "least"), tie=("smallest", "largest"), show=("letter", "count", "both"), d=(1, 2, 3)),
        ("Which letter occurs <what> often in s (at least <d> times)? Of several take the <tie>. Give the <show>.",
         "Among letters that occur <d> times or more find the one that occurs <what> often; ties go to the alphabetically <tie>. Give the <show>."),
        ("Print it ('both' means letter and count), or -1 if there is none.", "Output the answer; -1 when no letter fits, letter and count for 'both'."),
        lambda r, p: strings(r, "abc", ["a", "ab", "ba", "aabb", "abcabcc"], at_least=2),
        lambda p, s: _frequent(p, s),
        ("best = None\nfor c in sorted(set(s), reverse='<tie>' == 'largest'):\n    v = s.count(c)\n    if v >= <d> and (best is None or v <op> s.count(best)):\n        best = c\nif best is None:\n    print(-1)\nelse:\n    print(<end>)",
         "from collections import Counter\ncount = Counter(s)\nres = sorted(c for c in count if count[c] >= <d>)\nif '<tie>' == 'largest':\n    res.reverse()\nif res:\n    best = {'most': max, 'least': min}['<what>'](res, key=lambda c: count[c])\n    print(<end>)\nelse:\n    print(-1)",
         "total = {}\nfor c in s:\n    total[c] = total.get(c, 0) + 1\nres = [(v, c) for c, v in total.items() if v >= <d>]\nres.sort(key=lambda e: e[1], reverse='<tie>' == 'largest')\nres.sort(key=lambda e: e[0], reverse='<what>' == 'most')\nif not res:\n    print(-1)\nelse:\n    best = res[0][1]\n    print(<end>)"),
        ((">= <d>", "> <d>"), ("reverse='<tie>' == 'largest'", "reverse='<tie>' == 'smallest'"), ("<op> s.count", "<op>= s.count"), (", 0) + 1", ", 1) + 1"), ("res[0][1]", "res[-1][1]"), ("res.reverse()", "res.sort()"), ("print(-1)", "print(0)"), ("lambda c: count[c]", "lambda c: c")),
    ),
    Family(
        "replace_every", 1, ("strings",), STR, choices(k=(2, 3, 4, 5), c=("x", "o", "*", "#"), start=("first", "last")),
        ("Replace every <k>th character by '<c>', counting from the <start> one.", "Counting from the <start> character, change positions <k>, 2*<k>, ... to '<c>'."),
        ("Print the string.", "Output the new string."),
        lambda r, p: strings(r, LETTERS, ["a", "ab", "abc", "abcde" * 2, "abcd"], at_most=14),
        lambda p, s: "".join(p["c"] if ((i + 1) if p["start"] == "first" else len(s) - i) % p["k"] == 0 else v for i, v in enumerate(s)),
        ("b = list(s)\nif '<start>' == 'last':\n    b.reverse()\nfor i in range(<k> - 1, len(b), <k>):\n    b[i] = '<c>'\nif '<start>' == 'last':\n    b.reverse()\nprint(''.join(b))",
         "res = ''\nfor i in range(len(s)):\n    v = i + 1 if '<start>' == 'first' else len(s) - i\n    res += '<c>' if v % <k> == 0 else s[i]\nprint(res)",
         "s = s if '<start>' == 'first' else s[::-1]\nres = ''\ncur = 0\nfor v in s:\n    cur += 1\n    if cur == <k>:\n        res += '<c>'\n        cur = 0\n    else:\n        res += v\nprint(res if '<start>' == 'first' else res[::-1])"),
        (("range(<k> - 1,", "range(<k>,"), ("v = i + 1 if", "v = i if"), ("len(s) - i\n", "len(s) - i - 1\n"), ("cur = 0\nfor", "cur = 1\nfor"), ("<k>):", "<k> - 1):"), ("        cur = 0\n", "        cur = 1\n"), ("range(<k> - 1,", "range(0,"), ("% <k> == 0", "% <k> == 1")),
    ),
    Family(
        "anagram", 2, ("strings",), TWO_STR, choices(d=range(0, 8), what=("letters", "vowels", "consonants", "letters after the first")),
        ("Look only at the <what> of s and t. At most <d> of them may differ in number (summed over all letters). Are they near anagrams?",
         "Count each letter among the <what> of both strings; the differences of the counts add up. Is the sum at most <d>?"),
        ("Print YES or NO.", "Output YES or NO."),
        lambda r, p: _two(r, "aebc", [("a", "a"), ("abc", "cab"), ("aab", "abb"), ("ab", "a" * 8), ("e", "b"), ("aaee", "bbcc"), ("a" + "b" * p["d"], "a"), ("e" * (p["d"] + 1), "b"), ("ab" * p["d"] + "b", "ab")]),
        lambda p, s, t: yes(_letter_gap(p, s, t) <= p["d"]),
        ("def part(v):\n    return <part>\nx = part(s)\ny = part(t)\ntotal = sum(abs(x.count(c) - y.count(c)) for c in set(x + y))\nprint('YES' if total <= <d> else 'NO')",
         "total = {}\nfor v, z in ((s, 1), (t, -1)):\n    for c in <part>:\n        total[c] = total.get(c, 0) + z\nres = 0\nfor v in total.values():\n    res += abs(v)\nprint('NO' if res > <d> else 'YES')",
         "res = 0\nx, y = [<part> for v in (s, t)]\nfor c in 'abcdefghijklmnopqrstuvwxyz':\n    res += abs(x.count(c) - y.count(c))\nif res <= <d>:\n    print('YES')\nelse:\n    print('NO')"),
        (("<= <d>", "< <d>"), ("abs(v)", "v"), ("set(x + y)", "set(x)"), ("res > <d>", "res >= <d>"), ("abs(x.count(c) - y.count(c))", "max(x.count(c) - y.count(c), 0)"), ("(t, -1)", "(t, 1)"), ("set(x + y)", "x + y"), ("for v in (s, t)", "for v in (t, t)")),
    ),
    Family(
        "common_prefix", 2, ("strings",), TWO_STR, choices(side=("prefix", "suffix"), what=("length", "text", "rest of s"), case=("none", "a", "b", "c", "d")),
        ("First remove all letters '<case>' from both strings (none: remove nothing). Find the longest common <side> and give its <what>.",
         "After dropping every '<case>' from s and t (none: drop nothing), give the <what> of the longest common <side>; 'rest of s' is s without it."),
        ("Print it, or a single dot if it is empty.", "Output the answer; a dot stands for an empty string."),
        lambda r, p: [c for c in _two(r, "ab", [("a", "a"), ("ab", "abb"), ("ba", "bba"), ("bad", "dad"), ("abc", "abd"), ("cba", "dba"), ("dd", "d"), ("xabx", "xacx")])],
        lambda p, s, t: _common(p, s, t),
        ("if '<case>' != 'none':\n    s = s.replace('<case>', '')\n    t = t.replace('<case>', '')\nif '<side>' == 'suffix':\n    s = s[::-1]\n    t = t[::-1]\ni = 0\nwhile i < len(s) and i < len(t) and s[i] == t[i]:\n    i += 1\nres = s[:i]\nif '<what>' == 'rest of s':\n    res = s[i:]\nif '<side>' == 'suffix':\n    res = res[::-1]\nprint(i if '<what>' == 'length' else res or '.')",
         "s = ''.join(c for c in s if c != '<case>')\nt = ''.join(c for c in t if c != '<case>')\nbest = 0\nfor i in range(1, min(len(s), len(t)) + 1):\n    if (s[:i] == t[:i] if '<side>' == 'prefix' else s[-i:] == t[-i:]):\n        best = i\nif '<what>' == 'length':\n    print(best)\nelif '<side>' == 'prefix':\n    print((s[:best] if '<what>' == 'text' else s[best:]) or '.')\nelse:\n    cut = len(s) - best\n    print((s[cut:] if '<what>' == 'text' else s[:cut]) or '.')",
         "x = [c for c in s if c != '<case>']\ny = [c for c in t if c != '<case>']\nend = 0 if '<side>' == 'prefix' else -1\nres = []\nwhile x and y and x[end] == y[end]:\n    res.append(x.pop(end))\n    y.pop(end)\nif '<side>' == 'suffix':\n    res.reverse()\nif '<what>' == 'length':\n    print(len(res))\nelse:\n    print(''.join(res if '<what>' == 'text' else x) or '.')"),
        ((" or '.'", ""), ("+ 1):", "):"), ("best = i", "best = i + 1"), ("res.reverse()", "res.sort()"), ("i = 0\n", "i = 1\n"), ("s[:i]\n", "s[:i - 1]\n"), ("end = 0 if", "end = -1 if"), ("t = t.replace", "t = s.replace"), ("y.pop(end)", "y.pop()"), ("len(res))", "len(x))")),
    ),
    Family(
        "word_lengths", 1, ("strings",), WORDS, choices(what=("longest", "shortest"), tie=("first", "last"), d=(0, 1, 2, 3), up=("as it is", "reversed")),
        ("Find the <what> word with more than <d> letters; of several take the <tie>. Write it <up>.", "Among words longer than <d> letters take the <what> (the <tie> one of equals), <up>."),
        ("Print the word, or NONE.", "Output the word; NONE if no word is long enough."),
        lambda r, p: _words(r, [["a"], ["ab", "ba"], ["abc", "de", "fgh"], ["i", "an", "to"], ["level", "river", "oak", "ash"]]),
        lambda p, w: _pick_word(p, w),
        ("b = [v for v in w if len(v) > <d>]\nif '<tie>' == 'last':\n    b.reverse()\nif b:\n    best = {'longest': max, 'shortest': min}['<what>'](b, key=len)\n    print(best<end>)\nelse:\n    print('NONE')",
         "best = ''\nfor v in w:\n    if len(v) > <d> and (best == '' or len(v) <op> len(best)):\n        best = v\nprint(best<end> or 'NONE')",
         "res = 'NONE'\nfound = False\nfor i in range(len(w)):\n    if len(w[i]) <= <d>:\n        continue\n    if not found or len(w[i]) <op> len(res):\n        found = True\n        res = w[i]\nprint(res<end> if found else res)"),
        (("> <d>", ">= <d>"), ("b.reverse()", "b.sort()"), ("<= <d>", "< <d>"), ("<op> len", "<slip> len"), (" or 'NONE'", ""), ("key=len)", "key=str)"), ("best<end>", "best"), ("range(len(w))", "range(len(w) - 1)"), ("not found or ", "")),
    ),
    Family(
        "word_order", 2, ("strings",), WORDS, choices(order=("alphabetically", "by length", "by last letter"), way=("rising", "falling"), low=(1, 2, 3, 4), dup=("keep", "drop")),
        ("Sort the words <order>, <way> (equal ones stay in the order given). Leave out words shorter than <low>; <dup> repeated words.",
         "Order the words with at least <low> letters <order>, <way>, stable; <dup> second and later copies of a word."),
        ("Print the words on one line, or NONE.", "Output the words separated by spaces (NONE if there is none)."),
        lambda r, p: _words(r, [["a"], ["oak", "ash", "oak"], ["tree", "sea", "bird"], ["noon", "an", "i", "to", "moon"]]),
        lambda p, w: _order_words(p, w) or "NONE",
        ("b = []\nfor v in w:\n    if len(v) >= <low> and ('<dup>' == 'keep' or v not in b):\n        b.append(v)\nb.sort(key=lambda v: <key>, reverse='<way>' == 'falling')\nprint(*b) if b else print('NONE')",
         "b = [v for v in w if len(v) >= <low>]\nif '<dup>' == 'drop':\n    b = list(dict.fromkeys(b))\nres = sorted(b, key=lambda v: <key>, reverse='<way>' == 'falling')\nprint(' '.join(res) or 'NONE')",
         "res = []\nfor v in w:\n    if len(v) < <low> or ('<dup>' == 'drop' and v in res):\n        continue\n    i = len(res)\n    while i > 0 and <before>:\n        i -= 1\n    res.insert(i, v)\nprint(' '.join(res) if res else 'NONE')"),
        ((">= <low>", "> <low>"), ("reverse='<way>' == 'falling'", "reverse='<way>' == 'rising'"), ("v not in b", "v in b"), ("list(dict.fromkeys(b))", "list(b)"), ("< <low>", "<= <low>"), (" or 'NONE'", ""), ("key=lambda v: <key>", "key=lambda v: v[0]"), ("while i > 0", "while i > 1"), (" if res else 'NONE'", "")),
    ),
    Family(
        "acronym", 1, ("strings",), WORDS, choices(pos=("first", "last"), low=(1, 2, 3, 4), case=("upper case", "lower case"), join=("-", ".")),
        ("Take the <pos> letter of every word with at least <low> letters, in <case>, joined by '<join>'.", "Build an acronym from the <pos> letters (<case>, '<join>' between them) of words not shorter than <low>."),
        ("Print the acronym, or NONE if no word counts.", "Output the result; NONE when it is empty."),
        lambda r, p: _words(r, [["a"], ["ab", "c"], ["sun", "sea"], ["i", "an", "oak", "tree"]]),
        lambda p, w: getattr(p["join"].join(v[p["at"]] for v in w if len(v) >= p["low"]), p["fn"])() or "NONE",
        ("res = []\nfor v in w:\n    if len(v) >= <low>:\n        res.append(v[<at>].<fn>())\nprint('<join>'.join(res) or 'NONE')",
         "res = '<join>'.join(v[<at>] for v in w if len(v) >= <low>).<fn>()\nprint(res if res else 'NONE')",
         "res = ''\nfor i in range(len(w)):\n    if len(w[i]) < <low>:\n        continue\n    if res:\n        res += '<join>'\n    res += w[i][<at>].<fn>()\nprint(res or 'NONE')"),
        ((">= <low>", "> <low>"), ("< <low>", "<= <low>"), ("[<at>]", "[<off>]"), (" or 'NONE'", ""), (".<fn>()", ""), ("range(len(w))", "range(1, len(w))"), (" if res else 'NONE'", ""), ("'<join>'.join(res)", "' '.join(res)")),
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


def _common(p: dict, s: str, t: str):
    s, t = s.replace(p["case"], ""), t.replace(p["case"], "")
    step = 1 if p["side"] == "prefix" else -1
    s, t = s[::step], t[::step]
    i = 0
    while i < min(len(s), len(t)) and s[i] == t[i]:
        i += 1
    text = s[:i] if p["what"] == "text" else s[i:]
    return i if p["what"] == "length" else text[::step] or "."


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


for _family in FAMILIES:  # parameters that follow from another
    for _p in _family.params:
        if _family.name == "caesar":
            _p["op"], _p["back"] = ("+", "-") if _p["way"] == "forward" else ("-", "+")
        elif _family.name == "brackets":
            _p["o"], _p["c"] = _p["pair"]
            _p["asked"], _p["end"] = {
                "depth": (f"the greatest depth of nesting plus {_p['d']}", "print(best + <d>)"),
                "missing": (f"how many brackets have no partner, plus {_p['d']}", "print(cur + need + <d>)"),
                "balanced": (
                    f"whether all brackets have partners and the depth is at least {_p['d']} (YES or NO)",
                    "print('YES' if cur == 0 and need == 0 and best >= <d> else 'NO')",
                ),
            }[_p["what"]]
            _p["end"] = _p["end"].replace("<d>", str(_p["d"]))
        elif _family.name == "frequent_letter":
            _p["op"] = ">" if _p["what"] == "most" else "<"
            _p["end"] = {"letter": "best", "count": "s.count(best)", "both": "best, s.count(best)"}[_p["show"]]
        elif _family.name == "anagram":
            _p["part"] = {
                "letters": "v",
                "vowels": "[c for c in v if c in 'aeiou']",
                "consonants": "[c for c in v if c not in 'aeiou']",
                "letters after the first": "v[1:]",
            }[_p["what"]]
        elif _family.name == "word_lengths":
            _sign = ">" if _p["what"] == "longest" else "<"
            _p["op"], _p["slip"] = (_sign, _sign + "=") if _p["tie"] == "first" else (_sign + "=", _sign)
            _p["end"] = "[::-1]" if _p["up"] == "reversed" else ""
        elif _family.name == "word_order":
            _p["key"] = {"alphabetically": "v", "by length": "len(v)", "by last letter": "v[-1]"}[_p["order"]]
            _other = {"alphabetically": "res[i - 1]", "by length": "len(res[i - 1])", "by last letter": "res[i - 1][-1]"}
            _p["before"] = f"{_other[_p['order']]} {'>' if _p['way'] == 'rising' else '<'} {_p['key']}"
        elif _family.name == "acronym":
            _p["at"], _p["off"] = (0, -1) if _p["pos"] == "first" else (-1, 0)
            _p["fn"] = "upper" if _p["case"] == "upper case" else "lower"
