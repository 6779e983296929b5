"""What a linear saga does, by example. `notation` says how to read the tables."""

import tracemalloc

import pytest

from saga_core import (
    Compensate,
    CompensateChild,
    Event,
    Execute,
    Report,
    Saga,
    SagaState,
    StartChild,
    Step,
    Transition,
    UnknownStepError,
    awaits,
    consequences,
    decode_saga,
    encode_saga,
    fold,
    new_saga,
    outstanding,
    shortcut,
    transition,
)
from saga_core.machine import decide

from .notation import BORN, ID, error_of, event_of, events_of, play, saga_of, shown, states

EXAMPLES = {
    # The way forward.
    "a new saga has its first step in flight": (
        "a b c", "", "started", "a started, b pending, c pending", "a#1"),
    "the next step follows": (
        "a b c", "a ok", "started", "a completed, b started, c pending", "b#1"),
    "the last step is in flight": (
        "a b c", "a ok, b ok", "started", "a completed, b completed, c started", "c#1"),
    "all steps done": (
        "a b c", "a ok, b ok, c ok", "completed", "a completed, b completed, c completed", ""),
    "one step done": (
        "a", "a ok", "completed", "a completed", ""),
    # A step fails.
    "the first fails: nothing to undo": (
        "a b c", "a fails", "compensated", "a failed, b pending, c pending", ""),
    "the only one fails: nothing to undo": (
        "a", "a fails", "compensated", "a failed", ""),
    "the second fails: the first is undone": (
        "a b c", "a ok, b fails", "compensating", "a compensating, b failed, c pending", "undo a#1"),
    "the second fails, the first was undone": (
        "a b c", "a ok, b fails, undo a ok", "compensated", "a compensated, b failed, c pending", ""),
    "the last fails: the one before it is undone first": (
        "a b c", "a ok, b ok, c fails", "compensating", "a completed, b compensating, c failed", "undo b#1"),
    "the last fails, then the first is undone": (
        "a b c", "a ok, b ok, c fails, undo b ok",
        "compensating", "a compensating, b compensated, c failed", "undo a#1"),
    "the last fails, all was undone": (
        "a b c", "a ok, b ok, c fails, undo b ok, undo a ok",
        "compensated", "a compensated, b compensated, c failed", ""),
    # Steps without a compensation are passed over.
    "in the middle": (
        "a b- c", "a ok, b ok, c fails", "compensating", "a compensating, b completed, c failed", "undo a#1"),
    "at the end": (
        "a b c-", "a ok, b ok, c ok, compensate",
        "compensating", "a completed, b compensating, c completed", "undo b#1"),
    "at the beginning": (
        "a- b c", "a ok, b ok, c fails, undo b ok",
        "compensated", "a completed, b compensated, c failed", ""),
    "none has one: nothing to undo": (
        "a- b- c", "a ok, b ok, c fails", "compensated", "a completed, b completed, c failed", ""),
    "what failed has none": (
        "a b-", "a ok, b fails", "compensating", "a compensating, b failed", "undo a#1"),
    # Somebody asks for compensation.
    "while the first step runs: it is awaited": (
        "a b", "compensate", "compensating", "a started, b pending", "a#1"),
    "while the first step runs, which succeeds: it is undone": (
        "a b", "compensate, a ok", "compensating", "a compensating, b pending", "undo a#1"),
    "while the first step runs, which succeeds and has no compensation": (
        "a- b", "compensate, a ok", "compensated", "a completed, b pending", ""),
    "while the first step runs, which fails: nothing to undo": (
        "a b", "compensate, a fails", "compensated", "a failed, b pending", ""),
    "while a later step runs: it is awaited, nothing else starts": (
        "a b c", "a ok, compensate", "compensating", "a completed, b started, c pending", "b#1"),
    "while a later step runs, which succeeds: it is undone first": (
        "a b c", "a ok, compensate, b ok",
        "compensating", "a completed, b compensating, c pending", "undo b#1"),
    "while a later step runs, which fails": (
        "a b c", "a ok, compensate, b fails",
        "compensating", "a compensating, b failed, c pending", "undo a#1"),
    "while the last step runs, which succeeds": (
        "a b", "a ok, compensate, b ok", "compensating", "a completed, b compensating", "undo b#1"),
    "after all is done": (
        "a b", "a ok, b ok, compensate", "compensating", "a completed, b compensating", "undo b#1"),
    "after all is done, to the end": (
        "a b", "a ok, b ok, compensate, undo b ok, undo a ok",
        "compensated", "a compensated, b compensated", ""),
    "after all is done, and nothing can be undone": (
        "a- b-", "a ok, b ok, compensate", "compensated", "a completed, b completed", ""),
    # A compensation fails.
    "it rests in failed, and what is before it stays": (
        "a b c", "a ok, b ok, c fails, undo b fails", "failed", "a completed, b failed, c failed", ""),
    "the last one to be undone fails": (
        "a b c", "a ok, b ok, c fails, undo b ok, undo a fails",
        "failed", "a failed, b compensated, c failed", ""),
    "asked again, it goes on from there": (
        "a b c", "a ok, b ok, c fails, undo b fails, compensate",
        "compensating", "a completed, b compensating, c failed", "undo b#2"),
    "asked again, and it works": (
        "a b c", "a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok",
        "compensating", "a compensating, b compensated, c failed", "undo a#1"),
    "asked again, and it fails again": (
        "a b", "a ok, b fails, undo a fails, compensate, undo a#2 fails", "failed", "a failed, b failed", ""),
    "asked a third time": (
        "a b", "a ok, b fails, undo a fails, compensate, undo a#2 fails, compensate",
        "compensating", "a compensating, b failed", "undo a#3"),
    "asked again, it ends well": (
        "a b", "a ok, b fails, undo a fails, compensate, undo a#2 ok",
        "compensated", "a compensated, b failed", ""),
    "what was undone is not undone again": (
        "a b c",
        "a ok, b ok, c ok, compensate, undo c ok, undo b fails, compensate, undo b#2 ok, undo a fails,"
        "compensate",
        "compensating", "a compensating, b compensated, c compensated", "undo a#2"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "events", "state", "all_steps", "in_flight"), EXAMPLES.values(), ids=EXAMPLES
)
def test_events_lead_to_this_state(
    steps: str, events: str, state: str, all_steps: str, in_flight: str
) -> None:
    answer = play(saga_of(steps), events)
    assert answer.saga.state == state
    assert states(answer.saga) == all_steps
    assert shown(outstanding(answer.saga)) == in_flight
    assert answer.saga.revision == len(events_of(events))
    assert answer.saga.at_rest == (in_flight == "")


