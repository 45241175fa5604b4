"""The expression language (spec section 7): from text to a program."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from procserver.errors import FgConfigError
from procserver.fg.program import Builder, TooLarge

if TYPE_CHECKING:
    from cython_ext.fg_expr import ProgramSpec

# SAFETY: what a file may ask of the reader: characters, and levels of nesting.
MAX_TEXT = 16384
MAX_DEPTH = 50

CONSTANTS = {"_pi": math.pi, "_e": math.e}
# Binary operators by how tightly they bind. A sign binds as * and / do, ^ above.
LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("&",),
    ("<=", ">=", "!=", "==", ">", "<"),
    ("+", "-"),
    ("*", "/"),
)
LEVEL_OF = {sign: level for level, signs in enumerate(LEVELS) for sign in signs}
# Element-wise functions: operation and number of arguments.
FUNCTIONS = {
    **{
        name: (name, 1)
        for name in (
            *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
            *("asinh", "acosh", "atanh", "cot", "coth", "log", "log2", "log10"),
            *("exp", "sqrt", "sign", "abs", "rint", "floor", "ceil", "trunc"),
            *("round", "sigmoid", "isnan"),
        )
    },
    "ln": ("log", 1),
    "atan2": ("atan2", 2),
    "mod": ("mod", 2),
    "roundp": ("roundp", 2),
    "haversine": ("haversine", 4),
    "sphere_dist": ("haversine", 4),
}
VARIADIC = ("min", "max", "sum", "avg")
# Vector functions: number of arguments.
VECTOR = {
    **dict.fromkeys(
        (
            *("len", "l2_norm", "squared_norm", "std_dev", "pop_std_dev"),
            *("variance", "pop_variance", "reduce_min", "reduce_max"),
            *("reduce_sum", "reduce_mean", "reduce_prod"),
        ),
        1,
    ),
    **dict.fromkeys(("dot", "euclid_dist", "corr"), 2),
}
TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>&&|\|\||<=|>=|==|!=|[-+*/^<>?:(),|&])"
    r"|(?P<end>\Z)",
    re.ASCII,
)
SPACE = re.compile(r"[\t-\r ]*")


@dataclass(frozen=True)
class Token:
    """``kind``: number, name, sign or end; ``at``: its first character, from 1."""

    kind: str
    text: str
    at: int


@dataclass(frozen=True)
class Formula:
    """A compiled expression.

    ``variables`` names its inputs in the order in which the program takes them;
    ``scalar``: it has no vector functions, so a plain number can be given to it.
    """

    text: str
    variables: tuple[str, ...]
    program: "ProgramSpec"
    scalar: bool


def compile_formula(
    text: str, variables: Sequence[str], *, feature: str, key: str
) -> Formula:
    """Compiles ``text`` over named variables.

    :raises FgConfigError: naming feature, key, position and reason
    """

    def refuse(reason: str) -> FgConfigError:
        return FgConfigError(feature, key, reason)

    if len(text) > MAX_TEXT:
        raise refuse(f"is longer than {MAX_TEXT} characters")
    for i, name in enumerate(variables):
        if name in variables[:i]:
            raise refuse(f"has two variables named {name!r:.60}")
    reader = _Reader(text, variables, refuse)
    result = reader.expression()
    reader.expect_end()
    try:
        program = reader.builder.program(result)
    except TooLarge:
        raise refuse("has too many numbers or intermediate values") from None
    return Formula(
        text, tuple(variables), program, scalar=len(reader.builder.scopes) == 1
    )


def _tokens(text: str, refuse: Callable[[str], FgConfigError]) -> Iterator[Token]:
    at = 0
    while True:
        space = SPACE.match(text, at)
        at = space.end() if space else at
        found = TOKEN.match(text, at)
        if found is None:
            raise refuse(f"position {at + 1}: unexpected {text[at]!r}")
        yield Token(found.lastgroup or "", found[0], at + 1)
        if found.lastgroup == "end":
            return
        at = found.end()


class _Reader:
    """A recursive-descent reader that builds the program as it goes."""

    def __init__(
        self,
        text: str,
        variables: Sequence[str],
        refuse: Callable[[str], FgConfigError],
    ) -> None:
        self.variables = {name: i for i, name in enumerate(variables)}
        self.builder = Builder(len(variables))
        self._refuse = refuse
        self._tokens = _tokens(text, refuse)
        self._token = next(self._tokens)
        self._scope = 0
        self._depth = 0

    # ------------------------------------------------------------- tokens

    def _take(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._token = next(self._tokens)
        return token

    def _at(self, sign: str) -> bool:
        return self._token.kind == "sign" and self._token.text == sign

    def _expect(self, sign: str) -> None:
        if not self._at(sign):
            raise self._unexpected(f", not {sign!r}")
        self._take()

    def expect_end(self) -> None:
        """Refuses what follows a whole expression."""
        if self._token.kind != "end":
            raise self._unexpected("")

    def _unexpected(self, suffix: str) -> FgConfigError:
        token = self._token
        if token.kind == "end":
            return self._refuse(f"position {token.at}: unexpected end{suffix}")
        return self._error(token, f"unexpected {token.text!r:.60}{suffix}")

    def _error(self, token: Token, reason: str) -> FgConfigError:
        return self._refuse(f"position {token.at}: {reason}")

    # ------------------------------------------------------------ grammar

    def expression(self) -> int:
        """``condition ? value : value``, which groups to the right."""
        if self._depth == MAX_DEPTH:
            raise self._error(self._token, f"nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        value = self._binary(0)
        if self._at("?"):
            self._take()
            chosen = self.expression()
            self._expect(":")
            value = self.builder.apply("?:", value, chosen, self.expression())
        self._depth -= 1
        return value

    def _binary(self, level: int) -> int:
        """Operators of ``level`` and above, which group to the left."""
        left = self._signed()
        while self._token.kind == "sign":
            sign = self._token.text
            found = LEVEL_OF.get(sign, -1)
            if found < level:
                break
            self._take()
            left = self.builder.apply(sign, left, self._binary(found + 1))
        return left

    def _signed(self) -> int:
        """A power, or its negation: ``-2^2`` is -4."""
        if not self._at("-") and not self._at("+"):
            return self._power()
        sign = self._take()
        if self._at("-") or self._at("+"):
            raise self._unexpected(": two signs in a row")
        value = self._power()
        return self.builder.apply("neg", value) if sign.text == "-" else value

    def _power(self) -> int:
        """``base ^ exponent``, which groups to the right."""
        base = self._primary()
        if not self._at("^"):
            return base
        if self._depth == MAX_DEPTH:
            raise self._error(self._token, f"nested more than {MAX_DEPTH} levels deep")
        self._take()
        self._depth += 1
        exponent = self._signed()
        self._depth -= 1
        return self.builder.power(base, exponent)

    def _primary(self) -> int:
        token = self._token
        if token.kind == "number":
            self._take()
            return self.builder.constant(float(token.text))
        if token.kind == "name":
            self._take()
            return self._call(token) if self._at("(") else self._named(token)
        if not self._at("("):
            raise self._unexpected("")
        self._take()
        value = self.expression()
        self._expect(")")
        return value

    def _named(self, token: Token) -> int:
        if token.text in CONSTANTS:
            return self.builder.constant(CONSTANTS[token.text])
        if token.text not in self.variables:
            raise self._error(token, f"unknown variable {token.text!r:.60}")
        return self.builder.load(self.variables[token.text], self._scope)

    # ---------------------------------------------------------- functions

    def _arguments(self) -> list[int]:
        self._expect("(")
        found: list[int] = []
        while not self._at(")"):
            if found:
                self._expect(",")
            found.append(self.expression())
        self._take()
        return found

    def _call(self, token: Token) -> int:
        name = token.text
        if name in VECTOR:
            return self._vector(token)
        if name in FUNCTIONS:
            operation, count = FUNCTIONS[name]
            arguments = self._arguments()
            self._check_count(token, arguments, count)
            return self.builder.apply(operation, *arguments)
        if name in VARIADIC:
            arguments = self._arguments()
            if not arguments:
                raise self._error(token, f"{name} takes one argument or more")
            return self._variadic(name, arguments)
        if name == "rnd":
            self._check_count(token, self._arguments(), 0)
            return self.builder.random(self._scope)
        raise self._error(token, f"unknown function {name!r:.60}")

    def _check_count(self, token: Token, arguments: list[int], count: int) -> None:
        if len(arguments) != count:
            raise self._error(
                token,
                f"{token.text} takes {count} argument{'s' if count != 1 else ''}, "
                f"not {len(arguments)}",
            )

    def _vector(self, token: Token) -> int:
        """A vector function: its arguments are whole rows, in a scope of theirs."""
        outer, self._scope = self._scope, self.builder.scope()
        inner = self._scope
        arguments = self._arguments()
        self._scope = outer
        self._check_count(token, arguments, VECTOR[token.text])
        return self.builder.reduce(token.text, inner, *arguments)

    def _variadic(self, name: str, arguments: list[int]) -> int:
        apply = self.builder.apply
        if name in ("min", "max"):
            value = arguments[0]
            for one in arguments[1:]:
                value = apply(name, value, one)
            return value
        # NOTE(7): sums start from 0, as muParser's do.
        value = self.builder.constant(0.0)
        for one in arguments:
            value = apply("+", value, one)
        if name == "sum":
            return value
        return apply("/", value, self.builder.constant(float(len(arguments))))
