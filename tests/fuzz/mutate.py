"""From a valid message to one that is not quite: the kinds of damage that decoders have to survive.

`targets.py` says what is decoded, `worker.py` feeds it.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

MOST_BYTES = 4_200_000
"""A little more than the largest limit that a decoder has."""
VARINTS = (
    b"\x00", b"\x01", b"\x02", b"\x7f", b"\xfe\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x20",
    b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xfe" + b"\xff" * 8 + b"\x01",
    b"\xff" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 11 + b"\x01",
)  # fmt: skip
"""Lengths and numbers of Avro (zigzag): small, at the edges of 32 and 64 bits on both sides, and beyond."""
NUMBERS = (
    b"-1", b"0", b"-0.0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"9223372036854775807", b"9223372036854775808",
    b"-9223372036854775809", b"1" * 400, b"1" * 5000, b"0.1", b"1e-400", b"null", b"true", b'""', b'"a"', b"[]", b"{}",
    b'"\\ud800"', b'"' + b"9" * 300 + b'"', b"18446744073709551616", b'"\\n\\n"', b'"\\u0000"',
)  # fmt: skip
"""What may stand in JSON where a number or a text should."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null')
_ITEM = re.compile(rb"\{[^{}]*\}|\[[^\[\]]*\]")

Damage = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutants(valid: Sequence[bytes], seed: int, count: int) -> list[bytes]:
    """`count` damaged messages, each made from one of `valid` by one to four kinds of damage; the same for a seed."""
    rng = random.Random(seed)
    return [_damaged(rng, valid) for _ in range(count)]


def _damaged(rng: random.Random, valid: Sequence[bytes]) -> bytes:
    data = rng.choice(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(DAMAGES)(rng, data, valid)[:MOST_BYTES]
    return data


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _flip(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _byte(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes((rng.choice((0, 1, 2, 127, 128, 254, 255, rng.randrange(256))),)) + data[at + 1 :]


def _truncate(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    return data[: _place(rng, data)]


def _cut_out(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    a = _place(rng, data)
    return data[:a] + data[a + rng.choice((1, 2, 4, 8, rng.randrange(64) + 1)) :]


def _insert(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 16, 200))) + data[at:]


def _double(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    a, size = _place(rng, data), rng.choice((1, 4, 16, 64, len(data)))
    part = data[a : a + size]
    times = rng.choice((1, 1, 2, 10, 1000 if len(part) < 100 else 3))
    return data[:a] + part * times + data[a:]


def _splice(rng: random.Random, data: bytes, valid: Sequence[bytes]) -> bytes:
    other = rng.choice(valid)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _varint(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    at, number = _place(rng, data), rng.choice(VARINTS)
    return data[:at] + number + data[at + rng.choice((0, 1, 1, len(number))) :]


def _number(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    """A little-endian number at the edges, as zip, npy and zstd have them."""
    value = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.getrandbits(32)))
    whole = struct.pack("<Q", value | value << 32)[: rng.choice((2, 4, 8))]
    at = _place(rng, data)
    return data[:at] + whole + data[at + len(whole) :]


def _token(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    """Another token of JSON in the place of one."""
    found = list(_TOKEN.finditer(data, 0, 20_000))
    if not found:
        return _byte(rng, data, _valid)
    old = rng.choice(found)
    new = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice(found)[0]
    return data[: old.start()] + new + data[old.end() :]


def _nest(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    """JSON that goes very deep."""
    at, deep = _place(rng, data), rng.choice((10, 70, 200, 990, 3000, 100_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[[],", b"]")))
    return data[:at] + opening * deep + b"1" + closing * deep + data[at:]


def _multiply(rng: random.Random, data: bytes, _valid: Sequence[bytes]) -> bytes:
    """An item of a JSON list very often."""
    found = list(_ITEM.finditer(data, 0, 20_000))
    if not found:
        return _double(rng, data, _valid)
    item = rng.choice(found)
    times = rng.choice((2, 2, 10, 100, 2000))
    return data[: item.start()] + b",".join([item[0]] * times) + data[item.end() :]


DAMAGES: tuple[Damage, ...] = (
    _flip, _flip, _byte, _truncate, _cut_out, _insert, _double, _splice, _varint, _varint, _number, _token, _token,
    _nest, _multiply,
)  # fmt: skip