@pytest.mark.parametrize(
    ("events", "caused"),
    [
        ("a ok", "b#1"),
        ("a ok, b ok, c ok", ""),
        ("a fails", ""),
        ("a ok, b fails", "undo a#1"),
        ("a ok, b ok, c fails, undo b ok", "undo a#1"),
        ("a ok, b ok, c fails, undo b fails", ""),
        ("a ok, b ok, c fails, undo b fails, compensate", "undo b#2"),
        ("a ok, b ok, c fails, undo b ok, undo a ok", ""),
        ("compensate", ""),  # the step in flight is awaited, not asked again
        ("compensate, a ok", "undo a#1"),
    ],
)
def test_an_event_returns_the_commands_that_it_caused(events: str, caused: str) -> None:
    assert shown(play(saga_of("a b c"), events).commands) == caused


def test_commands_say_all_that_a_worker_needs() -> None:
    saga = saga_of("a b")
    assert outstanding(saga) == (Execute(saga=ID, step="a", action="do_a", attempt=1),)
    saga = play(saga, "a ok, b fails").saga
    assert outstanding(saga) == (Compensate(saga=ID, step="a", action="undo_a", attempt=1),)


def test_a_saga_knows_its_times() -> None:
    saga = saga_of("a b")
    assert (saga.created_at, saga.updated_at, saga.completed_at) == (BORN, BORN, None)
    saga = play(saga, "a ok").saga
    assert (saga.created_at, saga.updated_at, saga.completed_at) == (BORN, BORN + 1, None)
    assert [step.executed_at for step in saga.steps] == [BORN + 1, None]
    saga = play(saga, "b ok").saga
    assert saga.completed_at == saga.updated_at == BORN + 2
    saga = transition(saga, event_of("compensate", BORN + 3)).saga
    assert (saga.updated_at, saga.completed_at) == (BORN + 3, None)


