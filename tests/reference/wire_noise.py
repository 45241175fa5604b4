"""Serialises messages the way no library does: legal, but unusual, bytes.

Fields out of order, numbers packed, unpacked and in several runs, over-long
varints, unknown fields and groups, values that a later one replaces, messages
in parts that merge.
"""

import struct

from google.protobuf.descriptor import FieldDescriptor as F

VARINTS = {F.TYPE_INT32, F.TYPE_INT64, F.TYPE_ENUM}


def varint(value, rng=None):
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    if rng is not None and len(out) < 9 and rng.random() < 0.05:
        out[-1] |= 0x80
        out += b"\x80" * rng.randrange(9 - len(out)) + b"\x00"
    return bytes(out)


def tag(number, wire):
    return varint(number << 3 | wire)


def length(number, payload):
    return tag(number, 2) + varint(len(payload)) + payload


def scalar(field, value, rng=None):
    """(wire type, bytes) of one value."""
    if field.type in VARINTS:
        return 0, varint(value, rng)
    if field.type == F.TYPE_FLOAT:
        return 5, struct.pack("<f", value)
    if field.type == F.TYPE_DOUBLE:
        return 1, struct.pack("<d", value)
    data = value.encode() if isinstance(value, str) else value
    return 2, varint(len(data), rng) + data


def unknown(rng, depth=0):
    number = rng.choice([99, 2000, 1 << 28])
    kind = rng.randrange(5 if depth < 3 else 4)
    if kind == 0:
        return tag(number, 0) + varint(rng.getrandbits(64))
    if kind == 1:
        return tag(number, 1) + rng.randbytes(8)
    if kind == 2:
        return tag(number, 5) + rng.randbytes(4)
    if kind == 3:
        return length(number, rng.randbytes(rng.randrange(20)))
    inner = b"".join(unknown(rng, depth + 1) for _ in range(rng.randrange(3)))
    return tag(number, 3) + inner + tag(number, 4)


def repeated(field, values, rng):
    values = list(values)
    if field.type in (F.TYPE_STRING, F.TYPE_BYTES):
        return [length(field.number, _raw(v)) for v in values]
    if field.type == F.TYPE_MESSAGE:
        return [length(field.number, noisy(v, rng)) for v in values]
    parts = []
    while values:
        n = rng.randint(1, len(values))
        run, values = values[:n], values[n:]
        if rng.random() < 0.5:
            parts.append(
                length(field.number, b"".join(scalar(field, v, rng)[1] for v in run))
            )
        else:
            for v in run:
                wire, data = scalar(field, v, rng)
                parts.append(tag(field.number, wire) + data)
    if rng.random() < 0.1:
        parts.append(length(field.number, b""))
    return parts


def _raw(value):
    return value.encode() if isinstance(value, str) else value


def map_entry(field, key, value, rng):
    key_field, value_field = field.message_type.fields
    wire, data = scalar(key_field, key, rng)
    parts = [tag(1, wire) + data]
    if value_field.type == F.TYPE_MESSAGE:
        payload = noisy(value, rng)
        parts.append(length(2, payload))
        if rng.random() < 0.1:
            parts.append(length(2, noisy(value, rng)))
    else:
        wire, data = scalar(value_field, value, rng)
        parts.append(tag(2, wire) + data)
    if rng.random() < 0.2:
        rng.shuffle(parts)
    if rng.random() < 0.05:
        parts.pop()
    if rng.random() < 0.02:
        parts.append(unknown(rng))
    return length(field.number, b"".join(parts))


def noisy(message, rng):
    """Bytes that mean about the same as ``message``; parse them to know."""
    fields = []
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            parts = [map_entry(field, k, v, rng) for k, v in value.items()]
            if parts and rng.random() < 0.1:
                parts.append(rng.choice(parts))
        elif field.is_repeated:
            parts = repeated(field, value, rng)
        elif field.type == F.TYPE_MESSAGE:
            parts = [length(field.number, noisy(value, rng))]
            if rng.random() < 0.1:
                parts.append(length(field.number, noisy(value, rng)))
        else:
            wire, data = scalar(field, value, rng)
            parts = [tag(field.number, wire) + data]
            if rng.random() < 0.1:
                parts.append(tag(field.number, wire) + data)
        fields.append(parts)
    if rng.random() < 0.3:
        rng.shuffle(fields)
    parts = [part for one in fields for part in one]
    if rng.random() < 0.05:
        rng.shuffle(parts)
    while rng.random() < 0.1:
        parts.insert(rng.randint(0, len(parts)), unknown(rng))
    return b"".join(parts)


def mutated(body, rng):
    """The bytes with one to three random changes."""
    body = bytearray(body)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body) + 1)
        kind = rng.randrange(6)
        if kind == 0 and body:
            body[at % len(body)] = rng.randrange(256)
        elif kind == 1 and body:
            body[at % len(body)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            body[at:at] = rng.randbytes(rng.randint(1, 4))
        elif kind == 3:
            del body[at : at + rng.randint(1, 4)]
        elif kind == 4:
            body[at:at] = body[at : at + rng.randint(1, 30)]
        elif kind == 5 and rng.random() < 0.2:
            del body[at:]
    return bytes(body)
