"""Broken and odd messages made of good ones, by the structure of protobuf.

A seed is cut into its fields, at all depths. A mutation changes one of them and
mends the lengths of the messages around it (mostly), so that what is odd lies deep
inside a message that is otherwise right. Bytes are changed blindly as well.
"""

import random
import struct
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor

from tests.reference.wire_noise import mutated, tag, unknown, varint

MAX_BODY = 1 << 16
VARINTS = [
    *(varint(1 << shift) for shift in range(0, 64, 7)),
    *(varint((1 << bits) - 1) for bits in (7, 8, 31, 32, 53, 63, 64)),
    varint(-1),
    varint(-(2**31)),
    varint(2**31),
    b"\x00",
    b"\x80\x00",
    b"\xff" * 9 + b"\x00",
    b"\xff" * 9 + b"\x02",
    b"\xff" * 9 + b"\x7f",
    b"\x80" * 9 + b"\x80\x00",
    b"\xff" * 11,
    b"\x80",
]
TEXTS = [
    b"", b"\0", b"a" * 127, b"a" * 128, "é日😀".encode(), b"\x80", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"aaaaaaa\xff", b"\xf0\x9f\x98",
    b"9223372036854775808", b"-0", b"1e999", b"nan",
]  # fmt: skip
FIXED = [
    struct.pack("<d", float("inf")), struct.pack("<d", -0.0), b"\xff" * 8,
    b"\x01\x00\x00\x00\x00\x00\xf0\x7f", b"\x01\x00\xa0\x7f" * 2, bytes(8),
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 15, 16, 30, 31, 99, 100, 2**28, 2**29 - 1, 2**29]


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field stands: ``start`` (tag), ``payload``, ``end``; what is around."""

    start: int
    payload: int
    end: int
    wire: int
    number: int
    parent: int
    children: bool


class Seed:
    """A message cut into its fields."""

    def __init__(self, body: bytes, kind: Descriptor) -> None:
        self.body = body
        self.fields: list[Field] = []
        self._cut(0, len(body), kind, -1)

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 70:
            byte = self.body[at]
            value |= (byte & 0x7F) << shift
            at += 1
            shift += 7
            if byte < 0x80:
                return value & (1 << 64) - 1, at
        raise ValueError("varint")

    def _cut(self, at: int, end: int, kind: Descriptor | None, parent: int) -> None:
        """Notes the fields of a message, as far as they can be read."""
        while at < end:
            start = at
            try:
                key, at = self._varint(at, end)
                wire, number = key & 7, key >> 3
                payload = at
                if wire == 0:
                    _, at = self._varint(at, end)
                elif wire == 2:
                    size, payload = self._varint(at, end)
                    at = payload + size
                elif wire in (1, 5):
                    at += 8 if wire == 1 else 4
            except ValueError:
                return
            if at > end or wire > 5 or len(self.fields) > 2000:
                return
            known = kind.fields_by_number.get(number) if kind else None
            inner = known.message_type if known is not None and wire == 2 else None
            here = len(self.fields)
            self.fields.append(
                Field(start, payload, at, wire, number, parent, inner is not None)
            )
            if inner is not None:
                self._cut(payload, at, inner, here)

    def replaced(self, field: Field, new: bytes, *, mend: bool = True) -> bytes:
        """The body with other bytes in place of the field."""
        body = self.body
        if not mend:
            return body[: field.start] + new + body[field.end :]
        start, end, at = field.start, field.end, field.parent
        while at >= 0:
            around = self.fields[at]
            inside = body[around.payload : start] + new + body[end : around.end]
            new = tag(around.number, 2) + varint(len(inside)) + inside
            start, end, at = around.start, around.end, around.parent
        return body[:start] + new + body[end:]


class Mutator:
    """Mutated bodies of a pool of seeds; the same ``rng`` gives the same bodies."""

    def __init__(
        self, rng: random.Random, kind: Descriptor, most_seeds: int = 1000
    ) -> None:
        self.rng = rng
        self.seeds: list[Seed] = []
        self._kind = kind
        self._most = most_seeds
        self._changes = [
            self._delete, self._repeat, self._repeat, self._splice, self._splice,
            self._insert, self._value, self._value, self._value, self._retag,
            self._group, self._split, self._split, self._lie, self._shorten,
            self._swap, self._stranger, self._nest,
        ]  # fmt: skip

    def add(self, body: bytes) -> None:
        """Takes a seed; when the pool is full, in place of a random one."""
        seed = Seed(body, self._kind)
        if not seed.fields:
            return
        if len(self.seeds) < self._most:
            self.seeds.append(seed)
        else:
            self.seeds[self._below(self._most)] = seed

    def body(self) -> bytes:
        """One mutated body."""
        rng = self.rng
        seed = self._pick(self.seeds)
        field = self._pick(seed.fields)
        new = self._pick(self._changes)(seed, field)
        out = seed.replaced(field, new, mend=rng.random() < 0.93)
        if rng.random() < 0.25:
            out = mutated(out, rng)
        return out[:MAX_BODY]

    def _below(self, n: int) -> int:
        return int(self.rng.random() * n)

    def _pick(self, values):
        return values[int(self.rng.random() * len(values))]

    def _some_field(self) -> bytes:
        seed = self._pick(self.seeds)
        field = self._pick(seed.fields)
        return seed.body[field.start : field.end]

    def _delete(self, seed: Seed, field: Field) -> bytes:
        return b""

    def _repeat(self, seed: Seed, field: Field) -> bytes:
        old = seed.body[field.start : field.end]
        times = 2 if self.rng.random() < 0.9 else 2 + self._below(120)
        return old * min(times, 1 + MAX_BODY // (2 * len(old) + 1))

    def _splice(self, seed: Seed, field: Field) -> bytes:
        return self._some_field()

    def _insert(self, seed: Seed, field: Field) -> bytes:
        old = seed.body[field.start : field.end]
        new = self._some_field()
        return new + old if self.rng.random() < 0.5 else old + new

    def _value(self, seed: Seed, field: Field) -> bytes:
        head = seed.body[field.start : field.payload]
        if field.wire == 0:
            return head + self._pick(VARINTS)
        if field.wire == 2:
            choice = self._below(4)
            if choice == 0:
                new = self._pick(TEXTS)
            elif choice == 1:
                new = self.rng.randbytes(self._below(40))
            elif choice == 2:
                new = b"".join(self._pick(VARINTS) for _ in range(self._below(5)))
            else:
                new = b"".join(self._pick(FIXED) for _ in range(self._below(5)))
            return tag(field.number, 2) + varint(len(new)) + new
        return head + self._pick(FIXED)[: field.end - field.payload]

    def _retag(self, seed: Seed, field: Field) -> bytes:
        number = field.number
        wire = field.wire
        if self.rng.random() < 0.6:
            number = self._pick(NUMBERS)
        else:
            wire = self._below(8)
        new = tag(number, wire)
        if self.rng.random() < 0.1:
            # Longer than it need be.
            more = self._below(5)
            new = new[:-1] + bytes([new[-1] | 0x80]) + b"\x80" * more + b"\x00"
        start = field.start + len(tag(field.number, field.wire))
        return new + seed.body[start : field.end]

    def _group(self, seed: Seed, field: Field) -> bytes:
        number = self._pick(NUMBERS[1:-1])
        deep = 1 if self.rng.random() < 0.8 else 90 + self._below(20)
        end = number if self.rng.random() < 0.9 else number + 1
        old = seed.body[field.start : field.end]
        around = tag(number, 3) * deep + old + tag(number, 4) * (deep - 1)
        return around + tag(end, 4)

    def _nest(self, seed: Seed, field: Field) -> bytes:
        """The field within itself, some levels deep."""
        new = seed.body[field.start : field.end]
        for _ in range(1 + self._below(3) if self.rng.random() < 0.9 else 110):
            new = tag(field.number, 2) + varint(len(new)) + new
        return new

    def _split(self, seed: Seed, field: Field) -> bytes:
        """A message or packed run in two parts; a field a second time, changed."""
        if field.wire != 2 or field.end == field.payload:
            return self._repeat(seed, field)
        inside = seed.body[field.payload : field.end]
        at = self._below(len(inside) + 1)
        if field.children:
            here = seed.fields.index(field)
            cuts = [
                f.start - field.payload
                for f in seed.fields[here + 1 :]
                if f.parent == here
            ]
            at = self._pick(cuts) if cuts else 0
        head = tag(field.number, 2)
        parts = [inside[:at], inside[at:]]
        if self.rng.random() < 0.3:
            parts.reverse()
        return b"".join(head + varint(len(part)) + part for part in parts)

    def _lie(self, seed: Seed, field: Field) -> bytes:
        """A length that is not the length of what follows."""
        old = seed.body[field.payload : field.end]
        if self.rng.random() < 0.5:
            lie = varint(len(old) + self._pick([-1, 1, 2, 8]))
        else:
            lie = self._pick(VARINTS)
        return tag(field.number, 2) + lie + old

    def _shorten(self, seed: Seed, field: Field) -> bytes:
        inside = seed.body[field.payload : field.end]
        inside = inside[: self._below(len(inside) + 1)]
        if field.wire != 2:
            return seed.body[field.start : field.payload] + inside
        return tag(field.number, 2) + varint(len(inside)) + inside

    def _swap(self, seed: Seed, field: Field) -> bytes:
        """The value of another field of this message under this one's tag."""
        other = self._pick(seed.fields)
        if other.wire != field.wire:
            return seed.body[other.start : other.end]
        head = tag(field.number, field.wire)
        start = other.start + len(tag(other.number, other.wire))
        return head + seed.body[start : other.end]

    def _stranger(self, seed: Seed, field: Field) -> bytes:
        return seed.body[field.start : field.end] + unknown(self.rng)
