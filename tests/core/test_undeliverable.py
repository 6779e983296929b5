"""What a message that cannot be handled means for its saga."""

import pytest

from saga_core import (
    Carried,
    Compensate,
    CompensateChild,
    CompensationFailed,
    Event,
    Execute,
    Failure,
    Reply,
    Report,
    SagaState,
    StartChild,
    StepFailed,
    addressed,
    encode_command,
    undeliverable,
)

ID, CHILD, AT = "01ARZ3NDEKTSV4RRFFQ69G5FAV", "01BX5ZZKBKACTAV9WEVGEMMVRZ", 1_700_000_000.0
ERROR = Failure("undecodable", "it cannot be read")

FAILED = StepFailed("a", 2, ERROR, AT, unknown=True)
NOT_UNDONE = CompensationFailed("a", 2, ERROR, AT)

MEANT: list[tuple[Carried, Event | None]] = [
    (Execute(ID, "a", "do.a", 2), FAILED),
    (Compensate(ID, "a", "undo.a", 2), NOT_UNDONE),
    (StartChild(ID, "a", 2, CHILD), FAILED),
    (CompensateChild(ID, "a", 2, CHILD), NOT_UNDONE),
    (Reply(ID, "a", 2, "execute", "succeeded"), FAILED),
    (Reply(ID, "a", 2, "compensate", "succeeded"), NOT_UNDONE),
    (Report(ID, "a", 2, CHILD, SagaState.COMPLETED), FAILED),
    (Report(ID, "a", 1, CHILD, SagaState.COMPENSATED, asked=2), NOT_UNDONE),
    (Report(ID, "a", 1, CHILD, SagaState.FAILED, asked=2), NOT_UNDONE),
]


@pytest.mark.parametrize(("command", "event"), MEANT)
def test_the_attempt_that_it_is_about_has_failed(command: Carried, event: Event) -> None:
    assert undeliverable(command, ERROR, AT, unknown=True) == event


@pytest.mark.parametrize(("command", "event"), MEANT)
def test_which_attempt_it_is_about_can_be_read_from_what_a_later_release_sends(
    command: Carried, event: Event
) -> None:
    body = (
        encode_command(command)[:-1] + b',"version":99,"deadline":[],"output":1,"state":"asleep","more":{}}'
    )
    about = addressed(body)
    assert about is not None
    assert undeliverable(about, ERROR, AT, unknown=True) == event


def test_a_child_that_waits_for_a_person_fails_no_parent() -> None:
    report = Report(ID, "a", 2, CHILD, SagaState.FAILED)
    assert undeliverable(report, ERROR, AT, unknown=True) is None


def test_whether_it_may_have_had_its_effect_is_told() -> None:
    event = undeliverable(Execute(ID, "a", "do.a", 2), ERROR, AT, unknown=False)
    assert event == StepFailed("a", 2, ERROR, AT, unknown=False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"operation":"execute","saga":"s","step":"a"}',
        b'{"operation":"execute","saga":"s","step":"a","attempt":"first"}',
        b'{"operation":"dance","saga":"s","step":"a","attempt":1}',
    ],
)
def test_nothing_is_made_up_about_what_cannot_be_read_at_all(body: bytes) -> None:
    assert addressed(body) is None
