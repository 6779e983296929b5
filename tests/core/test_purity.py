"""The core leaves no trace and its events cost the same in sagas of any size.

No reference cycles for the collector, no state between calls, and no work or memory that grows with the steps that an
event does not concern. Cost is counted (calls and bytes), not timed, so that the answer is the same on every machine.
"""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from itertools import product

import pytest
from msgspec.structs import replace

from saga_core import (
    Event,
    RetryPolicy,
    Saga,
    TimePassed,
    Transition,
    consequences,
    decode_event,
    decode_saga,
    encode_event,
    encode_saga,
    fold,
    new_saga,
    outstanding,
    transition,
    wake_at,
)
from saga_core.machine import TABLE

from .notation import BORN, ID, event_of, events_of, play, saga_of, step_of

COURSES = {
    "a b c d-": "a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok, undo a ok",
    "a b<a c*<a d!<b+c e": "a ok, b ok, suspend, child c completed, resume, d later, d ok, e lost, retry, skip e",
    "a< b< c<": "a ok, b later, c busy, wait 60, b lost, undo a busy, wait 60, resolve b compensated",
}
MORE = {name: {"retry": RetryPolicy(jitter=0), "timeout": 30} for name in "bc"}


def use_everything() -> bytes:
    """Lead sagas to their ends by way of storage, and look at all of them on the way."""
    ends = b""
    for words, course in COURSES.items():
        origin = saga_of(words, **({} if "*" in words else MORE))  # type: ignore[arg-type]
        events = events_of(course)
        history = [decode_event(encode_event(event)) for event in events]
        for length in range(len(history) + 1):
            part = decode_saga(encode_saga(fold(origin, history[:length])))
            for command in outstanding(part):
                consequences(origin, history, command)
            assert part.steps[0].name == part.step("a").name == "a"
            assert part.context
            wake_at(part)
        ends += encode_saga(fold(origin, history))
    return ends


def test_driving_sagas_leaves_nothing_for_the_garbage_collector() -> None:
    use_everything()  # what is made once, is made now
    enabled = gc.isenabled()
    gc.disable()
    try:
        gc.collect()
        for _ in range(20):
            use_everything()
        assert gc.collect() == 0
    finally:
        if enabled:
            gc.enable()


def test_the_garbage_collector_changes_nothing() -> None:
    before, enabled = gc.get_threshold(), gc.isenabled()
    try:
        gc.disable()
        without = use_everything()
        gc.enable()
        gc.set_threshold(1, 1, 1)
        with_it = use_everything()
    finally:
        gc.set_threshold(*before)
        if enabled:
            gc.enable()
        else:
            gc.disable()
    assert with_it == without


def test_sagas_that_run_side_by_side_know_nothing_of_each_other() -> None:
    one, other = saga_of("a b"), saga_of("a b")
    play(other, "a ok, b fails, undo a ok")
    assert one == saga_of("a b")
    assert encode_saga(one) == encode_saga(other)


# Cost.


def chain(length: int) -> Saga:
    """A saga in the middle of its way: the events of the examples concern the step `x`, with `w` before it."""
    policy = {"retry": RetryPolicy(jitter=0), "timeout": 60.0, "total_timeout": 600.0}
    half = (length - 2) // 2
    names = [*(f"a{n}" for n in range(half)), "w", "x", *(f"z{n}" for n in range(length - 2 - half))]
    steps = [replace(step_of(name), **(policy if name == "x" else {})) for name in names]
    saga = new_saga("trip", steps, id=ID, at=BORN)
    return play(saga, ", ".join(f"{name} ok" for name in names[: half + 1])).saga


def wide(length: int) -> Saga:
    """A saga whose steps all run side by side; each with a clock."""
    steps = [replace(step_of(f"s{n}<"), timeout=60.0 + n) for n in range(length - 1)]
    return new_saga("trip", [*steps, replace(step_of("x<"), retry=RetryPolicy(jitter=0))], id=ID, at=BORN)


def back(length: int) -> Saga:
    """A chain that is on its way back, and has come to `w`."""
    return play(chain(length), "x fails").saga