@pytest.mark.parametrize(
    "events",
    ["a ok, b ok", "a fails", "a ok, b fails, undo a ok", "a ok, b fails, undo a fails"],
    ids=["completed", "nothing to undo", "compensated", "failed"],
)
def test_a_saga_at_rest_knows_since_when(events: str) -> None:
    saga = play(saga_of("a b"), events).saga
    assert saga.completed_at == saga.updated_at == BORN + len(events_of(events))


@pytest.mark.parametrize(
    ("steps", "events", "event"),
    [
        ("p! x<p y<p", "p ok, x fails, y fails", "resolve x completed"),
        ("p! x<p y<p", "p ok, x fails, y fails", "skip x"),
        ("a< b< c<a+b", "a ok, b ok, c fails, undo a fails, undo b fails", "resolve a compensated"),
    ],
)
def test_a_failed_saga_that_a_person_leaves_failed_says_when_it_failed(
    steps: str, events: str, event: str
) -> None:
    failed = play(saga_of(steps), events).saga
    saga = play(failed, event).saga
    assert saga.is_failed
    assert (saga.updated_at, saga.completed_at) == (failed.updated_at + 1, failed.updated_at)


def test_a_failed_saga_that_is_mended_says_when_that_was() -> None:
    for events in (
        "p ok, x fails, skip x",
        "p ok, x fails, resolve x completed",
        "p ok, x fails, retry, x#2 fails",
    ):
        saga = play(saga_of("p! x"), events).saga
        assert saga.completed_at == saga.updated_at == BORN + len(events_of(events))


def test_compensating_a_step_keeps_what_its_action_returned_and_when() -> None:
    saga = play(saga_of("a b"), "a ok, b fails").saga
    for events in ("", "undo a ok", "undo a fails", "undo a fails, compensate"):
        step = play(saga, events).saga.step("a")
        assert (step.output, step.executed_at, step.attempt) == ({"from": "a"}, BORN + 1, 1)


def test_a_failed_step_keeps_its_error() -> None:
    saga = play(saga_of("a b"), "a ok, b fails, undo a ok").saga
    assert saga.step("b").error == error_of("do_b")
    assert saga.step("b").output == {}
    assert saga.step("a").error is None


def test_a_failed_compensation_never_counts_as_compensated_and_keeps_its_error() -> None:
    saga = play(saga_of("a b c"), "a ok, b ok, c fails, undo b fails").saga
    assert saga.state == "failed"
    step = saga.step("b")
    assert (step.state, step.error, step.compensation_attempt) == ("failed", error_of("undo_b"), 1)
    assert outstanding(saga) == ()


def test_a_compensation_that_is_tried_again_keeps_its_error_until_it_succeeds() -> None:
    saga = play(saga_of("a b"), "a ok, b fails, undo a fails, compensate").saga
    assert saga.step("a").error == error_of("undo_a")
    assert play(saga, "undo a#2 ok").saga.step("a").error is None
    assert saga.step("a").compensation_attempt == 2


def test_a_step_of_unknown_outcome_says_what_became_of_it_when_its_compensation_succeeds() -> None:
    saga = play(saga_of("a b"), "a lost, undo a fails").saga
    assert saga.step("a").error == error_of("undo_a")
    for events in ("compensate, undo a#2 ok", "resolve a compensated"):
        step = play(saga, events).saga.step("a")
        assert (step.state, step.error) == ("compensated", error_of("do_a"))


