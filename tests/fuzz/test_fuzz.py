"""A short, fixed part of what `make fuzz` does for as long as one likes: the same inputs each time."""

import tracemalloc
from random import Random

import pytest

from tests.core.notation import ID
from tests.fuzz.blind import Finding, fuzz, take
from tests.fuzz.mutations import LENGTHS
from tests.fuzz.targets import DELIVERY, READ, TARGETS, Target

INPUTS = 500
LENGTH = 100_000
MOST_MEMORY = 200
"""Bytes for each byte of an input. A record of a step takes fifty, an empty list twenty."""
DEEP_TABLES = 1_000
"""The same for tables of headers: pamqp copies what is left at each level, as deep as Python lets it."""

EMPTY_BODY = b"\x03\x00\x02\x00\x00\x00\x00\xce"


def _filled(data: bytes) -> bytes:
    return data * (LENGTH // len(data))


HUGE = {
    "brackets": b"[" * 30_000 + b"]" * 30_000,
    "100,000 open brackets": b"[" * LENGTH,
    "objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "a field of brackets": b'{"operation":"execute","type":"time_passed","at":1,"output":' + b"[" * 30_000,
    "empty lists": b"[" + b"[]," * 5_000 + b"[]]",
    "a number": b'{"at":' + b"9" * LENGTH + b',"type":"time_passed"}',
    "a text": b'{"operation":"' + b"x" * LENGTH + b'"}',
    "escapes": b'{"operation":"' + rb"\u00e9" * 20_000 + b'"}',
    "fields": b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(5_000)) + b"}",
    "records": b'{"progress":[' + b"{}," * 5_000 + b"{}]}",
    "dots": b"." * LENGTH,
    "zeros": bytes(LENGTH),
    "ones": b"\xff" * LENGTH,
    "ends": b"\xce" * LENGTH,
    "deliveries": _filled(DELIVERY),
    "empty bodies": DELIVERY[: DELIVERY.index(b"\xce") + 1] + _filled(EMPTY_BODY),
    "settings": b"amqp://h/?" + b"a=1&" * 10_000 + b"a=1",
    "at signs": b"amqp://" + b"@" * LENGTH,
    "a token": f"{ID}.".encode() + b"9" * LENGTH + b".execute.1.00",
    **{
        f"a table of {name}": b"\x20\x00" + len(table).to_bytes(4, "big") + table
        for name, table in (
            ("nothing", b"\x00V" * 20_000),
            ("a list of nothing", b"\x01kA\x00\x00\x4e\x20" + b"V" * 20_000),
            ("lists within lists", b"\x01k" + b"A\x00\x00\x80\x00" * 8_000),
            ("tables within tables", b"\x01k" + b"F\x00\x00\x80\x00\x01k" * 6_000),
            *((f"length {length.hex()}", b"\x01kS" + length + b"x") for length in LENGTHS),
        )
    },
}


@pytest.mark.parametrize("name", TARGETS)
def test_everything_is_read_as_it_should_be(name: str) -> None:
    outcomes = {take(name, TARGETS[name], seed) for seed in TARGETS[name].seeds}
    assert outcomes == ({READ, "Poison"} if name == "letters" else {READ})


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_spoilt_is_read_or_refused(name: str) -> None:
    outcomes = fuzz(name, TARGETS[name], Random(0), lambda done: done < INPUTS)
    assert outcomes.total() == INPUTS
    assert len(outcomes) == 2, "some are read, and the others refused with the one error that there is for it"


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_cut_off_anywhere_is_read_or_refused(name: str) -> None:
    for seed in TARGETS[name].seeds[:8]:
        for length in range(len(seed)):
            take(name, TARGETS[name], seed[:length])


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_huge_takes_no_more_memory_than_its_length_explains(name: str) -> None:
    for kind, data in HUGE.items():
        tracemalloc.start()
        try:
            take(name, TARGETS[name], data)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        ratio = DEEP_TABLES if "within" in kind else MOST_MEMORY
        assert most < ratio * len(data) + 1_000_000, kind


def test_what_must_not_happen_is_told_with_the_input() -> None:
    def divide(data: bytes) -> str:
        1 // (len(data) - 3)
        return READ

    with pytest.raises(Finding, match=r"three, 3 bytes: .*\nin base64: ") as caught:
        fuzz("three", Target(divide, [b"....."]), Random(0), lambda _: True)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
