"""Handlers far from the store: what they are told, what their replies become, and what of a message can be told."""

import json
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from saga_core import (
    Carried,
    CodecError,
    Compensate,
    CompensateChild,
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Defer,
    DefinitionError,
    Event,
    Execute,
    Failure,
    Options,
    Reply,
    Report,
    RetryPolicy,
    Saga,
    SagaState,
    Skip,
    StartChild,
    StateChanged,
    Step,
    StepDeferred,
    StepError,
    StepFailed,
    StepSkipped,
    StepState,
    StepSucceeded,
    Work,
    addressed,
    answer_event,
    asked_by,
    consequences,
    decode_command,
    decode_work,
    encode_command,
    event_of,
    failure_event,
    failure_of,
    new_saga,
    outstanding,
    reply_of,
    saga_at_work,
    undeliverable,
    within_the_sagas_time,
    work_of,
)
from saga_core.codec import LOOKED_AT
from saga_core.handlers import LONGEST_MESSAGE
from saga_core.payload import DEEPEST, EMPTY

from .notation import BORN, ID, events_of, play, saga_of, shown
from .notation import event_of as happened
from .walks import Walk, walks

property_test = settings(deadline=None, max_examples=60)

RUN, UNDO = Execute(ID, "b", "do_b", 1), Compensate(ID, "b", "undo_b", 2)


def command_of(saga: Saga, step: str) -> Execute | Compensate:
    """Return what is in flight for a step."""
    (command,) = (one for one in outstanding(saga) if one.step == step)
    assert isinstance(command, Execute | Compensate)
    return command


def over_the_wire(saga: Saga, command: Execute | Compensate) -> tuple[Execute | Compensate, Work]:
    body = encode_command(command, work_of(saga, command))
    read = decode_command(body)
    assert isinstance(read, Execute | Compensate)
    return read, decode_work(body)


# What a handler is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "events", "step", "outputs", "skipped"),
    [
        ("a b", "", "a", {}, ()),
        ("a b c", "a ok, b ok", "c", {"a": "a", "b": "b"}, ()),
        ("a b<a c<a d<b+c", "a ok, b ok", "c", {"a": "a"}, ()),
        ("a b<a c<a d<b+c", "a ok, b ok, c ok", "d", {"a": "a", "b": "b", "c": "c"}, ()),
        ("a b<a c<", "a ok", "c", {}, ()),
        ("a b c", "a ok, b skips", "c", {"a": "a", "b": None}, ("b",)),
        ("a b c", "a ok, b ok, c fails", "b", {"a": "a"}, ()),
    ],
)
def test_a_handler_is_told_the_outputs_of_what_its_step_depends_on(
    steps: str, events: str, step: str, outputs: dict[str, str | None], skipped: tuple[str, ...]
) -> None:
    saga = play(saga_of(steps), events).saga
    work = work_of(saga, command_of(saga, step))
    told = {name: msgspec.json.decode(output) for name, output in work.outputs.items()}
    assert told == {name: {"from": of} if of else {} for name, of in outputs.items()}
    assert work.skipped == skipped


def test_the_work_that_travels_with_a_command_is_this_byte_for_byte() -> None:
    step: dict[str, Any] = {"action": "charge", "compensation": "refund"}
    steps = [
        Step(name="a", action="do_a"),
        Step(name="b", action="do_b"),
        Step(name="pay", **step, input={"n": 1}),
    ]
    options = Options(tags={"order": "o-7"})
    saga = new_saga("trip", steps, {"customer": 7}, id=ID, at=BORN, options=options, secret="s3cret")
    saga = play(saga, "a ok, b skips").saga
    command = command_of(saga, "pay")
    work = (
        b'{"name":"trip","created_at":1700000000.0,"tags":{"order":"o-7"},"context":{"customer":7},'
        b'"action":"charge","compensation":"refund","id":"01HZY3V9Q8KRGP9PQ6T47C0ZVV",'
        b'"idempotency_key":"01HZY3V9Q8KRGP9PQ6T47C0ZVV.execute",'
        b'"token":"01HZY3V9Q8W7X6T5S4R3P2N1M0.2.execute.1.%b","input":{"n":1},"output":{},'
        b'"outputs":{"a":{"from":"a"},"b":{}},"skipped":["b"]}'
    ) % saga.token("pay", "execute").rpartition(".")[2].encode()
    assert encode_command(command, work_of(saga, command)) == (
        b'{"operation":"execute","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","action":"charge",'
        b'"attempt":1,"deadline":null,"version":1,"work":' + work + b"}"
    )