IGNORED = {
    # Results that came twice.
    "of a step": ("a b", "a ok", "a ok", "execute"),
    "of the last step": ("a b", "a ok, b ok", "b ok", "execute"),
    "of a failure": ("a b", "a ok, b fails", "b fails", "execute"),
    "of a failure that ended it": ("a b", "a fails", "a fails", "execute"),
    "of a compensation": ("a b c", "a ok, b ok, c fails, undo b ok", "undo b ok", "compensate"),
    "of the last compensation": ("a b", "a ok, b fails, undo a ok", "undo a ok", "compensate"),
    "of a failed compensation": ("a b", "a ok, b fails, undo a fails", "undo a fails", "compensate"),
    # A result that contradicts the one applied.
    "failed, after it succeeded": ("a b", "a ok", "a fails", "execute"),
    "succeeded, after it failed": ("a b", "a ok, b fails", "b ok", "execute"),
    "not undone, after it was": ("a b", "a ok, b fails, undo a ok", "undo a fails", "compensate"),
    "undone, after it was not": ("a b", "a ok, b fails, undo a fails", "undo a ok", "compensate"),
    # Results of abandoned attempts, or of attempts that are yet to come.
    "late, of an abandoned compensation": (
        "a b", "a ok, b fails, undo a fails, compensate", "undo a#1 ok", "compensate"),
    "late, of an abandoned compensation that failed": (
        "a b", "a ok, b fails, undo a fails, compensate", "undo a#1 fails", "compensate"),
    "of a compensation not yet tried again": (
        "a b", "a ok, b fails, undo a fails", "undo a#2 ok", "compensate"),
    "of another attempt": ("a b", "", "a#2 ok", "execute"),
    "of another attempt that failed": ("a b", "", "a#2 fails", "execute"),
    "of no attempt": ("a b", "", "a#0 ok", "execute"),
    "of no attempt, of a step not asked": ("a b", "", "b#0 ok", "execute"),
    # Results that nobody asked for, or that come before their time.
    "of a step before its turn": ("a b c", "", "b ok", "execute"),
    "of the last step before its turn": ("a b c", "a ok", "c fails", "execute"),
    "of a step that is no longer to be run": ("a b c", "a ok, compensate", "c ok", "execute"),
    "of a compensation in a saga that goes forward": ("a b", "a ok", "undo a ok", "compensate"),
    "of a compensation in a completed saga": ("a", "a ok", "undo a fails", "compensate"),
    "of a compensation of a step that runs": ("a b", "", "undo a ok", "compensate"),
    "of a compensation out of order": ("a b c", "a ok, b ok, c fails", "undo a ok", "compensate"),
    "of a compensation of the step that failed": ("a b c", "a ok, b ok, c fails", "undo c ok", "compensate"),
    "of a compensation that does not exist": ("a- b c", "a ok, b ok, c fails", "undo a ok", "compensate"),
    "of an action while it is undone": ("a b", "a ok, b fails", "a ok", "execute"),
    "no attempt of a compensation": ("a b", "a ok", "undo a#0 ok", "compensate"),
    # Results of what has ended, while others are still out.
    "failed, after it succeeded, before the end": ("a b c", "a ok", "a fails", "execute"),
    "skipped, after it succeeded, before the end": ("a b c", "a ok", "a skips", "execute"),
    "later, after it succeeded, before the end": ("a b c", "a ok", "a later", "execute"),
    "skipped, after it failed": ("a< b<", "a fails", "a skips", "execute"),
    "succeeded, after it failed, before the end": ("a< b<", "a fails", "a ok", "execute"),
    "failed twice, before the end": ("a< b<", "a fails", "a fails", "execute"),
    "later, after it failed": ("a< b<", "a fails", "a later", "execute"),
    "not undone, after it was, before the end": (
        "a b c", "a ok, b ok, compensate, c ok, undo c ok", "undo c fails", "compensate"),
    "undone twice, before the end": ("a b c", "a ok, b ok, compensate, c ok, undo c ok", "undo c ok", "compensate"),
    "undone later, after it was": ("a b c", "a ok, b ok, compensate, c ok, undo c ok", "undo c later", "compensate"),
    "undone, after it was stuck": ("a< b< c<", "a ok, b ok, c fails, undo a fails", "undo a ok", "compensate"),
    "not undone twice, before the end": ("a< b< c<", "a ok, b ok, c fails, undo a fails", "undo a fails", "compensate"),
    "undone later, of no attempt, while it runs": ("a< b<", "a fails", "undo b#0 later", "compensate"),
    "undone, of no attempt, while it runs": ("a< b<", "a fails", "undo b#0 ok", "compensate"),
    "not undone, of no attempt, while it runs": ("a< b<", "a fails", "undo b#0 fails", "compensate"),
    "skipped, of another attempt": ("a b", "", "a#2 skips", "execute"),
    "later, of another attempt": ("a b", "", "a#2 later", "execute"),
    "undone later, of another attempt": ("a b", "a ok, b fails", "undo a#2 later", "compensate"),
    "not undone, of another attempt": ("a b", "a ok, b fails", "undo a#2 fails", "compensate"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "events", "stray", "operation"), IGNORED.values(), ids=IGNORED)
