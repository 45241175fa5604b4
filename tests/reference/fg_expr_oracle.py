"""A slow expression language: what compiled expressions are checked against.

Written from section 7 of the specification; shares no code with the product. Texts
are read with two stacks, as muParser does it, into trees: a number, a variable's
name, or a tuple of an operator or function name and its operands. Functions of the
C library are called as they are.
"""

import ctypes
import math
import re

import numpy as np

LIBM = ctypes.CDLL("libm.so.6")
PRIORITY = {
    **{"?": 0, ":": 0, "||": 1, "&&": 2, "|": 3, "&": 4},
    **dict.fromkeys(("<=", ">=", "!=", "==", ">", "<"), 5),
    **{"+": 6, "-": 6, "*": 7, "/": 7, "sign+": 7, "sign-": 7, "^": 8},
}
VECTOR = {
    *("len", "l2_norm", "squared_norm", "dot", "euclid_dist", "corr", "std_dev"),
    *("pop_std_dev", "variance", "pop_variance", "reduce_min", "reduce_max"),
    *("reduce_sum", "reduce_mean", "reduce_prod"),
}
LEXEME = re.compile(
    r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
    r"|([A-Za-z_]\w*)|(&&|\|\||[<>=!]=|\S))",
    re.ASCII,
)


def libm(name, *arguments):
    function = getattr(LIBM, name)
    function.restype = ctypes.c_double
    function.argtypes = [ctypes.c_double] * len(arguments)
    return np.float64(function(*arguments))


# ------------------------------------------------------------------- reading


def parse(text):
    """The tree of a well-formed text."""
    values, pending = [], []
    want_value = True
    at = 0
    while text[at:].strip():
        found = LEXEME.match(text, at)
        number, name, sign = found.groups()
        at = found.end()
        if number:
            values.append(float(number))
            want_value = False
        elif name and text[at:].lstrip().startswith("("):
            pending.append(("call", name, len(values)))
            want_value = True
        elif name:
            values.append({"_pi": math.pi, "_e": math.e}.get(name, name))
            want_value = False
        elif sign == "(":
            pending.append("(")
            want_value = True
        elif sign in ",)":
            unwind(values, pending, 0)
            want_value = sign == ","
            if sign == ")":
                pending.pop()
                if pending and pending[-1][0] == "call":
                    _, function, first = pending.pop()
                    values[first:] = [(function, *values[first:])]
        elif want_value:
            pending.append("sign" + sign)
        elif sign == ":":
            unwind(values, pending, 0, until="?")
            pending[-1] = ":"
            want_value = True
        else:
            priority = PRIORITY[sign]
            unwind(values, pending, priority + (sign in "^?"))
            pending.append(sign)
            want_value = True
    unwind(values, pending, 0)
    (tree,) = values
    return tree


def unwind(values, pending, priority, until=None):
    """Applies pending operators that bind at least as tightly as ``priority``."""
    while pending and pending[-1] != "(" and pending[-1] != until:
        top = pending[-1]
        if PRIORITY[top] < priority or (top == "?" and until is None):
            return
        pending.pop()
        count = {":": 3, "sign-": 1, "sign+": 1}.get(top, 2)
        operands = values[-count:]
        del values[-count:]
        values.append(("?:" if top == ":" else top, *operands))


# ---------------------------------------------------------------- evaluating


def names_of(tree):
    """Variables outside the arguments of vector functions."""
    if isinstance(tree, str):
        return {tree}
    if not isinstance(tree, tuple) or tree[0] in VECTOR:
        return set()
    return set().union(*(names_of(one) for one in tree[1:]))


def evaluate(tree, row, fill=math.nan):
    """The list of numbers of one row; ``row``: name to a list of numbers."""
    wide = {name: row[name] for name in names_of(tree)}
    count = max((len(v) for v in wide.values()), default=1)
    for name, numbers in wide.items():
        if len(numbers) == 1:
            wide[name] = numbers * count
        else:
            wide[name] = numbers + [fill] * (count - len(numbers))
    with np.errstate(all="ignore"):
        return [element(tree, wide, i, row, fill) for i in range(count)]


def element(tree, wide, i, row, fill):
    if isinstance(tree, float):
        return tree
    if isinstance(tree, str):
        return float(wide[tree][i])
    name = tree[0]
    if name in VECTOR:
        return vector(name, tree[1:], row, fill)
    if name == "^" and isinstance(tree[1], str) and tree[2] in (2.0, 3.0, 4.0):
        return float(np.prod([float(wide[tree[1]][i])] * int(tree[2])))
    operands = [element(one, wide, i, row, fill) for one in tree[1:]]
    if name == "?:":
        return operands[1] if operands[0] != 0 else operands[2]
    return float(apply(name, [np.float64(x) for x in operands]))