def seen_by_a_handler(saga: Saga, command: Execute | Compensate) -> dict[str, object]:
    """Return what a handler sees that looks at everything that it is promised to see."""
    step = saga.step(command.step)
    fields = ["name", "action", "compensation", "input", "id", "state", "compensation_attempt", "output"]
    if isinstance(command, Execute):  # a compensation is not told how many attempts its action took
        fields.append("attempt")
    return {
        "saga": (saga.id, saga.name, saga.created_at, saga.tags, saga.context),
        "step": {field: getattr(step, field) for field in fields},
        "keys": (step.idempotency_key(), step.idempotency_key("compensate")),
    }


def seen_of(saga: Saga, name: str) -> tuple[str, StepState, dict[str, object]]:
    step = saga.step(name)
    return step.name, step.state, step.output


@property_test
@given(walks())
def test_a_handler_far_away_sees_what_it_would_see_at_home(walk: Walk) -> None:
    home = walk.saga
    for command in outstanding(home):
        if isinstance(command, Execute | Compensate):
            read, work = over_the_wire(home, command)
            assert read == command
            away = saga_at_work(read, work)
            there, here = seen_by_a_handler(away, read), seen_by_a_handler(home, command)
            assert there == here
            assert work.token == home.step(command.step).token
            assert (work.id, work.action) == (home.step(command.step).id, home.step(command.step).action)
            step = home.step(command.step)
            operation = "execute" if isinstance(command, Execute) else "compensate"
            assert work.idempotency_key == step.idempotency_key(operation)
            assert [seen_of(away, name) for name in work.outputs] == [
                seen_of(home, name) for name in work.outputs
            ]
            assert set(away.step(command.step).depends_on or ()) == set(work.outputs)


@property_test
@given(walks())
def test_all_that_a_step_depends_on_is_told_and_nothing_else(walk: Walk) -> None:
    plan = walk.saga.plan
    for command in walk.flight():
        if isinstance(command, Execute | Compensate):
            wanted, ahead = set[int](), [plan.position(command.step)]
            while ahead:
                more = set(plan.graph.dependencies[ahead.pop()]) - wanted
                wanted |= more
                ahead += more
            assert set(work_of(walk.saga, command).outputs) == {plan.steps[other].name for other in wanted}


def test_a_compensation_is_told_what_its_action_returned() -> None:
    saga = play(saga_of("a b"), "a ok, b fails").saga
    read, work = over_the_wire(saga, command_of(saga, "a"))
    step = saga_at_work(read, work).step("a")
    assert (step.state, step.compensation_attempt, step.output) == ("compensating", 1, {"from": "a"})


def test_work_that_makes_no_saga_is_a_definition_error() -> None:
    work = work_of(play(saga_of("a b"), "a ok").saga, RUN)
    with pytest.raises(DefinitionError, match="circle: 'b' → 'b'"):
        saga_at_work(RUN, replace(work, outputs={"b": EMPTY}))


@pytest.mark.parametrize("timeout", [None, 5.0, 90.0])
def test_the_time_of_the_saga_bounds_an_attempt_far_away(timeout: float | None) -> None:
    step: Step[Any] = Step(name="a", action="do_a", compensation="undo_a", timeout=timeout)
    saga = new_saga("trip", [step], id=ID, at=BORN, options=Options(timeout=30))
    command = command_of(saga, "a")
    bounded = within_the_sagas_time(saga, command)
    assert bounded == replace(command, deadline=BORN + min(timeout or 30, 30))


def test_where_the_saga_has_no_time_or_has_it_no_more_a_command_is_left_alone() -> None:
    free = play(saga_of("a b!"), "a ok").saga
    over = play(saga_of("a! b", options=Options(timeout=30)), "a ok").saga
    back = play(saga_of("a b", options=Options(timeout=30)), "a ok, b fails").saga
    for saga, step in ((free, "b"), (over, "b"), (back, "a")):
        command = command_of(saga, step)
        assert within_the_sagas_time(saga, command) is command


# What a reply becomes -----------------------------------------------------------------------------------------------