def test_a_result_that_is_not_awaited_changes_nothing(
    steps: str, events: str, stray: str, operation: str
) -> None:
    saga = play(saga_of(steps), events).saga
    before = encode_saga(saga)
    answer = transition(saga, event_of(stray))
    assert answer.saga is saga
    assert encode_saga(saga) == before
    assert answer.commands == ()
    assert answer.ignored is not None
    step = event_of(stray).step
    if "not awaited" in answer.ignored:
        words = (repr(step), operation, saga.step(step).state)
    else:
        words = (
            saga.state,
            "nothing is awaited any more" if operation == "execute" else "nothing is being undone",
        )
    for word in (ID, *words):
        assert word in answer.ignored


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ("a ok, b fails", ": it is being undone already"),
        ("compensate", ": it is being undone already"),
        ("a fails", " is compensated: it is undone already"),
        ("a ok, b fails, undo a ok", " is compensated: it is undone already"),
    ],
)
def test_asking_for_compensation_once_more_changes_nothing(events: str, why: str) -> None:
    saga = play(saga_of("a b"), events).saga
    answer = transition(saga, event_of("compensate"))
    assert answer.saga is saga
    assert answer.commands == ()
    assert answer.ignored == f"saga {ID}{why}"


@pytest.mark.parametrize("kind", ["x ok", "x fails", "undo x ok", "undo x fails"])
@pytest.mark.parametrize("events", ["", "a ok, b ok", "a ok, b fails", "a fails"])
def test_an_unknown_step_is_a_bug_of_the_caller(kind: str, events: str) -> None:
    saga = play(saga_of("a b"), events).saga
    with pytest.raises(UnknownStepError, match=rf"Saga {ID} \(trip\) has no step 'x'; it has: a, b"):
        transition(saga, event_of(kind))


@pytest.mark.parametrize("command", [Execute(ID, "x", "do_x", 1), Compensate(ID, "x", "undo_x", 1)])
def test_nothing_is_awaited_of_an_unknown_step(command: Execute | Compensate) -> None:
    with pytest.raises(UnknownStepError, match="'x'"):
        awaits(saga_of("a"), command)


@pytest.mark.parametrize("command", [Execute(ID, "b", "do_b", 1), Compensate(ID, "b", "undo_b", 1)])
def test_no_handler_is_awaited_of_a_step_with_a_child(command: Execute | Compensate) -> None:
    with pytest.raises(UnknownStepError, match=rf"Saga {ID} \(trip\) has no step 'b' without a child saga"):
        awaits(saga_of("a b*"), command)


@pytest.mark.parametrize(
    "command",
    [
        StartChild(ID, "a", 1, ID),
        CompensateChild(ID, "a", 1, ID),
        Report(ID, "a", 1, ID, SagaState.COMPLETED),
    ],
)
def test_no_child_is_awaited_of_a_step_without_one(command: StartChild | CompensateChild | Report) -> None:
    with pytest.raises(UnknownStepError, match=rf"Saga {ID} \(trip\) has no step 'a' with a child saga"):
        awaits(saga_of("a b*"), command)


def test_an_unknown_step_of_a_long_saga_makes_a_short_message() -> None:
    with pytest.raises(UnknownStepError) as caught:
        saga_of(" ".join(f"s{n}" for n in range(1000))).step("x")
    assert "s19" in str(caught.value)
    assert "s20" not in str(caught.value)


@pytest.mark.parametrize(
    ("events", "awaited"),
    [
        ("", "a#1"),
        ("a ok", "b#1"),
        ("a ok, b fails", "undo a#1"),
        ("a ok, b fails, undo a fails", ""),
        ("a ok, b fails, undo a fails, compensate", "undo a#2"),
        ("a ok, b ok", ""),
        ("a ok, compensate", "b#1"),
    ],
)
def test_only_what_is_in_flight_is_awaited(events: str, awaited: str) -> None:
    saga = play(saga_of("a b"), events).saga
    possible = [kind(ID, step, "", n) for kind in (Execute, Compensate) for step in "ab" for n in range(4)]
    assert shown(command for command in possible if awaits(saga, command)) == awaited


