"""What is written is read back; what is not of this library is refused with CodecError and nothing else."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from saga_core import (
    CancelRequested,
    ChildRested,
    ChildSaga,
    CodecError,
    Command,
    Compensate,
    CompensateChild,
    CompensationDeferred,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Options,
    Report,
    ResumeRequested,
    RetryPolicy,
    RetryRequested,
    Saga,
    SagaState,
    SkipRequested,
    StartChild,
    Step,
    StepDeferred,
    StepFailed,
    StepResolved,
    StepSkipped,
    StepSucceeded,
    SuspendRequested,
    TimePassed,
    decode_command,
    decode_event,
    decode_saga,
    encode_command,
    encode_event,
    encode_payload,
    encode_saga,
    fold,
    new_saga,
    transition,
    when,
)

from .notation import BORN, ID, events_of, play, saga_of

property_test = settings(deadline=None)

# The format, byte for byte. What is here is in somebody's queue or database: a change needs a new version.
CHILD = ID[:-1] + "1"
COMMANDS: list[tuple[Command, bytes]] = [
    (
        Execute(ID, "pay", "charge_card", 1),
        b'{"operation":"execute","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","action":"charge_card",'
        b'"attempt":1,"deadline":null,"version":1}',
    ),
    (
        Execute(ID, "pay", "charge_card", 2, 9.5),
        b'{"operation":"execute","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","action":"charge_card",'
        b'"attempt":2,"deadline":9.5,"version":1}',
    ),
    (
        Compensate(ID, "pay", "refund", 2),
        b'{"operation":"compensate","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","action":"refund",'
        b'"attempt":2,"deadline":null,"version":1}',
    ),
    (
        StartChild(ID, "pay", 1, CHILD),
        b'{"operation":"start_child","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","attempt":1,'
        b'"child":"01HZY3V9Q8W7X6T5S4R3P2N1M1","version":1}',
    ),
    (
        CompensateChild(ID, "pay", 1, CHILD),
        b'{"operation":"compensate_child","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","attempt":1,'
        b'"child":"01HZY3V9Q8W7X6T5S4R3P2N1M1","version":1}',
    ),
    (
        Report(ID, "pay", 1, CHILD, SagaState.FAILED, 2),
        b'{"operation":"report","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","attempt":1,'
        b'"child":"01HZY3V9Q8W7X6T5S4R3P2N1M1","state":"failed","asked":2,"version":1}',
    ),
]
EVENTS: list[tuple[Event, bytes]] = [
    (
        StepSucceeded("pay", 1, Raw(b'{"id":7}'), 1.5),
        b'{"type":"step_succeeded","step":"pay","attempt":1,"output":{"id":7},"at":1.5}',
    ),
    (
        StepFailed("pay", 1, Failure("no_funds", "refused"), 1.5),
        b'{"type":"step_failed","step":"pay","attempt":1,"error":{"code":"no_funds",'
        b'"message":"refused"},"at":1.5}',
    ),
    (
        StepFailed("pay", 1, Failure("no_funds", "refused", True, Raw(b'{"left":3}')), 1.5, True),
        b'{"type":"step_failed","step":"pay","attempt":1,"error":{"code":"no_funds","message":"refused",'
        b'"retryable":true,"details":{"left":3}},"at":1.5,"unknown":true}',
    ),
    (
        StepSkipped("pay", 1, "paid", 1.5),
        b'{"type":"step_skipped","step":"pay","attempt":1,"reason":"paid","at":1.5}',
    ),
    (StepDeferred("pay", 1, 1.5), b'{"type":"step_deferred","step":"pay","attempt":1,"at":1.5}'),
    (
        CompensationSucceeded("pay", 1, 1.5),
        b'{"type":"compensation_succeeded","step":"pay","attempt":1,"at":1.5}',
    ),
    (
        CompensationFailed("pay", 2, Failure("gone", "no such card"), 1.5),
        b'{"type":"compensation_failed","step":"pay","attempt":2,"error":{"code":"gone",'
        b'"message":"no such card"},"at":1.5}',
    ),
    (
        CompensationDeferred("pay", 1, 1.5),
        b'{"type":"compensation_deferred","step":"pay","attempt":1,"at":1.5}',
    ),
    (
        ChildRested("pay", 1, CHILD, SagaState.COMPLETED, 1.5, 3),
        b'{"type":"child_rested","step":"pay","attempt":1,"child":"01HZY3V9Q8W7X6T5S4R3P2N1M1",'
        b'"state":"completed","at":1.5,"asked":3}',
    ),
    (TimePassed(1.5), b'{"type":"time_passed","at":1.5}'),
    (
        CompensationRequested("a person asked", 1.5),
        b'{"type":"compensation_requested","reason":"a person asked","at":1.5}',
    ),
    (
        CompensationRequested("a person asked", 1.5, "Ann", 2),
        b'{"type":"compensation_requested","reason":"a person asked","at":1.5,"by":"Ann","attempt":2}',
    ),
    (
        CancelRequested("a person asked", 1.5, "Ann"),
        b'{"type":"cancel_requested","reason":"a person asked","at":1.5,"by":"Ann"}',
    ),
    (
        RetryRequested("a person asked", 1.5, "Ann"),
        b'{"type":"retry_requested","reason":"a person asked","at":1.5,"by":"Ann"}',
    ),
    (
        StepResolved("pay", "completed", "a person asked", 1.5, "Ann", Raw(b'{"id":7}')),
        b'{"type":"step_resolved","step":"pay","state":"completed","reason":"a person asked","at":1.5,'
        b'"by":"Ann","output":{"id":7}}',
    ),
    (
        StepResolved("pay", "failed", "a person asked", 1.5),
        b'{"type":"step_resolved","step":"pay","state":"failed","reason":"a person asked","at":1.5}',
    ),
    (
        SkipRequested("pay", "a person asked", 1.5, "Ann"),
        b'{"type":"skip_requested","step":"pay","reason":"a person asked","at":1.5,"by":"Ann"}',
    ),
    (
        SuspendRequested("a person asked", 1.5, "Ann"),
        b'{"type":"suspend_requested","reason":"a person asked","at":1.5,"by":"Ann"}',
    ),
    (
        ResumeRequested("a person asked", 1.5, "Ann"),
        b'{"type":"resume_requested","reason":"a person asked","at":1.5,"by":"Ann"}',
    ),
]
PLAN = (
    b'{"plan":{"id":"01HZY3V9Q8W7X6T5S4R3P2N1M0","name":"trip","steps":['
    b'{"name":"a","action":"do_a","compensation":"undo_a","input":{"for":"a"}},'
    b'{"name":"b","action":"do_b","input":{"for":"b"}}],'
    b'"context":{"customer":7},"created_at":1700000000.0},'
)
RICH = play(
    new_saga(
        "trip",
        [
            Step(
                name="a",
                action="do_a",
                compensation="undo_a",
                depends_on=(),
                when=~when("customer.vip", "in", (True, 1.5, "x")),
                retry=RetryPolicy(None, 2, 3, 60, 0, ("broken",)),
                compensation_retry=RetryPolicy(max_attempts=9),
                timeout=5,
                total_timeout=50,
                compensation_timeout=6,
                pivot=True,
            ),
            Step(
                name="b",
                child=ChildSaga("inner", [Step(name="x", action="do_x")], {"n": 1}, Options(priority=7)),
            ),
        ],
        id=ID,
        at=BORN,
        options=Options(
            start_at=BORN, timeout=99, compensation_order="sequential", priority=9, tags={"order": "o-7"}
        ),
        secret="s3cret",
    ),
    "a busy, suspend, skip b",
).saga
SAGAS: list[tuple[Saga, bytes]] = [
    (
        saga_of("a b-"),
        PLAN + b'"state":"started","revision":0,"progress":[{"state":"started","attempt":1},{}],'
        b'"updated_at":1700000000.0}',
    ),
    (
        play(saga_of("a b-"), "a ok, b fails, undo a fails").saga,
        PLAN + b'"state":"failed","revision":3,"progress":['
        b'{"state":"failed","attempt":1,"compensation_attempt":1,"output":{"from":"a"},'
        b'"error":{"code":"broken","message":"undo_a is broken","details":{"seen":1}},'
        b'"executed_at":1700000001.0},'
        b'{"state":"failed","attempt":1,'
        b'"error":{"code":"broken","message":"do_b is broken","details":{"seen":1}},'
        b'"executed_at":1700000002.0}],"updated_at":1700000003.0,"completed_at":1700000003.0}',
    ),
    (
        RICH,
        b'{"plan":{"id":"01HZY3V9Q8W7X6T5S4R3P2N1M0","name":"trip","steps":['
        b'{"name":"a","action":"do_a","compensation":"undo_a","depends_on":[],'
        b'"when":{"path":["customer","vip"],"test":"in","value":[true,1.5,"x"],"negated":true},'
        b'"retry":{"max_attempts":null,"initial_delay":2.0,"multiplier":3.0,"max_delay":60.0,"jitter":0.0,'
        b'"retry_on":["broken"]},"compensation_retry":{"max_attempts":9},"timeout":5.0,"total_timeout":50.0,'
        b'"compensation_timeout":6.0,"pivot":true},'
        b'{"name":"b","child":{"name":"inner","steps":[{"name":"x","action":"do_x"}],"inherits":false,'
        b'"context":{"n":1},"options":{"priority":7}}}],"context":{},"created_at":1700000000.0,'
        b'"options":{"start_at":1700000000.0,"timeout":99.0,"compensation_order":"sequential","priority":9,'
        b'"tags":{"order":"o-7"}},"secret":"s3cret"},"state":"started","revision":3,"progress":['
        b'{"state":"started","attempt":2,"error":{"code":"broken","message":"do_a is broken","retryable":true,'
        b'"details":{"seen":1}},"executed_at":1700000001.0,"until":1700000003.0,"expires":1700000050.0,'
        b'"waiting":true},{"skip":true}],"updated_at":1700000003.0,"suspended":true}',
    ),
]

Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
COMMAND: Codec = (encode_command, decode_command)
EVENT: Codec = (encode_event, decode_event)
SAGA: Codec = (encode_saga, decode_saga)
CODECS = [COMMAND, EVENT, SAGA]
GOLDEN = [
    pytest.param(codec, thing, data, id=f"{type(thing).__name__}-{number}")
    for codec, table in ((COMMAND, COMMANDS), (EVENT, EVENTS), (SAGA, SAGAS))
    for number, (thing, data) in enumerate(table)
]
WITH_TEXT = [case for case in GOLDEN if not isinstance(case.values[1], TimePassed)]
DECODERS = pytest.mark.parametrize("decode", [decode for _, decode in CODECS])


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_the_format_is_this_byte_for_byte(codec: Codec, thing: object, data: bytes) -> None:
    encode, decode = codec
    assert encode(thing) == data
    assert decode(data) == thing
    assert encode(decode(data)) == data


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_fields_unknown_to_this_release_are_ignored(codec: Codec, thing: object, data: bytes) -> None:
    _, decode = codec
    assert decode(with_more_fields(data)) == thing


def with_more_fields(data: bytes) -> bytes:
    """Put fields of a later release into every object whose fields are ours; a payload's are the user's."""

    def grow(value: Any) -> Any:
        if isinstance(value, dict):
            payloads = ("input", "context", "output", "details", "tags")
            grown = {name: inner if name in payloads else grow(inner) for name, inner in value.items()}
            return {"since_next": [{}, None], **grown, "tracing": {"id": 1}}
        return [grow(one) for one in value] if isinstance(value, list) else value

    return json.dumps(grow(json.loads(data)), separators=(",", ":")).encode()


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_the_order_of_fields_does_not_matter(codec: Codec, thing: object, data: bytes) -> None:
    _, decode = codec
    backwards = {key: value for key, value in reversed(json.loads(data).items())}
    assert decode(json.dumps(backwards, separators=(",", ":")).encode()) == thing


def test_a_message_without_a_version_is_of_the_first() -> None:
    command, data = COMMANDS[0]
    assert decode_command(data.replace(b',"version":1', b"")) == command


@pytest.mark.parametrize("version", [2, 3, 10**30])
@pytest.mark.parametrize(("command", "data"), COMMANDS)
def test_a_message_of_a_newer_version_is_refused(command: Command, data: bytes, version: int) -> None:
    newer = data.replace(b'"version":1', b'"version":%d' % version)
    with pytest.raises(
        CodecError, match=rf"up to version 1, .* version {version}; upgrade this engine .*{ID}, step 'pay'"
    ):
        decode_command(newer)


def test_an_output_of_nothing_is_written_the_same_from_memory_and_from_a_store() -> None:
    saga = saga_of("a b")
    for output in (None, {}):
        event = StepSucceeded("a", 1, encode_payload(output, ""), BORN + 1)
        stored = decode_event(encode_event(event))
        assert encode_saga(fold(saga, [event])) == encode_saga(fold(saga, [stored]))


# What is not ours.


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_every_truncation_is_refused(codec: Codec, thing: object, data: bytes) -> None:
    _, decode = codec
    for length in range(len(data)):
        with pytest.raises(CodecError):
            decode(data[:length])


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_any_byte_may_change_and_nothing_but_codec_error_comes_of_it(
    codec: Codec, thing: object, data: bytes
) -> None:
    _, decode = codec
    for place in range(len(data)):
        for byte in (0x00, 0x22, 0x2C, 0x5C, 0x7D, 0x80, 0xC3, 0xFF):
            refused_or_read(decode, data[:place] + bytes([byte]) + data[place + 1 :])


def refused_or_read(decode: Callable[[bytes], Any], data: bytes) -> None:
    with suppress(CodecError):
        decode(data)


@DECODERS
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"null",
        b"{}",
        b"[]",
        b"0",
        b'"operation"',
        b"{'operation':'execute'}",
        b'{"operation":"explode"}',
        b'{"type":"explosion"}',
        b'{"operation":"execute"}',
        b'{"type":"step_succeeded"}',
        b'{"operation":["execute"]}',
        b'{"type":null}',
        b'{"plan":{}}',
        b"NaN",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b"\x00",
        b"\xff",
        b'"\xff"',
        b'{"\xff":1}',
    ],
)
def test_what_is_no_message_of_this_library_is_refused(decode: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(CodecError, match=r"^This is no (message|event|saga) of this library: "):
        decode(data)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (COMMANDS[0][1].replace(b'"attempt":1', b'"attempt":"1"'), "attempt"),
        (COMMANDS[0][1].replace(b'"attempt":1', b'"attempt":1.5'), "attempt"),
        (COMMANDS[0][1].replace(b'"pay"', b"null"), "step"),
        (COMMANDS[0][1].replace(b'"step":"pay",', b""), "step"),
        (COMMANDS[0][1].replace(b'"version":1', b'"version":"1"'), "version"),
        (COMMANDS[0][1].replace(b'"execute"', b'"explode"'), "operation"),
    ],
)
def test_the_error_names_the_field(data: bytes, field: str) -> None:
    with pytest.raises(CodecError, match=f"This is no message of this library: .*{field}"):
        decode_command(data)


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"])
@pytest.mark.parametrize(("codec", "thing", "data"), WITH_TEXT)
def test_text_that_is_not_utf8_is_refused(codec: Codec, thing: object, data: bytes, text: bytes) -> None:
    _, decode = codec
    for ours in (b'"pay"', b'"a person asked"', b'"do_a"'):
        data = data.replace(ours, b'"' + text + b'"')
    with pytest.raises(CodecError, match="utf-8"):
        decode(data)


@DECODERS
@pytest.mark.parametrize("depth", [2_000, 1_000_000])
@pytest.mark.parametrize(
    "opening", [b"[", b'{"a":', b'{"plan":', b'{"output":', b'{"type":', b'[{"operation":']
)
def test_deep_nesting_is_refused(decode: Callable[[bytes], Any], depth: int, opening: bytes) -> None:
    with pytest.raises(CodecError):
        decode(opening * depth)


@pytest.mark.parametrize(("codec", "thing", "data"), GOLDEN)
def test_deep_nesting_in_a_field_is_refused(codec: Codec, thing: object, data: bytes) -> None:
    _, decode = codec
    for deep in (b"[" * 2000 + b"]" * 2000, b'{"a":' * 2000 + b"1" + b"}" * 2000):
        with pytest.raises(CodecError):
            decode(data[:-1] + b',"unknown":' + deep + b"}")
        with pytest.raises(CodecError):
            decode(b'{"output":' + deep + b',"context":' + deep + b"," + data[1:])


@property_test
@given(st.binary(max_size=200))
@example(b'{"operation":"execute"')
def test_random_bytes_are_refused(data: bytes) -> None:
    for _, decode in CODECS:
        with pytest.raises(CodecError):
            decode(data)


@property_test
@given(st.data())
def test_a_damaged_message_gives_codec_error_and_nothing_else(data: st.DataObject) -> None:
    codec, _, whole = data.draw(st.sampled_from([param.values for param in GOLDEN]))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    refused_or_read(codec[1], whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])


@pytest.mark.parametrize(
    ("kept", "damaged"),
    [
        (b'"max_attempts":7', b'"max_attempts":0'),
        (b'"initial_delay":2.0', b'"initial_delay":-2.0'),
        (b'"priority":4', b'"priority":40'),
        (b'"timeout":60.0', b'"timeout":-60.0'),
        (b'"depends_on":[]', b'"depends_on":["b"]'),
        (b'"progress":[', b'"progress":[{},'),
        (ID.encode(), b"order-7"),
        (b'"state":"started","attempt":1', b'"state":"started","attempt":-1'),
        (b'"state":"started","attempt":1', b'"state":"started","attempt":4294967296'),
    ],
)
def test_a_saga_whose_definition_makes_no_sense_is_refused(kept: bytes, damaged: bytes) -> None:
    policy = RetryPolicy(max_attempts=7, initial_delay=2)
    steps = [Step(name="a", action="do", retry=policy, depends_on=()), Step(name="b", action="do")]
    data = encode_saga(new_saga("trip", steps, id=ID, at=BORN, options=Options(priority=4, timeout=60)))
    assert data.count(kept) == 1
    with pytest.raises(CodecError):
        decode_saga(data.replace(kept, damaged))


# Round trips.

text = st.text(max_size=20)
attempts = st.integers(0, 2**70)
times = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | times | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
Object = dict[str, object]
objects = st.dictionaries(text, json_values, max_size=4)
payloads = objects.map(lambda value: encode_payload(value, ""))
failures = st.builds(Failure, text, text, st.booleans(), payloads) | st.builds(Failure, text, text)
WISHES = (CancelRequested, RetryRequested, SuspendRequested, ResumeRequested)
saga_states = st.sampled_from(list(SagaState))
deadlines = st.none() | times
commands = st.one_of(
    st.builds(Execute, text, text, text, attempts, deadlines),
    st.builds(Compensate, text, text, text, attempts, deadlines),
    st.builds(StartChild, text, text, attempts, text),
    st.builds(CompensateChild, text, text, attempts, text),
    st.builds(Report, text, text, attempts, text, saga_states, attempts),
)
events = st.one_of(
    st.builds(StepSucceeded, text, attempts, payloads, times),
    st.builds(StepFailed, text, attempts, failures, times, st.booleans()),
    st.builds(StepSkipped, text, attempts, text, times),
    st.builds(StepDeferred, text, attempts, times),
    st.builds(CompensationSucceeded, text, attempts, times),
    st.builds(CompensationFailed, text, attempts, failures, times),
    st.builds(CompensationDeferred, text, attempts, times),
    st.builds(ChildRested, text, attempts, text, saga_states, times, attempts),
    st.builds(TimePassed, times),
    st.builds(CompensationRequested, text, times, text, attempts),
    *(st.builds(kind, text, times, text) for kind in WISHES),
    st.builds(
        StepResolved,
        text,
        st.sampled_from(["completed", "failed", "compensated"]),
        text,
        times,
        text,
        payloads,
    ),
    st.builds(SkipRequested, text, text, times, text),
)


def test_every_kind_of_command_and_event_has_its_bytes_here() -> None:
    assert {type(command) for command, _ in COMMANDS} == set(Command.__args__)  # type: ignore[attr-defined]
    assert {type(event) for event, _ in EVENTS} == set(Event.__args__)  # type: ignore[attr-defined]


@property_test
@given(commands)
def test_every_command_comes_back_from_the_wire(command: Command) -> None:
    data = encode_command(command)
    assert decode_command(data) == command
    assert encode_command(decode_command(data)) == data
    assert json.loads(data)["step"] == command.step


@property_test
@given(events)
def test_every_event_comes_back_from_a_history(event: Event) -> None:
    data = encode_event(event)
    assert decode_event(data) == event
    assert encode_event(decode_event(data)) == data
    assert json.loads(data)["at"] == event.at


@property_test
@given(events, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_an_event_at_no_time_is_answered_and_kept_in_no_history(event: Event, at: float) -> None:
    event = replace(event, at=at)
    transition(saga_of("a b"), replace(event, step="a") if hasattr(event, "step") else event)
    with pytest.raises(CodecError, match=f"^{type(event).__name__} happened at {at}[?]"):
        encode_event(event)


@property_test
@given(objects, objects, times)
def test_every_payload_comes_back_from_a_saga(context: Object, input: Object, at: float) -> None:
    saga = new_saga("trip", [Step(name="é", action="行", input=input)], context, id=ID, at=at)
    data = encode_saga(saga)
    back = decode_saga(data)
    assert back == saga
    assert encode_saga(back) == data
    assert (back.context, back.steps[0].input, back.created_at) == (context, input, at)
    # Another reader than ours reads the same.
    assert json.loads(data)["plan"]["context"] == context


def test_the_history_of_a_saga_is_enough_to_build_it_again() -> None:
    events = events_of("a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok, undo a ok")
    stored = [encode_event(event) for event in events]
    saga = fold(decode_saga(encode_saga(saga_of("a b c"))), map(decode_event, stored))
    assert encode_saga(saga) == encode_saga(fold(saga_of("a b c"), events))
