"""What an engine remembers of a saga for a second, and what it may be used for."""

import pytest

from saga_amqp.recent import FRESH, Recent
from saga_core import Execute, Outcome, new_saga, outstanding, transition
from saga_core.events import StepSucceeded
from saga_core.payload import EMPTY

from .world import steps

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Remembering:
    """Recent, with a clock and a line to set."""

    def __init__(self) -> None:
        self.now, self.line = 100.0, 1
        self.recent = Recent(lambda: self.now, lambda: self.line)
        self.saga = new_saga("s", steps("a", "b"), id=ID, at=1.0)

    def commit(self) -> Execute:
        """Commit the first step, and return what that causes."""
        answer = transition(self.saga, StepSucceeded("a", 1, EMPTY, 2.0))
        self.saga = answer.saga
        self.recent.keep(Outcome(answer.saga, answer.commands))
        (command,) = answer.commands
        assert isinstance(command, Execute)
        return command


@pytest.fixture
def known() -> Remembering:
    return Remembering()


def test_the_next_message_needs_no_read(known: Remembering) -> None:
    assert known.recent.find(known.commit()) is known.saga


def test_what_others_have_caused_is_not_remembered(known: Remembering) -> None:
    (first,) = outstanding(known.saga)
    assert isinstance(first, Execute)
    known.recent.keep(Outcome(known.saga))
    assert known.recent.find(first) is None


def test_what_is_not_awaited_any_more_is_read(known: Remembering) -> None:
    (first,) = outstanding(known.saga)
    assert isinstance(first, Execute)
    known.recent.keep(Outcome(known.saga, (first,)))
    known.commit()
    assert known.recent.find(first) is None


def test_a_second_later_all_is_read(known: Remembering) -> None:
    command = known.commit()
    known.now += FRESH + 0.01
    assert known.recent.find(command) is None


def test_with_a_new_connection_all_is_read(known: Remembering) -> None:
    command = known.commit()
    known.line += 1
    assert known.recent.find(command) is None


def test_what_has_come_back_is_read(known: Remembering) -> None:
    command = known.commit()
    known.recent.forget(ID)
    assert known.recent.find(command) is None


def test_what_is_old_takes_no_room(known: Remembering) -> None:
    known.commit()
    for number in range(100):
        known.now += FRESH / 2
        saga = new_saga("s", steps("a"), id=f"01ARZ3NDEKTSV4RRFFQ69G5{number:03}", at=1.0)
        known.recent.keep(Outcome(saga, outstanding(saga)))
    assert len(known.recent._left) < 5