@pytest.mark.parametrize(
    ("events", "command", "caused"),
    [
        ("", "a#1", ""),  # not yet answered
        ("a ok", "a#1", "b#1"),
        ("a ok, b ok", "a#1", ""),  # b was answered: the message of a has done its part
        ("a ok, b ok", "b#1", "c#1"),
        ("a ok, b fails", "b#1", "undo a#1"),
        ("a ok, b fails, undo a fails", "b#1", ""),
        ("a ok, b fails, undo a fails, compensate", "undo a#1", ""),  # undo a#2 is what the person caused
        ("a ok, b fails, undo a fails, compensate", "b#1", ""),
        ("a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok", "undo b#2", "undo a#1"),
        ("compensate, a ok", "a#1", "undo a#1"),
        ("a ok, b ok, c ok", "c#1", ""),
        ("a ok", "a#2", ""),  # no such attempt
        ("a ok", "undo a#1", ""),  # the same step, another operation
    ],
)
def test_a_message_that_came_again_leads_to_the_commands_that_it_caused(
    events: str, command: str, caused: str
) -> None:
    kind, step = (Compensate, "undo_") if command.startswith("undo ") else (Execute, "do_")
    name, attempt = command.removeprefix("undo ").split("#")
    asked = kind(ID, name, step + name, int(attempt))
    assert shown(consequences(saga_of("a b c"), events_of(events), asked).commands) == caused


def test_folding_no_history_gives_the_saga_as_created() -> None:
    saga = saga_of("a b")
    assert fold(saga, []) is saga


def test_folding_the_history_gives_the_saga() -> None:
    events = "a ok, b ok, c fails, undo b fails, compensate, undo b#2 ok, undo a ok"
    saga = play(saga_of("a b c"), events).saga
    assert fold(saga_of("a b c"), events_of(events)) == saga
    assert encode_saga(fold(saga_of("a b c"), events_of(events))) == encode_saga(saga)


LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 96, 97, 1000]


def long_saga(length: int) -> tuple[list[str], str]:
    names = [f"s{n}" for n in range(length)]
    return names, " ".join(names)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_saga_of_any_length_completes_in_order(length: int) -> None:
    names, words = long_saga(length)
    saga = saga_of(words)
    for position, name in enumerate(names):
        assert shown(outstanding(saga)) == f"{name}#1"
        answer = transition(saga, event_of(f"{name} ok"))
        assert answer.commands == outstanding(answer.saga)
        saga = answer.saga
        assert saga.revision == position + 1
    assert saga.state is SagaState.COMPLETED
    assert {step.state for step in saga.steps} == {"completed"}
    assert decode_saga(encode_saga(saga)) == saga


@pytest.mark.parametrize("length", LENGTHS)
def test_a_saga_of_any_length_is_compensated_in_reverse_order(length: int) -> None:
    names, words = long_saga(length)
    saga = play(saga_of(words), ", ".join(f"{name} ok" for name in names) + ", compensate").saga
    undone = []
    while not saga.at_rest:
        (command,) = outstanding(saga)
        undone.append(command.step)
        saga = transition(saga, event_of(f"undo {command.step} ok")).saga
    assert undone == names[::-1]
    assert saga.state is SagaState.COMPENSATED
    assert {step.state for step in saga.steps} == {"compensated"}


@pytest.mark.parametrize("length", [2, 31, 32, 33, 34, 64, 65, 66])
def test_a_failure_in_the_last_step_of_a_saga_of_any_length_undoes_the_one_before(length: int) -> None:
    names, words = long_saga(length)
    events = [f"{name} ok" for name in names[:-1]] + [f"{names[-1]} fails"]
    assert shown(play(saga_of(words), ", ".join(events)).commands) == f"undo {names[-2]}#1"


@pytest.mark.parametrize("length", [32, 33, 65])
def test_a_saga_of_any_length_passes_over_steps_without_compensation(length: int) -> None:
    names, _ = long_saga(length)
    words = " ".join([names[0], *(f"{name}-" for name in names[1:])])
    events = [f"{name} ok" for name in names[:-1]] + [f"{names[-1]} fails"]
    assert shown(play(saga_of(words), ", ".join(events)).commands) == "undo s0#1"