text = st.text(max_size=20)
numbers = (
    st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(10**300, 10**310)
)
values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(text, values, max_size=4)
unusable = st.sampled_from([[1], "text", object(), {"n": float("nan")}, {"\ud800": 1}])
answers = st.none() | objects | st.builds(Skip, text) | st.just(Defer()) | unusable
errors = st.one_of(
    st.builds(StepError, text, text, retryable=st.booleans(), details=st.none() | objects | unusable),
    st.builds(ValueError, text),
    st.just(StepError("long", "x" * 2 * LONGEST_MESSAGE)),
    st.just(ExceptionGroup("both", [ValueError("one"), KeyError("two")])),
)
commands = st.builds(Execute, st.just(ID), text, text, st.integers(0, 2**70)) | st.builds(
    Compensate, st.just(ID), text, text, st.integers(0, 2**70)
)


def replied(command: Execute | Compensate, event: Event) -> Event:
    """Let an answer travel: to a reply, over the wire, and to an event again."""
    reply = decode_command(encode_command(reply_of(command, event)))
    assert isinstance(reply, Reply)
    assert replace(asked_by(reply), action=command.action) == replace(command, deadline=None)
    return event_of(reply, BORN)


@property_test
@given(commands, answers)
def test_a_reply_makes_the_same_event_as_the_handlers_answer(
    command: Execute | Compensate, answer: object
) -> None:
    try:
        event = answer_event(command, answer, BORN)
    except Exception as error:
        event = failure_event(command, failure_of(error), BORN)
    assert replied(command, event) == event


@property_test
@given(commands, errors)
def test_a_reply_makes_the_same_event_as_the_handlers_failure(
    command: Execute | Compensate, error: Exception
) -> None:
    event = failure_event(command, failure_of(error), BORN)
    assert replied(command, event) == event


def test_that_nobody_knows_whether_it_had_its_effect_survives_a_reply() -> None:
    lost = happened("b lost")
    assert replied(RUN, lost) == replace(lost, at=BORN)


def reply_in_json(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "operation": "reply",
        "saga": ID,
        "step": "b",
        "attempt": 1,
        "of": "execute",
        "outcome": "succeeded",
    }
    return json.dumps(fields | changes, separators=(",", ":")).encode()


def read(body: bytes) -> Event:
    reply = decode_command(body)
    assert isinstance(reply, Reply)
    return event_of(reply, BORN)


OK = StepSucceeded("b", 1, EMPTY, BORN)


def failed(code: str, message: str, retryable: bool = False, details: bytes = b"{}") -> StepFailed:
    return StepFailed("b", 1, Failure(code, message, retryable, Raw(details)), BORN)


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ({}, OK),
        ({"output": None}, OK),
        ({"output": {"id": 7}}, StepSucceeded("b", 1, Raw(b'{"id":7}'), BORN)),
        ({"outcome": "skipped", "reason": "paid"}, StepSkipped("b", 1, "paid", BORN)),
        ({"outcome": "skipped", "output": [1]}, StepSkipped("b", 1, "", BORN)),
        ({"outcome": "deferred"}, StepDeferred("b", 1, BORN)),
        ({"outcome": "failed"}, failed("failed", "The reply says no more")),
        ({"outcome": "failed", "error": None}, failed("failed", "The reply says no more")),
        (
            {"outcome": "failed", "error": {"code": "no_funds", "message": "refused"}},
            failed("no_funds", "refused"),
        ),
        (
            {
                "outcome": "failed",
                "error": {
                    "code": "busy",
                    "message": "later",
                    "retryable": True,
                    "details": {"in": 3},
                    "since_next": 1,
                },
            },
            failed("busy", "later", True, b'{"in":3}'),
        ),
        (
            {"outcome": "failed", "error": {"code": "c", "message": "m", "details": None}},
            failed("c", "m"),
        ),
        (
            {"outcome": "failed", "unknown": True},
            replace(failed("failed", "The reply says no more"), unknown=True),
        ),
        ({"error": {"code": "c", "message": "it succeeded all the same"}}, OK),
        ({"of": "compensate"}, CompensationSucceeded("b", 1, BORN)),
        ({"of": "compensate", "output": [1]}, CompensationSucceeded("b", 1, BORN)),
        ({"of": "compensate", "outcome": "skipped"}, CompensationSucceeded("b", 1, BORN)),
        ({"of": "compensate", "outcome": "deferred"}, CompensationDeferred("b", 1, BORN)),
        (
            {"of": "compensate", "outcome": "failed", "error": {"code": "c", "message": "m"}},
            CompensationFailed("b", 1, Failure("c", "m"), BORN),
        ),
        ({"attempt": 2**70}, replace(OK, attempt=2**70)),
        ({"version": 1, "since_next": [{}, None]}, OK),
    ],
    ids=str,
)
def test_a_reply_is_an_event(changes: dict[str, object], event: Event) -> None:
    assert read(reply_in_json(**changes)) == event


