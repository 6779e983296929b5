"""What holds for every saga and every course of events, however absurd. Beside each walks a model (`model`)."""

from typing import Any

import msgspec
from hypothesis import event as label
from hypothesis import given, settings
from msgspec.structs import replace

from saga_core import (
    TABLE,
    ChildRested,
    Command,
    Compensate,
    CompensateChild,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Report,
    Saga,
    SagaState,
    StartChild,
    StepResolved,
    StepState,
    StepSucceeded,
    TimePassed,
    awaits,
    consequences,
    created,
    decode_event,
    decode_saga,
    encode_event,
    encode_saga,
    fold,
    outstanding,
    transition,
    wake_at,
)
from saga_core.history import create
from saga_core.machine import decide

from .model import BACKWARD, FORWARD, Model
from .notation import BORN
from .walks import CONTEXT, Course, Definition, Walk, courses, definitions, walks

property_test = settings(deadline=None, max_examples=60)

OF_A_STEP = (
    "name",
    "state",
    "attempt",
    "undo_attempt",
    "output",
    "error",
    "executed_at",
    "phase",
    "until",
    "unknown",
    "skip",
)
OF_A_SAGA = ("state", "revision", "suspended", "asked", "updated_at", "completed_at")


def model_of(definition: Definition, saga: Saga) -> Model:
    is_child = saga.plan.parent is not None
    return Model(definition.steps, CONTEXT, definition.options, id=saga.id, at=BORN, is_child=is_child)


def seen(saga: Saga) -> dict[str, Any]:
    """Return all of a saga that its events decide, in the model's words."""
    steps = []
    for step, record in zip(saga.steps, saga.records(), strict=True):
        phase = (
            "waiting"
            if record.waiting
            else "deferred"
            if record.deferred
            else "out"
            if record.is_out
            else None
        )
        steps.append(
            {
                "name": step.name,
                "state": step.state,
                "attempt": step.attempt,
                "undo_attempt": step.compensation_attempt,
                "output": step.output,
                "error": step.error,
                "executed_at": step.executed_at,
                "phase": phase,
                "until": record.until,
                "unknown": record.unknown,
                "skip": record.skip,
            }
        )
    return {
        **{name: getattr(saga, name) for name in OF_A_SAGA},
        "steps": steps,
        "commands": sorted(map(in_words, outstanding(saga)), key=repr),
        "wake_at": wake_at(saga),
    }


def expected(model: Model) -> dict[str, Any]:
    return {
        **{name: getattr(model, name) for name in OF_A_SAGA},
        "steps": [{name: step[name] for name in OF_A_STEP} for step in model.steps],
        "commands": sorted(model.commands(), key=repr),
        "wake_at": model.wake_at(),
    }


def in_words(command: Command) -> tuple[object, ...]:
    match command:
        case Execute():
            return ("execute", command.step, command.attempt, command.deadline)
        case Compensate():
            return ("compensate", command.step, command.attempt, command.deadline)
        case StartChild():
            return ("start child", command.step, command.attempt, None)
        case CompensateChild():
            return ("compensate child", command.step, command.attempt, None)
        case Report():
            return ("report", str(command.state))


@settings(deadline=None, max_examples=150)
@given(definitions(), courses)
def test_every_saga_does_what_the_model_does(definition: Definition, course: Course) -> None:
    walk = Walk(definition)
    model = model_of(definition, walk.saga)
    assert seen(walk.saga) == expected(model)
    for event in walk.events(course):
        before = walk.saga
        answer = walk.take(event)
        label(f"{type(event).__name__} {'ignored' if answer.ignored else 'applied'}")

        assert model.tell(event) == (answer.ignored is None), (event, answer.ignored)
        assert seen(answer.saga) == expected(model), event
        if answer.ignored is not None:
            assert answer.saga is before
            assert answer.commands == ()
            continue
        # What an event causes is what was not in flight before it: nothing is asked twice, nothing is lost.
        caused = set(outstanding(answer.saga)) - set(outstanding(before))
        if answer.saga.at_rest:
            caused |= set(outstanding(answer.saga))
        assert set(answer.commands) == caused
        assert len(answer.commands) == len(caused)
        assert answer.saga.state in TABLE[type(event)].leads[before.state], (
            before.state,
            event,
            answer.saga.state,
        )
    label(f"ends {walk.saga.state}")