def test_an_event_in_a_saga_of_1000_steps_does_not_copy_them_all() -> None:
    _, words = long_saga(1000)
    saga = play(saga_of(words), ", ".join(f"s{n} ok" for n in range(500))).saga
    event = event_of("s500 ok")
    tracemalloc.start()
    try:
        answer = transition(saga, event)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.ignored is None
    assert kept < 4000  # a list of 1,000 places alone takes 8,000 bytes


def test_a_saga_takes_no_notice_of_what_its_list_of_steps_becomes() -> None:
    steps = [Step(name="a", action="do_a"), Step(name="b", action="do_b")]
    saga = new_saga("trip", steps, id=ID, at=BORN)
    steps.clear()
    assert [step.name for step in play(saga, "a ok, b ok").saga.steps] == ["a", "b"]


# The short way.


def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Return a list that takes the events which go the long way, from now on."""
    long: list[Event] = []

    def noting(saga: Saga, event: Event) -> Transition:
        long.append(event)
        return decide(saga, event)

    monkeypatch.setattr(shortcut, "decide", noting)
    return long


LONG_WAY = {
    "another step waits for it too": ("a b<a c<a", "", "a ok"),
    "the next one waits for others too": ("a< b< c<a+b", "", "a ok"),
    "it is suspended": ("a b", "suspend", "a ok"),
    "somebody skips the next one": ("a b", "skip b", "a ok"),
    "others still run": ("a< b<", "", "a ok"),
    "the next one starts a child": ("a b*", "", "a ok"),
    "another one is stuck": ("a! b<a c<a", "a ok, b fails", "c ok"),
    "it is not awaited": ("a b", "a ok", "a ok"),
    "it is of another attempt": ("a b", "", "a#2 ok"),
    "the saga turns round": ("a< b<", "a fails", "b ok"),
    "it has not succeeded": ("a b", "", "a skips"),
}


@pytest.mark.parametrize("length", [1, 2, 3, 32, 33, 34, 65])
def test_the_commonest_events_go_the_short_way(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names, words = long_saga(length)
    saga = saga_of(words)
    long = long_ways(monkeypatch)
    for name in names:
        answer = transition(saga, event_of(f"{name} ok"))
        assert answer == decide(saga, event_of(f"{name} ok"))
        saga = answer.saga
    assert long == []


def test_a_step_beside_others_goes_the_short_way_to_the_one_that_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = long_ways(monkeypatch)
    assert shown(outstanding(transition(saga_of("a< b< c<a"), event_of("a ok")).saga)) == "b#1, c#1"
    assert long == []


@pytest.mark.parametrize(("steps", "events", "event"), LONG_WAY.values(), ids=LONG_WAY)
def test_what_is_less_common_goes_the_long_way(
    steps: str, events: str, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = play(saga_of(steps), events).saga
    long = long_ways(monkeypatch)
    transition(saga, event_of(event, saga.updated_at + 1))
    assert long == [event_of(event, saga.updated_at + 1)]


@pytest.mark.parametrize(
    ("events", "stray", "latest"),
    [
        ("a ok, b fails, undo a busy, retry, undo a#2 later", "undo a#1 ok", 2),
        ("a ok, b fails, undo a busy, retry, undo a#2 later", "a ok", 1),
        ("a ok", "b#2 ok", 1),
        ("", "b ok", 0),
    ],
)
def test_a_late_result_is_told_which_attempt_is_the_latest(events: str, stray: str, latest: int) -> None:
    answer = transition(play(saga_of("a b"), events).saga, event_of(stray))
    assert answer.ignored is not None
    assert answer.ignored.endswith(f"its latest attempt is {latest}")


def test_a_join_remembers_how_many_it_has_met() -> None:
    saga = saga_of("a< b< c<a+b d<c")
    for events, met in (("a ok", 1), ("a ok, b ok", 2), ("a ok, b ok, c ok", 2), ("a ok, b ok, c skips", 2)):
        assert play(saga, events).saga.progress_of("c").met == met