@pytest.mark.parametrize("output", [[], [1], "text", 7, True, {"a": {"b": [[]] * 3}}], ids=str)
def test_an_output_that_is_no_object_fails_its_step(output: object) -> None:
    event = read(reply_in_json(output=output))
    if isinstance(output, dict):
        assert event == StepSucceeded("b", 1, Raw(json.dumps(output, separators=(",", ":")).encode()), BORN)
    else:
        assert isinstance(event, StepFailed)
        assert event.error.code == "invalid_payload"
        assert not event.error.retryable
        assert not event.unknown
        assert "The output of step 'b' does not fit dict" in event.error.message


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        (b'{ "a" : 1 ,\n"b":\t[ ] }', b'{"a":1,"b":[]}'),
        (b'{"a":1,"a":2}', b'{"a":2}'),
        (b'{"a":1E5}', b'{"a":100000.0}'),
        (b'{"a":-0.0}', b'{"a":-0.0}'),
        (b'{"a":123456789012345678901234567890}', b'{"a":123456789012345678901234567890}'),
        (b'{"a":"\\u00e9\\ud83d\\ude00"}', '{"a":"é😀"}'.encode()),
    ],
    ids=["blanks", "twice", "exponent", "minus zero", "beyond 64 bits", "escapes"],
)
def test_an_output_is_kept_as_a_handler_at_home_would_have_written_it(written: bytes, kept: bytes) -> None:
    body = reply_in_json()[:-1] + b',"output":' + written + b"}"
    assert read(body) == StepSucceeded("b", 1, Raw(kept), BORN)


@pytest.mark.parametrize("what", ["output", "details"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b'{"a":1e400}', "out of range"),
        (b'{"a":' + b"9" * 5_000 + b"}", "out of range"),
        (b'{"a":' * (DEEPEST + 1) + b"1" + b"}" * (DEEPEST + 1), f"nested deeper than {DEEPEST}"),
        (b"[" * 600 + b"]" * 600, "does not fit dict"),
    ],
    ids=["float", "integer", "deep", "deep list"],
)
def test_what_cannot_be_kept_fails_the_step_and_says_why(what: str, value: bytes, says: str) -> None:
    if what == "output":
        body = reply_in_json()[:-1] + b',"output":' + value + b"}"
    else:
        error = b'"error":{"code":"busy","message":"later","retryable":true,"details":' + value + b"}}"
        body = reply_in_json(outcome="failed")[:-1] + b"," + error
    event = read(body)
    assert isinstance(event, StepFailed)
    assert says in event.error.message
    expected = ("invalid_payload", False) if what == "output" else ("busy", True)
    assert (event.error.code, event.error.retryable) == expected
    assert event.error.details == EMPTY


def test_as_deep_as_at_home_is_not_too_deep() -> None:
    value = b'{"a":' * DEEPEST + b"1" + b"}" * DEEPEST
    assert read(reply_in_json()[:-1] + b',"output":' + value + b"}") == replace(OK, output=Raw(value))


def test_texts_of_a_reply_are_bounded_as_they_are_at_home() -> None:
    long = "é" * 2 * LONGEST_MESSAGE
    event = read(
        reply_in_json(outcome="failed", error={"code": long, "message": long, "details": [long]}),
    )
    assert isinstance(event, StepFailed)
    assert (len(event.error.code), len(event.error.message)) == (LONGEST_MESSAGE, LONGEST_MESSAGE)
    skipped = read(reply_in_json(outcome="skipped", reason=long))
    assert isinstance(skipped, StepSkipped)
    assert len(skipped.reason) == LONGEST_MESSAGE


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "exploded"},
        {"outcome": None},
        {"of": "start_child"},
        {"of": None},
        {"attempt": "1"},
        {"attempt": 1.5},
        {"reason": None},
        {"unknown": 1},
        {"error": "no"},
        {"outcome": "failed", "error": {"code": "no_message"}},
        {"saga": None},
        {"step": 7},
    ],
    ids=str,
)
def test_what_is_no_reply_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CodecError):
        decode_command(reply_in_json(**changes))


def test_a_reply_of_a_newer_version_is_refused_and_its_step_is_known() -> None:
    body = reply_in_json(version=2)
    with pytest.raises(CodecError, match=f"up to version 1, .* version 2; upgrade .*{ID}, step 'b'"):
        decode_command(body)
    assert addressed(body) == replace(RUN, action="")


