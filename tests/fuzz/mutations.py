"""How inputs are spoilt: what a defect, a bad line or an attacker would make of a real message."""

import re
from collections.abc import Callable, Sequence
from random import Random

LONGEST = 300_000
"""Bytes. Nothing longer is tried: 100,000 brackets that open, and as many that close, fit in."""

NUMBERS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e-999", b"-0", b"-1", b"1E5", b"1.5", b"01"),
    *(
        b"%d" % (sign * 2**bits + more)
        for bits in (31, 32, 53, 63, 64)
        for sign in (1, -1)
        for more in (-1, 0, 1)
    ),
    b"1" + b"0" * 400,
    b"9" * 5000,
)
TEXTS = (
    *(rb"\ud800", rb"\udc00\ud800", rb"\u0000", rb"\uzzzz", b"\\", "é".encode(), b"\xff", b"\xc3", b"\xed\xa0\x80"),
    *(b"\xc0\xaf", b"\x00", b'"', b"", b"x" * 70_000, b"\xef\xbb\xbf", b"..", b"%00", b"%ff%fe", b"@", b"/", b"#"),
)  # fmt: skip
VALUES = (b"null", b"true", b"[]", b"{}", b'""', b'{"a":1,"a":2}')
LENGTHS = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x00",
    b"\x00\x01\x00\x00",
)
DEPTHS = (2, 30, 150, 1_000, 100_000)
BRACKETS = ((b"[", b"]"), (b'{"a":', b"}"), (b'{"not":', b"}"), (b"[{", b"}]"))

NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
TEXT = re.compile(rb'"[^"\\]*"')
VALUE = re.compile(rb'-?\d+(?:\.\d+)?|"[^"\\]*"(?!:)|null|true|false')

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]


def _flip(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + bytes(byte ^ 1 << chance.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def _set(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice((b"\x00", b"\x01", b"\x7f", b"\x80", b"\xce", b"\xff")) + data[at + 1 :]


def _truncate(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _cut_out(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    start, stop = _slice(data, chance)
    return data[:start] + data[stop:]


def _repeat(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    start, stop = _slice(data, chance)
    return (
        data[:stop]
        + data[start:stop] * min(chance.choice((1, 2, 10, 1_000)), LONGEST // (stop - start + 1))
        + data[stop:]
    )


def _splice(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    other = chance.choice(others)
    start, stop = _slice(data, chance)
    from_, to = _slice(other, chance)
    return data[:start] + other[from_:to] + data[stop:]


def _length(data: bytes, chance: Random, _: Sequence[bytes]) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(LENGTHS) + data[at + 4 :]


def _replacing(pattern: re.Pattern[bytes], make: Callable[[bytes, Random], bytes]) -> Mutation:
    def mutation(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
        found = list(pattern.finditer(data))
        if not found:
            return _set(data, chance, others)
        place = chance.choice(found)
        return data[: place.start()] + make(place.group(), chance) + data[place.end() :]

    return mutation


def _other_text(old: bytes, chance: Random) -> bytes:
    return b'"' + old[1:-1] * chance.randrange(2) + chance.choice(TEXTS) + b'"'


def _nested(old: bytes, chance: Random) -> bytes:
    open_, close = chance.choice(BRACKETS)
    depth = min(chance.choice(DEPTHS), LONGEST // 2 // len(open_))
    return open_ * depth + old + close * depth


MUTATIONS: tuple[Mutation, ...] = (
    _flip,
    _set,
    _truncate,
    _cut_out,
    _repeat,
    _splice,
    _length,
    _replacing(NUMBER, lambda _, chance: chance.choice(NUMBERS)),
    _replacing(TEXT, _other_text),
    _replacing(VALUE, lambda _, chance: chance.choice(VALUES)),
    _replacing(VALUE, _nested),
)


def mutate(data: bytes, chance: Random, others: Sequence[bytes]) -> bytes:
    """Return an input spoilt in a few places; `others` are inputs to take parts from."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        data = chance.choice(MUTATIONS)(data, chance, others)
    return data[:LONGEST]


def _slice(data: bytes, chance: Random) -> tuple[int, int]:
    start, stop = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    return start, stop