@property_test
@given(definitions(), courses)
def test_what_follows_from_the_rest_is_right_at_every_moment(definition: Definition, course: Course) -> None:
    """What is stored is enough: whatever is kept to save time is what is worked out anew."""
    walk = Walk(definition)
    assert decode_saga(encode_saga(walk.saga)) == walk.saga
    for event in walk.events(course):
        saga = walk.take(event).saga
        stored = encode_saga(saga)
        back = decode_saga(stored)
        assert back == saga
        assert encode_saga(back) == stored
        assert back.steps == saga.steps


@property_test
@given(definitions(), courses)
def test_the_short_way_and_the_long_way_give_the_same_answer(definition: Definition, course: Course) -> None:
    walk = Walk(definition)
    for event in walk.events(course):
        long = decide(walk.saga, event)
        assert walk.take(event) == long


@property_test
@given(definitions(), courses)
def test_time_changes_something_at_the_moment_that_was_said_and_not_before(
    definition: Definition, course: Course
) -> None:
    walk = Walk(definition)
    for event in walk.events(course):
        saga = walk.take(event).saga
        wake = wake_at(saga)
        if wake is None:
            assert transition(saga, TimePassed(walk.now + 1e9)).ignored
        else:
            assert transition(saga, TimePassed(wake)).ignored is None
            assert transition(saga, TimePassed(wake - 0.001)).ignored


@property_test
@given(walks())
def test_whoever_crashes_whenever_what_is_stored_leads_to_rest(walk: Walk) -> None:
    """At every turn all messages are lost, and all memory; the stored state alone goes on (I1)."""
    walk.come_to_rest(crashing=True)
    assert wake_at(walk.saga) is None
    assert all(isinstance(command, Report) for command in outstanding(walk.saga))


@property_test
@given(walks())
def test_whatever_happened_a_person_can_have_it_undone_or_finished(walk: Walk) -> None:
    past_pivot = walk.saga.past_pivot
    if past_pivot:
        walk.take(_retry(walk))
    else:
        walk.take(_undo(walk))
    walk.come_to_rest()
    if past_pivot or walk.saga.past_pivot:  # the pivot may have been out, and have ended well
        walk.take(_retry(walk))
        assert walk.come_to_rest().saga.is_completed
    else:
        walk.take(_retry(walk))
        assert walk.come_to_rest().saga.is_compensated


def _undo(walk: Walk) -> Event:
    # A child that has completed is undone as its parent orders, which numbers its orders.
    attempt = 99 if walk.definition.as_child else 0
    return CompensationRequested("it has to be undone", walk.now, attempt=attempt)


def _retry(walk: Walk) -> Event:
    (event,) = walk.events([("person", "retry")])
    return event


@property_test
@given(definitions(), courses)
def test_no_compensation_runs_beside_what_it_undoes(definition: Definition, course: Course) -> None:
    """Nothing is undone while a step runs, nor before all that stood on it is undone (I4)."""
    walk = Walk(definition)
    for event in walk.events(course):
        saga = walk.take(event).saga
        undoing = [step for step in saga.steps if step.state is StepState.COMPENSATING]
        if not undoing:
            continue
        assert not any(step.state is StepState.STARTED for step in saga.steps)
        for step in undoing:
            for other in standing_on(saga, step.name):
                done = other.compensation is not None or other.child is not None
                assert not (other.state is StepState.COMPLETED and done)
                assert other.state is not StepState.COMPENSATING
                assert other.state is not StepState.FAILED or other.compensation_attempt == 0
        if definition.options.compensation_order == "sequential":
            assert len(undoing) == 1


def standing_on(saga: Saga, name: str) -> list[Any]:
    found, todo = {}, [name]
    while todo:
        wanted = saga.plan.graph.positions[todo.pop()]
        for dependent in saga.plan.graph.dependents[wanted]:
            step = saga.steps[dependent]
            if step.name not in found:
                found[step.name] = step
                todo.append(step.name)
    return list(found.values())


@property_test
@given(walks())
def test_no_result_that_was_applied_is_applied_again(walk: Walk) -> None:
    """One result for each attempt (I2), whatever the second one says."""
    for event in walk.history:
        if type(event).__name__.endswith("Deferred") or not isinstance(event, FORWARD + BACKWARD):
            continue
        for other in FORWARD if isinstance(event, FORWARD) else BACKWARD:
            given_ = {"step": event.step, "attempt": event.attempt, "at": walk.now}
            more = {"output": msgspec.Raw(b"{}"), "error": None, "reason": ""}
            names = other.__struct_fields__
            again = other(**given_, **{name: value for name, value in more.items() if name in names})
            assert transition(walk.saga, again).ignored
        assert transition(walk.saga, event).saga is walk.saga