def test_work_of_a_later_release_may_have_more_in_it() -> None:
    saga = play(saga_of("a b"), "a ok").saga
    work = work_of(saga, RUN)
    body = encode_command(RUN, work).replace(b'"work":{', b'"since_next":{},"work":{"tracing":{"id":1},')
    assert decode_work(body) == work
    assert decode_command(body) == RUN


@pytest.mark.parametrize("missing", [field for field in Work.__struct_fields__ if field != "skipped"])
def test_work_that_lacks_something_is_refused(missing: str) -> None:
    saga = play(saga_of("a b"), "a ok").saga
    message = json.loads(encode_command(RUN, work_of(saga, RUN)))
    del message["work"][missing]
    with pytest.raises(CodecError, match=missing):
        decode_work(json.dumps(message).encode())


def test_a_command_without_work_has_none() -> None:
    with pytest.raises(CodecError, match="no message with work for a participant"):
        decode_work(encode_command(RUN))


@pytest.mark.parametrize(
    ("thing", "data"),
    [
        (
            Reply(ID, "pay", 1, "execute", "succeeded", Raw(b'{"id":7}')),
            b'{"operation":"reply","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","attempt":1,'
            b'"of":"execute","outcome":"succeeded","output":{"id":7},"error":null,"reason":"",'
            b'"unknown":false,"version":1}',
        ),
        (
            Reply(ID, "pay", 2, "compensate", "failed", error=Failure("gone", "no such card", True)),
            b'{"operation":"reply","saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","step":"pay","attempt":2,'
            b'"of":"compensate","outcome":"failed","output":{},"error":{"code":"gone",'
            b'"message":"no such card","retryable":true},"reason":"","unknown":false,"version":1}',
        ),
        (
            StateChanged(ID, "trip", SagaState.COMPENSATED, 4, BORN, {"order": "o-7"}),
            b'{"saga":"01HZY3V9Q8W7X6T5S4R3P2N1M0","name":"trip","state":"compensated","revision":4,'
            b'"at":1700000000.0,"tags":{"order":"o-7"},"version":1}',
        ),
    ],
    ids=["succeeded", "failed", "state"],
)
def test_replies_and_news_are_these_byte_for_byte(thing: Reply | StateChanged, data: bytes) -> None:
    assert encode_command(thing) == data
    if isinstance(thing, Reply):
        assert decode_command(data) == thing
        assert hash(decode_command(data)) == hash(thing)


# Replies that come again, and what nobody can read --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "reply", "caused"),
    [
        ("a ok, b ok", Reply(ID, "b", 1, "execute", "succeeded"), "c#1"),
        ("a ok, b ok", Reply(ID, "b", 1, "execute", "failed"), "c#1"),
        ("a ok, b ok, c ok", Reply(ID, "b", 1, "execute", "succeeded"), ""),
        ("a ok, b ok", Reply(ID, "b", 2, "execute", "succeeded"), ""),
        ("a ok, b ok", Reply(ID, "b", 1, "compensate", "succeeded"), ""),
        ("a ok, b ok, c fails, undo b ok", Reply(ID, "b", 1, "compensate", "succeeded"), "undo a#1"),
        ("a ok, b later, b ok", Reply(ID, "b", 1, "execute", "deferred"), "c#1"),
    ],
)
def test_a_reply_that_comes_again_brings_back_what_it_caused(events: str, reply: Reply, caused: str) -> None:
    outcome = consequences(saga_of("a b c"), events_of(events), reply)
    assert shown(outcome.commands) == caused


NO = Failure("undecodable", "no")


