"""Measure the codecs: sagas, events and commands against plain `json`, and frames against pamqp.

Plain `json` gets and gives dicts and lists, which nobody has checked yet; ours gets and gives what the core works with,
checked. pamqp is what aiormq speaks AMQP with.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import pamqp.frame
from msgspec import Raw
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from benchmarks.report import Report, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, lines, ratio, repeatedly, take_turns
from saga_amqp.transports.amqp import frames
from saga_core import (
    Saga,
    Step,
    StepSucceeded,
    decode_command,
    decode_event,
    decode_saga,
    encode_command,
    encode_event,
    encode_saga,
    new_saga,
    outstanding,
    transition,
)

OURS, JSON, PAMQP = "saga", "json", "pamqp"
ID = "01J" + "0" * 23
OUTPUT = Raw(b'{"order_id":"order-123","customer_id":"cust-789"}')
AT_ONCE = 100
BODY = b"x" * 200
EXCHANGE, KEY, CHANNEL = "sagas", "execute.orders.create", 1

T = TypeVar("T")
Do = Callable[[], object]


class Subject(NamedTuple):
    """One thing that two codecs do, each its way, and how many it is at once."""

    name: str
    rival: str
    ours: Do
    theirs: Do
    count: int = 1


def run(options: Options) -> Iterator[Report]:
    """Measure every codec in both directions."""
    seconds = 0.05 if options.quick else 0.3
    subjects = [*_documents(), *_frames()]
    rivals = [
        Rival(f"{subject.name}, {whose}", repeatedly(partial(_prepare, do, subject.count), seconds))
        for subject in subjects
        for whose, do in ((OURS, subject.ours), (subject.rival, subject.theirs))
    ]
    rounds = take_turns(rivals, options, 3)
    yield Report(
        "codec: bytes made and read", "1/s", lines(rounds), tuple(_ratios(rounds, subjects)), facts=machine()
    )


def _prepare(do: Do, count: int) -> Callable[[], int]:
    def drive() -> int:
        do()
        return count

    return drive


def _documents() -> Iterator[Subject]:
    saga = _saga(3)
    (command,) = outstanding(saga)
    event = StepSucceeded("step0", 1, OUTPUT, 1.5)
    yield from _both_ways("command", command, encode_command, decode_command)
    yield from _both_ways("event", event, encode_event, decode_event)
    for steps in (3, 100):
        saga = _saga(steps)
        for number in range(steps):
            saga = transition(saga, StepSucceeded(f"step{number}", 1, OUTPUT, number + 1.5)).saga
        yield from _both_ways(f"saga of {steps} steps", saga, encode_saga, decode_saga)


def _both_ways(
    name: str, one: T, encode: Callable[[T], bytes], decode: Callable[[bytes], T]
) -> Iterator[Subject]:
    data = encode(one)
    plain = json.loads(data)
    dumps = partial(json.dumps, plain, separators=(",", ":"), ensure_ascii=False)
    yield Subject(f"{name}, encode", JSON, partial(encode, one), lambda: dumps().encode())
    yield Subject(f"{name}, decode", JSON, partial(decode, data), partial(json.loads, data))


def _frames() -> Iterator[Subject]:
    prefix = frames.publish_prefix(CHANNEL, EXCHANGE, KEY, mandatory=True)

    def publish() -> None:
        data = prefix + frames.content(CHANNEL, BODY, ID, "saga.step.execute")
        assert data

    yield Subject("publish, encode", PAMQP, publish, lambda: _published(spec.Basic.Publish))

    deliver = spec.Basic.Deliver("consumer", 1, False, EXCHANGE, KEY)
    deliveries = _content(deliver) * AT_ONCE
    confirms = pamqp.frame.marshal(spec.Basic.Ack(1, False), CHANNEL) * AT_ONCE
    for name, data in (("delivery, decode", deliveries), ("confirm, decode", confirms)):
        yield Subject(name, PAMQP, partial(_feed, data), partial(_unmarshal, list(_cut(data))), AT_ONCE)


def _published(method: type[spec.Basic.Publish]) -> bytes:
    return _content(method(exchange=EXCHANGE, routing_key=KEY, mandatory=True))


def _content(method: object) -> bytes:
    properties = spec.Basic.Properties(
        content_type="application/json", delivery_mode=2, message_id=ID, message_type="saga.step.execute"
    )
    parts = (method, ContentHeader(body_size=len(BODY), properties=properties), ContentBody(BODY))
    return b"".join(pamqp.frame.marshal(part, CHANNEL) for part in parts)


def _feed(data: bytes) -> None:
    decoder = frames.Decoder()
    decoder.open_lane(CHANNEL)
    events = decoder.feed(data)
    assert len(events) == AT_ONCE, events[-1]


def _cut(data: bytes) -> Iterator[bytes]:
    """Cut frames apart, as aiormq does before pamqp gets them: that is not counted."""
    while data:
        used, _, _ = pamqp.frame.unmarshal(data)
        yield data[:used]
        data = data[used:]


def _unmarshal(cut: Sequence[bytes]) -> None:
    for frame in cut:
        pamqp.frame.unmarshal(frame)


def _saga(steps: int) -> Saga:
    definition: Sequence[Step] = [
        Step(name=f"step{number}", action="do", compensation="undo", input={"product_id": "prod-123"})
        for number in range(steps)
    ]
    return new_saga("benchmark", definition, {"customer_id": "cust-789"}, id=ID, at=0.5)


def _ratios(rounds: Rounds, subjects: Sequence[Subject]) -> Iterator[Ratio]:
    for subject in subjects:
        name = f"{subject.name}: {OURS} / {subject.rival}"
        ours, theirs = f"{subject.name}, {OURS}", f"{subject.name}, {subject.rival}"
        yield from ratio(name, rounds, [ours], [theirs])
