"""Histories: what they lead to, and what one message of the past has caused."""

import pytest

from saga_core import (
    ChildRested,
    Command,
    Compensate,
    CompensateChild,
    Execute,
    Report,
    SagaState,
    StartChild,
    caused_by,
    consequences,
    fold,
    outstanding,
)

from .notation import BORN, ID, event_of, events_of, saga_of, shown

RUN, UNDO = Execute(ID, "b", "do_b", 1), Compensate(ID, "b", "undo_b", 1)
FORK = "a b<a c<b d<b"


@pytest.mark.parametrize(
    ("events", "command", "caused"),
    [
        ("a ok, b ok", RUN, "c#1, d#1"),
        ("a ok, b ok, c ok", RUN, "d#1"),
        ("a ok, b ok, c ok, d ok", RUN, ""),
        ("a ok, b skips", RUN, "c#1, d#1"),
        ("a ok, b fails", RUN, "undo a#1"),
        ("a ok, b lost", RUN, "undo b#1"),
        ("a ok, b later", RUN, ""),
        ("a ok, b later, b ok", RUN, "c#1, d#1"),
        ("a ok, b ok, compensate, c ok, d fails, undo c ok, undo b ok", UNDO, "undo a#1"),
        ("a ok, b ok, compensate, c ok, d fails, undo c ok, undo b fails", UNDO, ""),
        ("a ok, b ok, compensate, c ok, d fails, undo c ok, undo b later", UNDO, ""),
        ("a ok, b ok", UNDO, ""),
        ("a ok", RUN, ""),
        ("a ok, b ok", Execute(ID, "b", "do_b", 2), ""),
        ("a ok, b ok", Execute(ID, "c", "do_c", 1), ""),
        ("a ok, b ok", StartChild(ID, "b", 1, ID), ""),
        ("a ok, b ok", CompensateChild(ID, "b", 1, ID), ""),
        ("a ok, b ok", Report(ID, "b", 1, ID, SagaState.COMPLETED), ""),
    ],
)
def test_a_message_that_comes_again_brings_back_what_its_result_caused(
    events: str, command: Command, caused: str
) -> None:
    assert shown(consequences(saga_of(FORK), events_of(events), command).commands) == caused


def test_a_report_that_comes_again_brings_back_what_it_caused() -> None:
    origin = saga_of("a* b<a c<a")
    report = Report(ID, "a", 1, ID, SagaState.COMPLETED)
    assert shown(consequences(origin, events_of("child a completed"), report).commands) == "b#1, c#1"
    assert shown(consequences(origin, events_of("child a completed, b ok"), report).commands) == "c#1"
    assert consequences(origin, [], report).commands == ()


def test_what_comes_again_and_was_ignored_brings_back_nothing_less() -> None:
    """A history holds what was applied. Where it holds a duplicate too, that has caused nothing."""
    events = [*events_of("a ok, b ok"), event_of("b ok", BORN + 9)]
    assert shown(consequences(saga_of(FORK), events, RUN).commands) == "c#1, d#1"


@pytest.mark.parametrize(
    ("events", "revision", "caused"),
    [
        ("", 0, "a#1"),
        ("a ok", 0, ""),
        ("a ok", 1, "b#1"),
        ("a ok, b ok", 1, ""),
        ("a ok, b ok", 2, "c#1, d#1"),
        ("a ok, b ok, d ok", 2, "c#1"),
        ("a ok, b ok, d ok", 3, ""),
        ("a ok, b ok, d ok", 4, ""),
        ("a ok, suspend, b ok", 3, ""),
        ("a ok, suspend, b ok, resume", 4, "c#1, d#1"),
        ("a ok, compensate, b ok", 2, ""),
        ("a ok, compensate, b ok", 3, "undo b#1"),
    ],
)
def test_a_commit_that_nobody_published_brings_back_what_it_caused(
    events: str, revision: int, caused: str
) -> None:
    assert shown(caused_by(saga_of(FORK), events_of(events), revision).commands) == caused


def test_what_was_ignored_is_no_revision_of_its_own() -> None:
    events = [*events_of("a ok"), event_of("a ok", BORN + 9)]
    assert shown(caused_by(saga_of(FORK), events, 1).commands) == "b#1"


def test_folding_starts_at_any_moment() -> None:
    events = events_of("a ok, b later, b ok, c ok, d fails, undo c ok, undo b ok, undo a ok")
    whole = fold(saga_of(FORK), events)
    assert whole.is_compensated
    for moment in range(len(events)):
        assert fold(fold(saga_of(FORK), events[:moment]), events[moment:]) == whole


def test_a_history_of_a_child_tells_its_undoing_from_its_end() -> None:
    origin = saga_of("a* b")
    events = events_of("child a completed, b fails")
    undone = ChildRested("a", 1, ID, SagaState.COMPENSATED, BORN + 9)
    saga = fold(origin, [*events, undone])
    assert saga.is_compensated
    first = Report(ID, "a", 1, ID, SagaState.COMPLETED)
    assert consequences(origin, [*events, undone], first).commands == ()


def test_each_report_of_a_child_brings_back_what_it_has_caused_itself() -> None:
    """A child that completed and was undone since has told so twice, both times of the same attempt."""
    origin = saga_of("a* b< c<")
    undone = ChildRested("a", 1, ID, SagaState.COMPENSATED, BORN + 9, asked=1)
    events = [*events_of("b ok, c fails, child a completed"), undone]
    first = Report(ID, "a", 1, ID, SagaState.COMPLETED)
    last = Report(ID, "a", 1, ID, SagaState.COMPENSATED, asked=1)
    assert shown(outstanding(fold(origin, events))) == "undo b#1"
    assert shown(consequences(origin, events, first).commands) == "undo b#1"
    assert consequences(origin, events, last).commands == ()
