"""Families of problems on one or two integers."""

import math

from wmtp_jax.data.mini.generator import Family
from wmtp_jax.data.mini.kinds import INT, TWO, choices, numbers, pairs, yes

FAMILIES = (
    Family(
        "digit_sum", 1, ("math",), INT, choices(base=(2, 3, 4, 5, 6, 7, 8, 9, 10), word=("sum", "largest", "number", "product of nonzero")),
        ("Write n in base <base>. Find the <word> of its digits.", "Look at the digits of n in base <base> and find their <word>."),
        ("Print the result in the ordinary decimal form.", "Output one decimal integer."),
        lambda r, p: numbers(r, 1, 3000, [1, p["base"], p["base"] ** 3 - 1, 10 * p["base"]]),
        lambda p, n: _digits(p, n),
        ("res = []\nwhile n > 0:\n    res.append(n % <base>)\n    n //= <base>\nif '<word>' == 'product of nonzero':\n    total = 1\n    for v in res:\n        if v > 0:\n            total *= v\n    print(total)\nelse:\n    print({'sum': sum, 'largest': max, 'number': len}['<word>'](res))",
         "total = 1 if '<word>' == 'product of nonzero' else 0\nwhile n:\n    n, v = divmod(n, <base>)\n    if '<word>' == 'sum':\n        total += v\n    if '<word>' == 'number':\n        total += 1\n    if '<word>' == 'largest':\n        total = max(total, v)\n    if '<word>' == 'product of nonzero' and v:\n        total *= v\nprint(total)",
         "def digits(v):\n    return [] if v == 0 else digits(v // <base>) + [v % <base>]\nres = digits(n)\nif '<word>' == 'product of nonzero':\n    total = 1\n    for v in res:\n        total *= v or 1\n    print(total)\nelse:\n    print({'sum': sum, 'largest': max, 'number': len}['<word>'](res))"),
        (("while n > 0:", "while n > <base>:"), ("divmod(n, <base>)", "divmod(n, <base> + 1)"), ("v == 0 else", "v < <base> else"), ("while n:", "while n > 1:"),
         ("total = 1\n    for", "total = 0\n    for"), ("res.append(n % <base>)", "res.append(n // <base>)"), ("'sum': sum", "'sum': max"), ("max(total, v)", "min(total, v)"), ("total += 1", "total += v"), ("'number': len", "'number': sum")),
    ),
    Family(
        "count_divisors", 2, ("number theory",), INT, choices(word=("even", "odd", "all"), b=range(1, 12)),
        ("Count the divisors of n that are at least <b> (<word> ones).", "How many divisors of n are not below <b>? Count <word> divisors."),
        ("Print the count.", "Output one integer."),
        lambda r, p: numbers(r, 1, 120, [1, 2, 12, 36, p["b"]]),
        lambda p, n: len([d for d in range(p["b"], n + 1) if n % d == 0 and (p["word"] == "all" or (d % 2 == 0) == (p["word"] == "even"))]),
        ("res = 0\nfor i in range(<b>, n + 1):\n    if n % i == 0 and ('<word>' == 'all' or i % 2 == <bit>):\n        res += 1\nprint(res)",
         "res = [i for i in range(1, n + 1) if n % i == 0 and i >= <b>]\nif '<word>' != 'all':\n    res = [v for v in res if v % 2 == <bit>]\nprint(len(res))",
         "res = set()\ni = 1\nwhile i * i <= n:\n    if n % i == 0:\n        res.add(i)\n        res.add(n // i)\n    i += 1\nprint(len([v for v in res if v >= <b> and ('<word>' == 'all' or v % 2 == <bit>)]))"),
        (("n + 1", "n"), ("i * i <= n", "i * i < n"), (">= <b>", "> <b>"), ("range(<b>, n + 1)", "range(<b> + 1, n + 1)"), ("res.add(n // i)", "res.add(i + 1)"), ("% 2 == <bit>", "% 2 != <bit>"), ("        res.add(n // i)\n", "")),
    ),
    Family(
        "gcd_lcm", 2, ("number theory",), TWO, choices(what=("greatest common divisor", "least common multiple"), d=range(0, 16)),
        ("Find the <what> of x and y. Add <d> to it.", "Compute the <what> of the two numbers plus <d>."),
        ("Print the result.", "Output one integer."),
        lambda r, p: pairs(r, 1, 60, [(1, 1), (7, 7), (6, 4), (4, 6)]),
        lambda p, x, y: (math.gcd(x, y) if p["what"] == "greatest common divisor" else x * y // math.gcd(x, y)) + p["d"],
        ("import math\nres = math.gcd(x, y)\nif '<what>' == 'least common multiple':\n    res = x * y // res\nprint(res + <d>)",
         "def gcd(u, z):\n    while z:\n        u, z = z, u % z\n    return u\nprint((gcd(x, y) if '<what>' == 'greatest common divisor' else x // gcd(x, y) * y) + <d>)",
         "if '<what>' == 'greatest common divisor':\n    i = min(x, y)\n    while x % i or y % i:\n        i -= 1\nelse:\n    i = max(x, y)\n    while i % x or i % y:\n        i += 1\nprint(i + <d>)"),
        (("x * y // res", "x * y"), ("x % i or y % i", "x % i and y % i"), ("i % x or i % y", "i % x and i % y"), ("return u", "return z"), ("i = max(x, y)", "i = x * y"), ("i = min(x, y)", "i = x"), ("res + <d>", "res"), ("x // gcd(x, y) * y", "x * y")),
    ),
    Family(
        "primes_between", 3, ("number theory",), TWO, choices(what=("count", "sum", "largest"), d=range(2, 13)),
        ("Consider the primes p with x <= p <= y and p not less than <d>. Give their <what>.",
         "Among the prime numbers from x to y (both ends count) that are at least <d>, find the <what>."),
        ("Print it, or 0 if there is no such prime.", "Output one integer (0 without any prime)."),
        lambda r, p: [(min(c), max(c)) for c in pairs(r, 0, 60, [(0, 3), (2, 2), (4, 4), (1, 13), (9, 25)])],
        lambda p, x, y: _primes(p, x, y),
        ("def prime(v):\n    if v < 2:\n        return False\n    for i in range(2, v):\n        if v % i == 0:\n            return False\n    return True\nres = [v for v in range(x, y + 1) if prime(v) and v >= <d>]\nprint(<end>)",
         "res = []\nfor v in range(max(x, <d>), y + 1):\n    i = 2\n    while i * i <= v and v % i:\n        i += 1\n    if i * i > v:\n        res.append(v)\nprint(<end>)",
         "res = []\nfor v in range(x, y + 1):\n    if v >= <d> and len([i for i in range(1, v + 1) if v % i == 0]) == 2:\n        res.append(v)\nprint(<end>)"),
        (("y + 1)", "y)"), ("i * i <= v", "i * i < v"), ("range(1, v + 1)", "range(1, v)"), (">= <d>", "> <d>"), ("v < 2", "v < 0"), ("max(x, <d>)", "max(x, <d> + 1)"), ("range(x, y + 1)", "range(x + 1, y + 1)"), ("i = 2\n", "i = 3\n")),
    ),
    Family(
        "sum_of_multiples", 1, ("math",), INT, choices(u=(2, 3, 4, 5, 6, 7), z=(5, 7, 8, 9, 11), word=("or", "and")),
        ("Add up all numbers from 1 to n that are multiples of <u> <word> <z>.", "Find the sum of the multiples of <u> <word> <z> not above n."),
        ("Print the sum.", "Output one integer."),
        lambda r, p: numbers(r, 1, 150, [1, p["u"], p["z"], p["u"] * p["z"]]),
        lambda p, n: sum(v for v in range(1, n + 1) if ((v % p["u"] == 0) + (v % p["z"] == 0)) >= (1 if p["word"] == "or" else 2)),
        ("total = 0\nfor i in range(1, n + 1):\n    if i % <u> == 0 <word> i % <z> == 0:\n        total += i\nprint(total)",
         "print(sum(i for i in range(n + 1) if not i % <u> <word> not i % <z>))",
         "total = 0\ni = 1\nwhile i <= n:\n    if i % <u> == 0 <word> i % <z> == 0:\n        total = total + i\n    i += 1\nprint(total)"),
        (("n + 1", "n"), ("i <= n", "i < n"), (" <word> ", " <wrong> "), ("total += i", "total += 1"), ("i % <z>", "i % (<z> + 1)"), ("total = 0", "total = 1")),
    ),
    Family(
        "leap_years", 3, ("implementation",), TWO, choices(every=(3, 4, 5, 6, 7, 8), skip=(20, 30, 50, 100), more=("count", "last")),
        ("On planet Zed a year is long if it is divisible by <every> but not by <skip>. Give the <more> of the long years from x to y.",
         "A year divisible by <every>, except those divisible by <skip>, has one more day. For years x to y (both included) find the <more> of such years."),
        ("Print the number, or 0 if there is no such year.", "Output one integer, 0 when there is none."),
        lambda r, p: [(min(c), max(c)) for c in pairs(r, 1, 220, [(p["every"], p["every"]), (1, 2), (p["skip"] * p["every"],) * 2, (1, p["every"])])],
        lambda p, x, y: (lambda b: len(b) if p["more"] == "count" else b[-1] if b else 0)([v for v in range(x, y + 1) if v % p["every"] == 0 and v % p["skip"]]),
        ("res = 0\nfor v in range(x, y + 1):\n    if v % <every> == 0 and v % <skip> != 0:\n        res = res + 1 if '<more>' == 'count' else v\nprint(res)",
         "b = [v for v in range(x, y + 1) if v % <every> == 0 and v % <skip>]\nif '<more>' == 'count':\n    print(len(b))\nelse:\n    print(b[-1] if b else 0)",
         "res = 0\nv = x\nwhile v <= y:\n    if v % <every> == 0:\n        if v % <skip> != 0:\n            if '<more>' == 'count':\n                res += 1\n            else:\n                res = v\n    v += 1\nprint(res)"),
        (("y + 1", "y"), ("v <= y", "v < y"), ("and v % <skip>", "or v % <skip>"), ("b[-1]", "b[0]"), ("% <skip> != 0", "% <skip> == 0"), ("range(x, y + 1)", "range(x + 1, y + 1)"), ("v = x\n", "v = x + 1\n")),
    ),
    Family(
        "fizz_count", 2, ("implementation",), INT, choices(u=(2, 3, 4), z=(5, 6, 7, 9), w1=("Fizz", "Tick", "Ping"), ),
        ("Count from 1 to n, but say <w1> for multiples of <u>, Buzz for multiples of <z>, and both joined for both.",
         "For each i from 1 to n write <w1> if <u> divides i, Buzz if <z> divides i (<w1>Buzz if both do), otherwise i."),
        ("Print everything on one line, separated by spaces.", "Output the n items on one line."),
        lambda r, p: numbers(r, 1, 24, [1, p["u"], p["z"], p["u"] * p["z"]]),
        lambda p, n: [(p["w1"] * (i % p["u"] == 0) + "Buzz" * (i % p["z"] == 0)) or i for i in range(1, n + 1)],
        ("res = []\nfor i in range(1, n + 1):\n    if i % <u> == 0 and i % <z> == 0:\n        res.append('<w1>Buzz')\n    elif i % <u> == 0:\n        res.append('<w1>')\n    elif i % <z> == 0:\n        res.append('Buzz')\n    else:\n        res.append(str(i))\nprint(' '.join(res))",
         "res = []\nfor i in range(1, n + 1):\n    c = ''\n    if i % <u> == 0:\n        c += '<w1>'\n    if i % <z> == 0:\n        c += 'Buzz'\n    res.append(c or str(i))\nprint(*res)",
         "print(*[('<w1>' * (i % <u> == 0) + 'Buzz' * (i % <z> == 0)) or i for i in range(1, n + 1)])"),
        (("n + 1", "n"), ("range(1, n + 1)", "range(n + 1)"), ("== 0 and i", "== 0 or i"), ("c += 'Buzz'", "c = 'Buzz'"), ("'<w1>Buzz'", "'Buzz<w1>'"), ("i % <z> == 0", "i % <z> == 1"), ("c or str(i)", "c")),
    ),
    Family(
        "collatz", 2, ("simulation",), INT, choices(mul=(3, 5, 7), add=(1, 3, 5), cap=(20, 30, 40, 50), ),
        ("While n is above 1: if n is even halve it, otherwise replace it by <mul> * n + <add>. At most <cap> steps are made. How many are made?",
         "A number is halved when even and becomes <mul> * n + <add> when odd; stop at 1 or after <cap> steps. Count the steps."),
        ("Print the number of steps.", "Output the count."),
        lambda r, p: numbers(r, 1, 80, [1, 2, 3, 5, 64]),
        lambda p, n: _collatz(p, n),
        ("res = 0\nwhile n > 1 and res < <cap>:\n    if n % 2 == 0:\n        n //= 2\n    else:\n        n = <mul> * n + <add>\n    res += 1\nprint(res)",
         "res = 0\nfor i in range(<cap>):\n    if n <= 1:\n        break\n    n = n // 2 if n % 2 == 0 else <mul> * n + <add>\n    res += 1\nprint(res)",
         "def steps(v, done):\n    if v <= 1 or done == <cap>:\n        return done\n    if v % 2:\n        return steps(<mul> * v + <add>, done + 1)\n    return steps(v // 2, done + 1)\nprint(steps(n, 0))"),
        (("% 2 == 0", "% 2 == 1"), ("res = 0", "res = 1"), ("n > 1 and", "n > 2 and"), ("res < <cap>", "res <= <cap>"), ("n <= 1", "n < 1"), ("steps(n, 0)", "steps(n, 1)"), ("<mul> * n + <add>", "<mul> * n"), ("range(<cap>)", "range(<cap> + 1)"), ("if v % 2:", "if v % 2 == 0:")),
    ),
    Family(
        "stairs", 4, ("dp",), INT, choices(big=(2, 3, 4), bad=(3, 4, 5, 6, 7, 8), m=(97, 100)),
        ("You climb n stairs, taking 1 to <big> at once, and must never stand on stair <bad> (unless it is the last). In how many ways, modulo <m>?",
         "Steps of 1 up to <big> stairs are allowed; stair <bad> is broken, only as the final stair n it may be used. Count the ways to reach n modulo <m>."),
        ("Print the count modulo <m>.", "Output the remainder."),
        lambda r, p: numbers(r, 1, 20, [1, 2, 3, p["bad"], p["bad"] + 1]),
        lambda p, n: _stairs(p, n),
        ("ways = [0] * (n + 1)\nways[0] = 1\nfor i in range(1, n + 1):\n    if i != <bad> or i == n:\n        for j in range(1, <big> + 1):\n            if i - j >= 0:\n                ways[i] += ways[i - j]\nprint(ways[n] % <m>)",
         "memo = {0: 1}\ndef count(v):\n    if v < 0 or (v == <bad> and v != n):\n        return 0\n    if v not in memo:\n        memo[v] = sum(count(v - j) for j in range(1, <big> + 1))\n    return memo[v]\nprint(count(n) % <m>)",
         "ways = [1]\nfor i in range(1, n + 1):\n    v = sum(ways[-<big>:])\n    if i == <bad> and i < n:\n        v = 0\n    ways.append(v % <m>)\nprint(ways[n])"),
        (("i - j >= 0", "i - j > 0"), ("<big> + 1", "<big>"), ("ways[-<big>:]", "ways[-<big> - 1:]"), (" or i == n", ""), (" and v != n", ""), ("ways[0] = 1", "ways[0] = 0"), (" and i < n", ""), ("% <m>)", ")"), ("v % <m>)\nprint(ways[n])", "v)\nprint(ways[n])")),
    ),
    Family(
        "coin_change", 4, ("greedy", "dp"), INT, choices(u=(2, 3, 4), z=(5, 7, 9), what=("fewest coins", "number of ways"), m=(50, 100)),
        ("Coins of value 1, <u> and <z> are at hand, as many as needed. For the amount n find the <what>, modulo <m>.",
         "Pay exactly n with coins of 1, <u> and <z>. What is the <what> (modulo <m>; the order of coins does not matter)?"),
        ("Print one integer.", "Output the answer modulo <m>."),
        lambda r, p: numbers(r, 1, 40, [1, p["u"] * 2, p["z"] + p["u"], p["z"] * 2 - 1]),
        lambda p, n: _coins(p, n),
        ("if '<what>' == 'fewest coins':\n    best = [0]\n    for i in range(1, n + 1):\n        best.append(1 + min(best[i - v] for v in (1, <u>, <z>) if i >= v))\n    print(best[n] % <m>)\nelse:\n    ways = [1] + [0] * n\n    for v in (1, <u>, <z>):\n        for i in range(v, n + 1):\n            ways[i] += ways[i - v]\n    print(ways[n] % <m>)",
         "res = []\nfor i in range(n // <z> + 1):\n    for j in range((n - <z> * i) // <u> + 1):\n        res.append(i + j + n - <z> * i - <u> * j)\nprint((min(res) if '<what>' == 'fewest coins' else len(res)) % <m>)",
         "best = n\ntotal = 0\ni = 0\nwhile i <= n:\n    for j in range(0, n - i + 1, <u>):\n        total += 1\n        best = min(best, i // <z> + j // <u> + n - i - j)\n    i += <z>\nprint((best if '<what>' == 'fewest coins' else total) % <m>)"),
        (("i >= v", "i > v"), ("// <z> + 1", "// <z>"), ("while i <= n", "while i < n"), ("range(v, n + 1)", "range(v + 1, n + 1)"), ("// <u> + 1", "// <u>"), ("n - i + 1, <u>", "n - i, <u>"), ("[1] + [0]", "[0] + [0]"), ("best = [0]", "best = [1]"), ("min(res)", "res[-1]"), ("total = 0", "total = 1")),
    ),
    Family(
        "binary_ones", 2, ("bitmasks",), INT, choices(word=("ones", "zeros"), d=range(0, 16)),
        ("Write n + <d> in binary without leading zeros. Count the <word>.", "How many <word> are in the binary form of n + <d>?"),
        ("Print the count.", "Output one integer."),
        lambda r, p: numbers(r, 1, 500, [1, 2, 7, 8, 255]),
        lambda p, n: bin(n + p["d"])[2:].count("1" if p["word"] == "ones" else "0"),
        ("print(bin(n + <d>)[2:].count('1' if '<word>' == 'ones' else '0'))",
         "n += <d>\nres = 0\nwhile n > 0:\n    if n % 2 == <bit>:\n        res += 1\n    n //= 2\nprint(res)",
         "s = ''\nn = n + <d>\nwhile n:\n    s += str(n % 2)\n    n = n // 2\nprint(len([c for c in s if c == '<bit>']))"),
        (("[2:]", "[1:]"), ("n + <d>", "n"), ("while n > 0", "while n > 1"), ("res = 0", "res = 1"), ("% 2 == <bit>", "% 2 != <bit>"), ("while n:", "while n > 2:"), ("[2:]", "[3:]"), ("n += <d>\n", "")),
    ),
    Family(
        "clock", 3, ("math",), TWO, choices(h=(10, 12, 16, 20, 24), m=(40, 50, 60, 80, 100), what=("hours", "minutes")),
        ("A day has <h> hours of <m> minutes. It is x minutes after midnight; y minutes pass. Which <what> does the clock show?",
         "The clock runs over <h> hours of <m> minutes each and starts again. Started x minutes after midnight, after y more minutes read off the <what>."),
        ("Print that number.", "Output one integer."),
        lambda r, p: pairs(r, 0, p["h"] * p["m"], [(0, 0), (p["m"] - 1, 1), (p["h"] * p["m"] - 1, 1), (p["m"], p["h"] * p["m"])]),
        lambda p, x, y: (x + y) % (p["h"] * p["m"]) // p["m"] if p["what"] == "hours" else (x + y) % p["m"],
        ("total = (x + y) % (<h> * <m>)\nif '<what>' == 'hours':\n    print(total // <m>)\nelse:\n    print(total % <m>)",
         "cur = x + y\nwhile cur >= <h> * <m>:\n    cur -= <h> * <m>\nprint(cur // <m> if '<what>' == 'hours' else cur - cur // <m> * <m>)",
         "i, j = divmod(x + y, <m>)\nprint(i % <h> if '<what>' == 'hours' else j)"),
        (("% (<h> * <m>)", "% (<h> * <m> + 1)"), (">= <h> * <m>", "> <h> * <m>"), ("x + y", "x"), ("print(total // <m>)", "print(total % <m>)"), ("print(total % <m>)", "print(total // <m>)"), ("i % <h>", "i"), ("cur // <m> if", "cur % <m> if"), ("divmod(x + y, <m>)", "divmod(x + y, <h>)")),
    ),
    Family(
        "power_mod", 3, ("math",), TWO, choices(m=range(7, 37)),
        ("Find x to the power y, modulo <m>.", "Multiply y copies of x together and take the remainder modulo <m> (no copies give 1)."),
        ("Print the remainder.", "Output one integer."),
        lambda r, p: pairs(r, 0, 12, [(0, 0), (5, 0), (0, 4), (p["m"], 2), (1, 9)]),
        lambda p, x, y: pow(x, y, p["m"]),
        ("res = 1\nfor _ in range(y):\n    res = res * x % <m>\nprint(res % <m>)",
         "print(pow(x, y, <m>))",
         "res = 1\nwhile y > 0:\n    if y % 2 == 1:\n        res = res * x % <m>\n    x = x * x % <m>\n    y //= 2\nprint(res)"),
        (("res = 1", "res = x"), ("range(y)", "range(y - 1)"), ("pow(x, y, <m>)", "pow(y, x, <m>)"), ("y % 2 == 1", "y % 2 == 0"), ("x = x * x % <m>", "x = x * 2 % <m>"), ("pow(x, y, <m>)", "x * y % <m>"), ("y > 0", "y > 1"), ("res = 1", "res = 0")),
    ),
    Family(
        "triangle_type", 2, ("geometry",), TWO, choices(z=range(3, 20), word=("triangle", "right triangle")),
        ("Can sticks of length x, y and <z> form a <word>?", "Three sticks have lengths x, y and <z>. Do they make a proper <word>?"),
        ("Print YES or NO.", "Output YES or NO."),
        lambda r, p: pairs(r, 1, 24, [(1, 1), (1, p["z"] - 1), (p["z"], p["z"]), (3, 4), (p["z"] + 1, 1), (5, 12), (6, 8)]),
        lambda p, x, y: (lambda b: yes(b[0] + b[1] > b[2] if p["word"] == "triangle" else b[0] ** 2 + b[1] ** 2 == b[2] ** 2))(sorted((x, y, p["z"]))),
        ("b = sorted([x, y, <z>])\nif '<word>' == 'triangle':\n    res = b[0] + b[1] > b[2]\nelse:\n    res = b[0] ** 2 + b[1] ** 2 == b[2] ** 2\nprint('YES' if res else 'NO')",
         "z = <z>\nif '<word>' == 'triangle':\n    good = x + y > z and y + z > x and x + z > y\nelse:\n    good = x * x + y * y == z * z or y * y + z * z == x * x or x * x + z * z == y * y\nif good:\n    print('YES')\nelse:\n    print('NO')",
         "best = max(x, y, <z>)\nif '<word>' == 'triangle':\n    good = 2 * best < x + y + <z>\nelse:\n    good = 2 * best ** 2 == x ** 2 + y ** 2 + <z> ** 2\nprint('YES' if good else 'NO')"),
        (("> b[2]", ">= b[2]"), (" and x + z > y", ""), ("2 * best <", "2 * best <="), ("sorted([x, y, <z>])", "[x, y, <z>]"), (" or x * x + z * z == y * y", ""), ("max(x, y, <z>)", "max(x, y)"), (" or y * y + z * z == x * x", ""), ("2 * best ** 2", "best ** 2"), ("y + z > x", "y + z >= x")),
    ),
)


def _digits(p: dict, n: int) -> int:
    digits = []
    while n:
        digits.append(n % p["base"])
        n //= p["base"]
    if p["word"] == "product of nonzero":
        return math.prod(d for d in digits if d)
    return {"sum": sum, "largest": max, "number": len}[p["word"]](digits)


def _primes(p: dict, x: int, y: int) -> int:
    primes = [v for v in range(max(x, 2), y + 1) if all(v % d for d in range(2, v)) and v >= p["d"]]
    return {"count": len(primes), "sum": sum(primes), "largest": max(primes, default=0)}[p["what"]]


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
        i + j + n - p["z"] * i - p["u"] * j for i in range(n // p["z"] + 1) for j in range((n - p["z"] * i) // p["u"] + 1)
    ]
    return (min(counts) if p["what"] == "fewest coins" else len(counts)) % p["m"]


for _family in FAMILIES:  # parameters that follow from another
    for _p in _family.params:
        if _family.name == "count_divisors":
            _p["bit"] = 1 if _p["word"] == "odd" else 0
        elif _family.name == "binary_ones":
            _p["bit"] = 1 if _p["word"] == "ones" else 0
        elif _family.name == "sum_of_multiples":
            _p["wrong"] = "and" if _p["word"] == "or" else "or"
        elif _family.name == "primes_between":
            _p["end"] = {"count": "len(res)", "sum": "sum(res)", "largest": "max(res) if res else 0"}[_p["what"]]