CASES: dict[str, tuple[Callable[[int], Saga], str]] = {
    f"{make.__name__}: {event}": (make, event)
    for make, events in (
        (chain, "x ok|x skips|x busy|x fails|x lost|x later|x#9 ok|w ok|undo x ok|suspend|cancel|compensate"),
        (chain, "retry|resume|resolve x completed|resolve x failed|skip x|skip w|wait 1|wait 61"),
        (wide, "x ok|x skips|x busy|x later|suspend|resolve x completed|skip x|wait 1"),
        (
            back,
            "undo w ok|undo w busy|undo w fails|undo w later|undo w#9 ok|suspend|resolve w compensated|w ok|wait 1",
        ),
    )
    for make, event in product([make], events.split("|"))
}


def calls(saga: Saga, event: Event) -> int:
    """Count the calls, of Python and of C, that an event takes."""
    count = 0

    def see(_frame: object, kind: str, _argument: object) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        transition(saga, event)
    finally:
        sys.setprofile(before)
    return count


def kept(saga: Saga, event: Event) -> tuple[int, Transition]:
    """Count the bytes that the answer to an event takes beside those of the saga before it."""
    transition(saga, event)  # the plan keeps what it has once worked out of itself
    tracemalloc.start()
    try:
        answer = transition(saga, event)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return size, answer


@pytest.mark.parametrize(("make", "text"), CASES.values(), ids=CASES)
def test_an_event_costs_the_same_in_a_small_saga_and_in_one_of_1000_steps(
    make: Callable[[int], Saga], text: str
) -> None:
    small, large = make(3 if make is not back else 5), make(1000)
    after = float(text.split()[1]) if text.startswith("wait") else 1
    events = [event_of(text, saga.updated_at + after) for saga in (small, large)]
    answers = [transition(saga, event) for saga, event in zip((small, large), events, strict=True)]
    assert answers[0].ignored is None or answers[1].ignored is not None, "the two are not the same case"
    few, many = calls(small, events[0]), calls(large, events[1])
    assert many <= 1.5 * few


@pytest.mark.parametrize(("make", "text"), CASES.values(), ids=CASES)
def test_what_an_event_adds_to_memory_does_not_grow_with_the_saga(
    make: Callable[[int], Saga], text: str
) -> None:
    saga = make(1000)
    after = float(text.split()[1]) if text.startswith("wait") else 1
    size, answer = kept(saga, event_of(text, saga.updated_at + after))
    assert answer.saga.revision == saga.revision + (answer.ignored is None)
    assert size < 6000  # a list of 1,000 places alone takes 8,000 bytes


def test_what_is_written_of_an_event_does_not_grow_with_the_saga() -> None:
    for event in events_of("s0 ok, undo s0 fails, s0 later, suspend, resolve s0 completed, skip s0, wait 5"):
        assert len(encode_event(event)) < 250


def test_asking_what_is_next_does_not_look_at_every_step() -> None:
    small, large = chain(3), chain(1000)

    def count(saga: Saga) -> int:
        seen = 0

        def see(_frame: object, kind: str, _argument: object) -> None:
            nonlocal seen
            seen += kind in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(see)
        try:
            outstanding(saga)
            wake_at(saga)
        finally:
            sys.setprofile(before)
        return seen

    assert count(large) <= 1.5 * count(small)


def test_every_event_is_answered_in_every_state() -> None:
    """Total: whatever comes, whenever, there is an answer."""
    sagas = [
        play(saga_of("a b c"), text).saga for text in ("", "a ok, b ok, c ok", "a fails", "a ok, b fails")
    ]
    sagas.append(play(sagas[-1], "undo a fails").saga)
    assert {saga.state for saga in sagas} == {"started", "completed", "compensated", "compensating", "failed"}
    texts = (
        "a ok|a fails|a skips|a later|undo a ok|undo a fails|undo a later|child a completed|wait 1|compensate"
    )
    texts += "|cancel|retry|resolve a failed|skip a|suspend|resume"
    events = [event_of(text) for text in texts.split("|")]
    assert {type(event) for event in events} == set(TABLE)
    for saga, event in product(sagas, events):
        answer = transition(saga, event)
        if answer.ignored is None:
            assert answer.saga.revision == saga.revision + 1
            assert answer.saga.state in TABLE[type(event)].leads[saga.state]
        else:
            assert answer.saga is saga
            assert answer.commands == ()
    assert isinstance(event_of("wait 1"), TimePassed)