@pytest.mark.parametrize(
    ("command", "event"),
    [
        (RUN, StepFailed("b", 1, NO, BORN, True)),
        (StartChild(ID, "b", 3, ID), StepFailed("b", 3, NO, BORN, True)),
        (UNDO, CompensationFailed("b", 2, NO, BORN)),
        (CompensateChild(ID, "b", 2, ID), CompensationFailed("b", 2, NO, BORN)),
        (Reply(ID, "b", 4, "execute", "deferred"), StepFailed("b", 4, NO, BORN, True)),
        (Reply(ID, "b", 4, "compensate", "succeeded"), CompensationFailed("b", 4, NO, BORN)),
        (Report(ID, "b", 1, ID, SagaState.COMPLETED), StepFailed("b", 1, NO, BORN, True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_saga_is_told_of_what_cannot_be_handled(command: Carried, event: Event | None) -> None:
    assert undeliverable(command, NO, BORN, unknown=True) == event


ABOUT_B = Execute(ID, "b", "", 1)


@pytest.mark.parametrize(
    ("body", "about"),
    [
        (encode_command(RUN), ABOUT_B),
        (encode_command(UNDO), Compensate(ID, "b", "", 2)),
        (encode_command(StartChild(ID, "b", 1, ID)), StartChild(ID, "b", 1, "")),
        (encode_command(CompensateChild(ID, "b", 1, ID)), CompensateChild(ID, "b", 1, "")),
        (encode_command(Report(ID, "b", 1, ID, SagaState.FAILED)), StartChild(ID, "b", 1, "")),
        (reply_in_json(), ABOUT_B),
        (reply_in_json(of="compensate", attempt=7), Compensate(ID, "b", "", 7)),
        (reply_in_json(outcome="exploded", step='"b\\"'), replace(ABOUT_B, step='"b\\"')),
        (json.dumps(json.loads(reply_in_json()), indent=4).encode(), ABOUT_B),
        (reply_in_json()[:-1] + b',"output":{"rate":NaN}}', ABOUT_B),
        (reply_in_json()[:-1] + b',"output":{"name":"\\ud800"}}', ABOUT_B),
        (reply_in_json()[:-1] + b',"output":{"name":"\xff"}}', ABOUT_B),
        (reply_in_json()[:-1] + b',"output":' + b'{"step":' * 5_000 + b"1" + b"}" * 5_001, ABOUT_B),
        (reply_in_json()[:-1] + b',"output":{"saga":"another","step":"c","attempt":9}}', ABOUT_B),
        (reply_in_json()[:-1] + b',"output":"an end too ear', ABOUT_B),
        (reply_in_json()[:-1] + b',"output":"' + b'\\"' * 200_000, ABOUT_B),
        (b'{"output":' + b"[" * 200_000 + b"]" * 200_000 + b"," + reply_in_json()[1:], ABOUT_B),
        (reply_in_json(attempt=1.5), None),
        (reply_in_json(attempt="1"), None),
        (reply_in_json(attempt=-1), None),
        (reply_in_json(step=7), None),
        (reply_in_json(step="\ud800"), None),
        (reply_in_json(of="explode"), None),
        (reply_in_json().replace(b'"saga"', b'"sage"'), None),
        (reply_in_json().replace(ID.encode(), b"\xff"), None),
        (b"[" + reply_in_json() + b"]", None),
        (b"", None),
        (b"\xff", None),
        (b'"', None),
    ],
    ids=count(),
)
def test_which_attempt_a_message_is_about_is_read_from_one_that_cannot_be_read(
    body: bytes, about: Carried | None
) -> None:
    assert addressed(body) == about


def test_an_address_is_looked_for_in_the_first_megabyte() -> None:
    garbage = b'{"output":"' + b"x" * LOOKED_AT
    assert addressed(garbage[:-1000] + b'",' + reply_in_json()[1:]) == ABOUT_B
    assert addressed(garbage + b'",' + reply_in_json()[1:]) is None
    assert addressed(reply_in_json()[:-1] + b"," + garbage[1:]) == ABOUT_B


@property_test
@given(st.binary(max_size=300))
def test_no_bytes_are_too_strange_to_look_for_an_address(body: bytes) -> None:
    addressed(body)
    addressed(b'{"saga":"' + body)


@property_test
@given(st.data())
def test_damage_in_a_payload_hides_no_address(data: st.DataObject) -> None:
    whole = reply_in_json(output={"a": [1, "two", None, {"b": 1.5}]})
    first, last = whole.index(b'{"a"'), len(whole)
    start, end = sorted(data.draw(st.tuples(*[st.integers(first + 1, last)] * 2)))
    noise = data.draw(st.binary(max_size=8))
    if not set(noise) & set(b'"{}[]'):  # which would be JSON of another shape
        assert addressed(whole[:start] + noise) == ABOUT_B
        assert addressed(whole[:start] + noise + whole[end:]) == ABOUT_B


def test_what_a_retry_waits_for_is_not_told_twice() -> None:
    """The second attempt has a command of its own, and a token of its own."""
    policy = {"retry": RetryPolicy(max_attempts=2, initial_delay=0, jitter=0)}
    saga = saga_of("a", a=policy)
    first = work_of(saga, command_of(saga, "a"))
    saga = play(saga, "a busy").saga
    second = work_of(saga, command_of(saga, "a"))
    assert second.token != first.token
    assert second == replace(first, token=second.token)
