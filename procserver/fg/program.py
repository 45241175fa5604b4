"""Programs of the expression language: values, folding, registers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cython_ext.fg_expr import MAX_REGISTER_COUNT
from cython_ext.fg_math import fold

if TYPE_CHECKING:
    from cython_ext.fg_expr import Instruction, ProgramSpec

# Domains of values; those of elements are the numbers of scopes, from 0.
CONSTANT = -2
UNIT = -1
NO_NUMBER = float("nan")


class TooLarge(Exception):
    """A program needs more registers than there are."""


@dataclass(frozen=True)
class Value:
    """One step: an operation on earlier values, or a number.

    ``domain``: CONSTANT; UNIT, one number per unit (a row, or an element of a
    sequence); or a scope, with as many per unit as its longest variable has.
    ``inner``: the scope that a vector function reduces.
    """

    operation: str
    arguments: tuple[int, ...]
    domain: int
    inner: int = 0
    number: float = 0.0


@dataclass
class Builder:
    """Collects the values of one expression; equal ones become one."""

    variables: int
    values: list[Value] = field(default_factory=list)
    scopes: list[list[int]] = field(default_factory=lambda: [[]])
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def scope(self) -> int:
        """Opens a scope: the arguments of one vector function."""
        self.scopes.append([])
        return len(self.scopes) - 1

    def constant(self, number: float) -> int:
        """A number. Zeros of both signs are two."""
        return self._add(Value("", (), CONSTANT, number=number), ("", number.hex()))

    def load(self, variable: int, scope: int) -> int:
        """A variable in a scope."""
        if variable not in self.scopes[scope]:
            self.scopes[scope].append(variable)
        return self._add(Value("load", (variable,), scope))

    def random(self, scope: int) -> int:
        """A random number for each element of a scope."""
        self.values.append(Value("rnd", (), scope))
        return len(self.values) - 1

    def apply(self, operation: str, *arguments: int) -> int:
        """An element-wise operation; of constants, at once."""
        domain = max(self.values[one].domain for one in arguments)
        if domain == CONSTANT:
            numbers = [self.values[one].number for one in arguments]
            return self.constant(fold(operation, numbers))
        if domain >= 0:
            arguments = tuple(self._expanded(one, domain) for one in arguments)
        return self._add(Value(operation, arguments, domain))

    def power(self, base: int, exponent: int) -> int:
        """``base ^ exponent``.

        NOTE(7): muParser multiplies where a variable is raised to 2, 3 or 4.
        """
        number = self.values[exponent].number
        if (
            self.values[base].operation != "load"
            or number not in (2, 3, 4)
            or (self.values[exponent].domain != CONSTANT)
        ):
            return self.apply("^", base, exponent)
        product = base
        for _ in range(int(number) - 1):
            product = self.apply("*", product, base)
        return product

    def reduce(self, operation: str, scope: int, *arguments: int) -> int:
        """A vector function of the elements of a scope."""
        arguments = tuple(self._expanded(one, scope) for one in arguments)
        return self._add(Value(operation, arguments, UNIT, inner=scope))

    def _expanded(self, value: int, scope: int) -> int:
        if self.values[value].domain != UNIT:
            return value
        return self._add(Value("expand", (value,), scope))

    def _add(self, value: Value, key: tuple[object, ...] | None = None) -> int:
        key = key or (value.operation, value.arguments, value.domain, value.inner)
        number = self._known.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def program(self, result: int) -> "ProgramSpec":
        """What the kernels load.

        :raises TooLarge: it needs too many registers
        """
        live = self._live(result)
        numbers = [i for i in live if self.values[i].domain == CONSTANT]
        code, registers, slots = self._code(live, numbers, result)
        if registers > MAX_REGISTER_COUNT:
            raise TooLarge
        return (
            code,
            [self.values[i].number for i in numbers],
            registers,
            self.variables,
            [tuple(scope) for scope in self.scopes],
            slots[result],
            self.values[result].domain < 0,
        )

    def _operands(self, value: Value) -> tuple[int, ...]:
        return () if value.operation == "load" else value.arguments

    def _live(self, result: int) -> list[int]:
        needed = {result}
        for i in range(result, -1, -1):
            if i in needed:
                needed.update(self._operands(self.values[i]))
        return sorted(needed)

    def _code(
        self, live: Sequence[int], numbers: Sequence[int], result: int
    ) -> tuple[list["Instruction"], int, dict[int, int]]:
        """Instructions, how many registers they use, and each value's register."""
        last = {result: len(self.values)}
        for i in live:
            for one in self._operands(self.values[i]):
                last[one] = max(last.get(one, 0), i)
        slots = {value: i for i, value in enumerate(numbers)}
        free: list[int] = []
        used = len(numbers)
        code: list[Instruction] = []
        for i in live:
            value = self.values[i]
            if value.domain == CONSTANT:
                continue
            # PERF: an output never shares a register with an argument: loops
            # whose arrays overlap are not vectorised.
            if free:
                slots[i] = free.pop()
            else:
                slots[i] = used
                used += 1
            operands = self._operands(value)
            arguments = tuple(slots[one] for one in operands) or value.arguments
            code.append(
                (value.operation, slots[i], arguments, value.domain, value.inner)
            )
            free.extend(
                slots[one]
                for one in dict.fromkeys(operands)
                if last[one] == i and self.values[one].domain != CONSTANT
            )
        return code, max(used, 1), slots