@property_test
@given(walks())
def test_a_compensated_saga_has_undone_each_step_that_was_done_exactly_once(walk: Walk) -> None:
    walk.take(_undo(walk))
    walk.come_to_rest()
    if not walk.saga.is_compensated:
        return
    done, undone = set(), []
    for place, event in enumerate(walk.history):
        if isinstance(event, StepSucceeded) or (
            isinstance(event, StepResolved) and event.state == "completed"
        ):
            done.add(event.step)
        if isinstance(event, ChildRested) and event.state is SagaState.COMPLETED:
            done.add(event.step)
        resolved = isinstance(event, StepResolved) and event.state == "compensated"
        was = fold(walk.origin, walk.history[:place])
        by_child = isinstance(event, ChildRested) and was.step(event.step).state is StepState.COMPENSATING
        by_child = by_child and event.state is SagaState.COMPENSATED
        if isinstance(event, CompensationSucceeded) or resolved or by_child:
            undone.append(event.step)
    compensable = {step.name for step in walk.saga.steps if step.compensation or step.child}
    assert len(undone) == len(set(undone))
    assert done & compensable <= set(undone)
    assert set(undone) == {step.name for step in walk.saga.steps if step.state is StepState.COMPENSATED}


@property_test
@given(walks())
def test_a_command_is_awaited_exactly_while_it_is_outstanding(walk: Walk) -> None:
    still = outstanding(walk.saga)
    commands = [command for command in walk.issued if not isinstance(command, Report)]
    assert len(commands) == len(set(commands)), "the same command was issued twice"
    for command in commands:
        assert awaits(walk.saga, command) == (command in still)
    assert set(still) <= set(walk.issued)


@property_test
@given(walks())
def test_folding_the_history_gives_the_saga_bit_for_bit(walk: Walk) -> None:
    assert fold(walk.origin, walk.history) == walk.saga
    # What was ignored may as well be in the history.
    assert fold(walk.origin, walk.offered) == walk.saga
    # Nor does it matter that it was stored.
    history = [decode_event(encode_event(event)) for event in walk.history]
    assert history == walk.history
    assert encode_saga(fold(decode_saga(encode_saga(walk.origin)), history)) == encode_saga(walk.saga)


@property_test
@given(definitions(), courses)
def test_a_message_that_comes_again_brings_back_what_its_result_caused(
    definition: Definition, course: Course
) -> None:
    """The commands of a commit are lost; the message that it answered is delivered again."""
    walk = Walk(definition)
    for event in walk.events(course):
        flight = outstanding(walk.saga)
        answer = walk.take(event)
        if answer.ignored is not None or not isinstance(event, FORWARD + BACKWARD):
            continue
        kinds = (Execute, StartChild) if isinstance(event, FORWARD) else (Compensate, CompensateChild)
        for command in flight:
            if (
                isinstance(command, kinds)
                and command.step == event.step
                and isinstance(command, Execute | Compensate)
            ):
                assert consequences(walk.origin, walk.history, command).commands == answer.commands


@property_test
@given(definitions(), courses)
def test_no_event_changes_a_saga_that_somebody_holds(definition: Definition, course: Course) -> None:
    walk = Walk(definition)
    held = [(walk.saga, encode_saga(walk.saga))]
    for event in walk.events(course):
        walk.take(event)
        held.append((walk.saga, encode_saga(walk.saga)))
    for saga, as_it_was in held:
        assert encode_saga(saga) == as_it_was


def test_the_model_knows_all_that_a_user_can_see() -> None:
    """A field that is added to a saga has to be added to the model."""
    derived = {"running", "undoing", "ready", "tips", "stuck", "wakes"}
    assert {*OF_A_SAGA, "plan", "progress"} | derived == set(Saga.__struct_fields__)


@property_test
@given(definitions())
def test_what_a_creation_causes_can_be_told_from_the_saga(definition: Definition) -> None:
    saga = definition.saga()
    first = create(saga.plan)
    assert (first.saga, set(first.commands)) == (saga, set(outstanding(saga)))
    assert first == replace(created(saga), commands=first.commands)