def vector(name, arguments, row, fill):
    together = ("sum", *arguments)
    wide = {n: row[n] for n in names_of(together)}
    longest = max(wide, key=lambda n: len(wide[n]), default=None)
    count = len(wide[longest]) if longest else 1
    sides = []
    for argument in arguments:
        padded = {
            n: v * count if len(v) == 1 else v + [fill] * (count - len(v))
            for n, v in wide.items()
        }
        sides.append([element(argument, padded, i, row, fill) for i in range(count)])
    return float(reduced(name, [np.array(side) for side in sides], count))


def added(numbers):
    total = np.float64(0)
    for number in numbers:
        total = total + number
    return total


def reduced(name, sides, n):
    a, b = sides[0], sides[-1]
    n = np.float64(n)
    if name == "len":
        return n
    if name in ("reduce_min", "reduce_max"):
        found = a[0]
        for x in a[1:]:
            if (x < found) if name == "reduce_min" else (found < x):
                found = x
        return found
    if name == "reduce_prod":
        found = a[0]
        for x in a[1:]:
            found = found * x
        return found
    if name == "reduce_sum":
        return added(a)
    if name == "reduce_mean":
        return added(a) / n
    if name in ("squared_norm", "l2_norm", "dot"):
        total = added(a * b)
        return np.sqrt(total) if name == "l2_norm" else total
    if name == "euclid_dist":
        return np.sqrt(added((a - b) * (a - b)))
    off_a, off_b = a - added(a) / n, b - added(b) / n
    if name == "corr":
        return added(off_a * off_b) / np.sqrt(added(off_a**2) * added(off_b**2))
    spread = added(off_a * off_a) / (n - 1 if name.startswith("pop_") else n)
    return np.sqrt(spread) if name.endswith("std_dev") else spread


def whole(x):
    return int(x) if -(2.0**63) <= x < 2.0**63 else -(2**63)


def apply(name, v):
    a, b = v[0], v[-1]
    one = np.float64(1)
    plain = {
        "sign-": lambda: -a,
        "sign+": lambda: a,
        "+": lambda: a + b,
        "-": lambda: a - b,
        "*": lambda: a * b,
        "/": lambda: a / b,
        "^": lambda: libm("pow", a, b),
        "<": lambda: a < b,
        "<=": lambda: a <= b,
        ">": lambda: a > b,
        ">=": lambda: a >= b,
        "==": lambda: a == b,
        "!=": lambda: a != b,
        "&&": lambda: a != 0 and b != 0,
        "||": lambda: a != 0 or b != 0,
        "&": lambda: whole(a) & whole(b),
        "|": lambda: whole(a) | whole(b),
        "abs": lambda: a if a >= 0 else -a,
        "sign": lambda: -1 if a < 0 else 1 if a > 0 else 0,
        "rint": lambda: np.floor(a + 0.5),
        "mod": lambda: libm("fmod", a, b),
        "roundp": lambda: libm("round", a * libm("pow", 10, b)) / libm("pow", 10, b),
        "sigmoid": lambda: one / (one + libm("exp", -a)),
        "isnan": lambda: a != a,
        "cot": lambda: one / libm("tan", a),
        "coth": lambda: one / libm("tanh", a),
        "ln": lambda: libm("log", a),
        "log2": lambda: libm("log", a) / np.float64(libm("log", 2)),
        "asinh": lambda: libm("log", a + np.sqrt(a * a + 1)),
        "acosh": lambda: libm("log", a + np.sqrt(a * a - 1)),
        "atanh": lambda: 0.5 * libm("log", (1 + a) / (1 - a)),
        "sum": lambda: added(v),
        "avg": lambda: added(v) / np.float64(len(v)),
    }
    if name in plain:
        return plain[name]()
    if name in ("min", "max"):
        found = a
        for x in v[1:]:
            if (x < found) if name == "min" else (found < x):
                found = x
        return found
    if name in ("haversine", "sphere_dist"):
        return kilometres(*v)
    return libm(name, *v)


def kilometres(lng1, lat1, lng2, lat2):
    radian = np.float64(math.pi) / 180
    across = libm("sin", (lng2 - lng1) * radian / 2)
    up = libm("sin", (lat2 - lat1) * radian / 2)
    flat = np.float64(libm("cos", lat1 * radian)) * libm("cos", lat2 * radian)
    h = up * up + flat * across * across
    return 2 * 6371.0 * libm("asin", np.sqrt(np.float64(1) if h > 1 else h))
