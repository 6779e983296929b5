"""Plans: options, limits, children. What can be defined, what is refused, and what is read back."""

from typing import Any

import pytest
from msgspec.structs import replace
from ulid import ULID

from saga_core import (
    ChildRested,
    ChildSaga,
    CompensationRequested,
    DefinitionError,
    Options,
    PayloadError,
    Report,
    RetryPolicy,
    Saga,
    SagaState,
    StartChild,
    Step,
    UnknownStepError,
    child_saga,
    decode_saga,
    encode_saga,
    new_saga,
    outstanding,
    transition,
    wake_at,
    when,
)
from saga_core.options import NO_OPTIONS
from saga_core.plan import plan_child

from .notation import BORN, ID, event_of, play, saga_of, shown


def define(*steps: Step, options: Options = NO_OPTIONS, at: float = BORN) -> Saga:
    return new_saga("trip", steps or [Step(name="a", action="do")], id=ID, at=at, options=options)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timeout": 0}, "timeout must be a positive number of seconds, not 0"),
        ({"timeout": -1.5}, "timeout must be a positive number of seconds, not -1.5"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"start_at": 0}, "start_at must be a positive number of seconds, not 0"),
        ({"start_at": float("inf")}, "start_at"),
        ({"priority": -1}, "The priority of a saga must be from 0 to 9, not -1"),
        ({"priority": 10}, "priority .* not 10"),
        ({"key": ""}, "The key of a saga must have 1 to 255 bytes, not ''"),
        ({"key": "é" * 128}, "The key of a saga must have 1 to 255 bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        Options(**wrong)


def test_options_are_carried_along_and_read_back() -> None:
    options = Options(
        start_at=9,
        timeout=60,
        compensation_order="sequential",
        priority=9,
        tags={"order": "o-7"},
        key="é" * 127,
    )
    saga = define(options=options)
    back = decode_saga(encode_saga(saga))
    assert back.plan.options == options
    assert repr(back.plan.options) == repr(options)
    assert type(options.timeout) is type(options.start_at) is float
    assert back.tags == {"order": "o-7"}
    back.tags["order"] = "changed"
    assert back.tags == {"order": "o-7"}


@pytest.mark.parametrize("field", ["timeout", "total_timeout", "compensation_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_step_with_a_timeout_that_makes_no_sense_is_refused(field: str, value: float) -> None:
    with pytest.raises(DefinitionError, match=f"Saga 'trip': step 'a': {field} must be a positive number"):
        define(Step(name="a", action="do", **{field: value}))


@pytest.mark.parametrize("at", [float("nan"), float("inf")])
def test_a_saga_cannot_begin_at_no_time(at: float) -> None:
    with pytest.raises(DefinitionError, match="'trip' cannot begin at"):
        define(at=at)


@pytest.mark.parametrize(
    ("name", "usable"), [("x" * 128, True), ("x" * 129, False), ("é" * 65, False), ("a\0", False)]
)
def test_names_fit_into_messages_and_databases(name: str, usable: bool) -> None:
    for step in (
        Step(name=name, action="do"),
        Step(name="a", action=name),
        Step(name="a", action="a", compensation=name),
    ):
        if usable:
            assert define(step).steps[0].name
        else:
            with pytest.raises(DefinitionError):
                define(step)


def test_everything_of_a_step_is_read_back() -> None:
    policy = RetryPolicy(max_attempts=5, retry_on=("busy",))
    child = ChildSaga("inner", [Step(name="x", action="do_x")], {"n": 1}, Options(priority=3))
    first = Step(
        name="a",
        action="do",
        compensation="undo",
        input={"n": 1},
        when=when("n", ">", 0),
        retry=policy,
        compensation_retry=policy,
        timeout=5,
        total_timeout=50,
        compensation_timeout=6,
        pivot=True,
    )
    saga = define(first, Step(name="b", child=child, depends_on=("a",), compensation_retry=policy))
    back = decode_saga(encode_saga(saga))
    assert back == saga
    assert encode_saga(back) == encode_saga(saga)
    a, b = back.steps
    for field in ("name", "action", "compensation", "input", "when", "retry", "compensation_retry", "pivot"):
        assert getattr(a, field) == getattr(first, field)
    assert (a.timeout, a.total_timeout, a.compensation_timeout) == (5.0, 50.0, 6.0)
    assert type(a.timeout) is float
    assert b.depends_on == ("a",)
    assert b.child is not None
    assert b.child.name == "inner"


# Children.

INNER = ChildSaga(
    "inner", [Step(name="x", action="do_x", compensation="undo_x"), Step(name="y", action="do_y")]
)


def parent(child: ChildSaga = INNER, **more: Any) -> Saga:
    steps = [Step(name="a", child=child, **more), Step(name="b", action="do_b")]
    return new_saga("outer", steps, {"customer": 7}, id=ID, at=BORN, secret="s3cret")


def order_of(saga: Saga) -> StartChild:
    (command,) = outstanding(saga)
    assert isinstance(command, StartChild)
    return command


def test_a_step_with_a_child_asks_for_it() -> None:
    command = order_of(parent())
    assert (command.saga, command.step, command.attempt) == (ID, "a", 1)
    assert str(ULID.from_str(command.child)) == command.child
    assert command.child != ID


def test_a_child_is_the_same_whenever_it_is_asked_for() -> None:
    saga = parent()
    child = child_saga(saga, order_of(saga), BORN + 1)
    assert child == child_saga(decode_saga(encode_saga(saga)), order_of(saga), BORN + 1)
    assert (child.id, child.name, child.created_at) == (order_of(saga).child, "inner", BORN + 1)
    assert shown(outstanding(child)) == "x#1"
    assert child.plan.parent is not None
    assert (child.plan.parent.saga, child.plan.parent.step, child.plan.parent.attempt) == (ID, "a", 1)


def test_a_child_has_its_parents_context_or_its_own() -> None:
    for context, read in ((None, {"customer": 7}), ({}, {}), ({"own": 1}, {"own": 1})):
        saga = parent(ChildSaga("inner", INNER.steps, context))
        assert child_saga(saga, order_of(saga), BORN).context == read


def test_a_child_has_options_and_a_secret_of_its_own() -> None:
    saga = parent(ChildSaga("inner", INNER.steps, options=Options(start_at=BORN + 60, priority=7)))
    child = child_saga(saga, order_of(saga), BORN)
    assert child.plan.options.priority == 7
    assert wake_at(child) == BORN + 60
    assert child.plan.secret not in ("", saga.plan.secret)


def test_a_child_reports_when_it_rests_and_asks_for_a_report_until_then() -> None:
    saga = parent()
    child = child_saga(saga, order_of(saga), BORN)
    assert shown(outstanding(child)) == "x#1"
    assert shown(play(child, "x ok, y ok").commands) == "report completed"
    assert shown(outstanding(play(child, "x ok, y ok").saga)) == "report completed"
    assert shown(play(child, "x ok, y fails").commands) == "undo x#1"
    assert shown(play(child, "x fails").commands) == "report compensated"
    assert shown(play(child, "x ok, y fails, undo x fails").commands) == "report failed"


def test_a_child_that_has_nothing_to_do_reports_at_once() -> None:
    saga = parent(ChildSaga("inner", [Step(name="x", action="do_x", when=when("missing"))]))
    child = child_saga(saga, order_of(saga), BORN)
    assert child.is_completed
    assert shown(outstanding(child)) == "report completed"


@pytest.mark.parametrize(
    ("events", "state", "commands"),
    [
        ("child a completed", "started", "b#1"),
        ("child a compensated", "compensated", ""),
        ("child a completed, b fails", "compensating", "undo child a#1"),
        ("child a completed, b fails, undo a ok", "compensated", ""),
        ("cancel, child a completed", "compensating", "undo child a#1"),
        ("cancel, child a compensated", "compensated", ""),
        ("resolve a failed", "compensated", ""),
        ("resolve a completed", "started", "b#1"),
    ],
)
def test_a_step_ends_as_its_child_does(events: str, state: str, commands: str) -> None:
    answer = play(parent(), events)
    assert answer.saga.state == state
    assert shown(answer.commands) == commands


@pytest.mark.parametrize(
    "event",
    ["child a failed", "child a started", "child a#2 completed", "child b completed", "child a compensating"],
)
def test_a_report_that_changes_nothing_is_ignored(event: str) -> None:
    saga = parent()
    assert transition(saga, event_of(event)).saga is saga


def test_a_child_that_was_undone_says_so_in_its_parent() -> None:
    saga = play(parent(), "child a compensated").saga
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message) == ("child_compensated", f"the child saga {ID} was undone")


def test_a_child_that_goes_past_its_pivot_while_it_is_to_be_undone_leaves_its_parent_to_a_person() -> None:
    """Its pivot is out when the order comes: if it ends well, the child goes on forward, and has to say so."""
    inner = ChildSaga("inner", [Step(name="x", action="do_x", pivot=True)])
    saga = parent(inner, timeout=5)
    child = child_saga(saga, order_of(saga), BORN)
    saga = play(saga, "wait 5").saga
    (undo,) = outstanding(saga)
    child = transition(child, CompensationRequested("undo", BORN + 6, attempt=undo.attempt)).saga
    assert child.is_compensating
    answer = play(child, "x ok")
    assert answer.saga.is_completed
    (report,) = answer.commands
    assert isinstance(report, Report)
    rested = ChildRested("a", report.attempt, report.child, report.state, BORN + 8, report.asked)
    saga = transition(saga, rested).saga
    assert saga.is_failed
    error = saga.step("a").error
    assert error is not None
    assert error.code == "child_past_pivot"
    # A report from before the order says nothing of it.
    saga = play(saga, "retry").saga
    assert transition(saga, rested).ignored


def test_a_child_that_cannot_be_undone_leaves_its_parent_to_a_person() -> None:
    saga = play(parent(), "child a completed, b fails").saga
    rested = ChildRested("a", 1, ID, SagaState.FAILED, BORN + 5, 1)
    old = transition(saga, replace(rested, asked=0))
    assert old.ignored == f"saga {ID}: the child saga {ID} had failed before attempt 1 to undo it"
    saga = transition(saga, rested).saga
    assert saga.is_failed
    error = saga.step("a").error
    assert error is not None
    assert (error.code, error.message) == (
        "child_failed",
        f"the child saga {ID} could not be undone; see to it first",
    )
    assert transition(play(saga, "retry").saga, rested).ignored


def test_a_child_behind_the_pivot_is_started_anew_when_a_person_asks() -> None:
    steps = [Step(name="p", action="do", pivot=True), Step(name="a", child=INNER)]
    saga = play(new_saga("outer", steps, id=ID, at=BORN), "p ok").saga
    first = order_of(saga)
    saga = play(saga, "child a compensated").saga
    assert saga.is_failed
    second = order_of(play(saga, "retry").saga)
    assert (second.attempt, first.attempt) == (2, 1)
    assert second.child != first.child


@pytest.mark.parametrize("more", [{"action": "do"}, {"compensation": "undo"}, {"retry": RetryPolicy()}])
def test_a_step_with_a_child_can_have_no_action_of_its_own(more: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="step 'a' starts a child saga, so it has no action"):
        parent(**more)


@pytest.mark.parametrize(
    ("child", "error", "message"),
    [
        (ChildSaga("", INNER.steps), DefinitionError, "A saga needs a name"),
        (ChildSaga("inner", []), DefinitionError, "Saga 'inner' has no steps"),
        (ChildSaga("inner", [Step(name="x", action="")]), DefinitionError, "Saga 'inner': step 1 needs"),
        (ChildSaga("inner", INNER.steps, {"a": object()}), PayloadError, "Saga 'inner': the context cannot"),
        (
            ChildSaga("inner", [Step(name="x", action="do", depends_on=("z",))]),
            DefinitionError,
            "Saga 'inner': step 'x' depends on 'z'",
        ),
    ],
)
def test_a_child_that_cannot_be_run_is_refused_with_its_parent(
    child: ChildSaga, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        parent(child)


def test_a_step_without_a_child_starts_none() -> None:
    saga = saga_of("a")
    with pytest.raises(DefinitionError, match=rf"Saga {ID} \(trip\): step 'a' starts no child saga"):
        child_saga(saga, StartChild(ID, "a", 1, ID), BORN)
    with pytest.raises(DefinitionError):
        plan_child(saga.plan, saga.plan.steps[0], 1, BORN)
    with pytest.raises(UnknownStepError):
        child_saga(saga, StartChild(ID, "x", 1, ID), BORN)


def test_children_have_children() -> None:
    middle = ChildSaga("middle", [Step(name="m", child=INNER)])
    saga = parent(middle)
    child = child_saga(saga, order_of(saga), BORN)
    grandchild = child_saga(child, order_of(child), BORN)
    assert grandchild.name == "inner"
    assert grandchild.context == {"customer": 7}
    assert len({saga.id, child.id, grandchild.id}) == 3
    assert decode_saga(encode_saga(child)) == child


def nested(depth: int) -> ChildSaga:
    child = INNER
    for _ in range(depth - 1):
        child = ChildSaga("inner", [Step(name="x", child=child)])
    return child


def test_children_may_lie_so_deep_within_each_other_and_no_deeper() -> None:
    saga = parent(nested(20))
    assert decode_saga(encode_saga(saga)) == saga
    with pytest.raises(DefinitionError, match="Saga 'inner' is a child saga 21 deep; does one start itself"):
        parent(nested(21))


def test_a_child_that_starts_itself_is_refused() -> None:
    steps: list[Step] = []
    steps.append(Step(name="a", child=ChildSaga("inner", steps)))
    with pytest.raises(DefinitionError, match="does one start itself"):
        define(*steps)


HALF = "\ud800"  # half a character: UTF-8 cannot hold it


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (Step(name="a", action="do", when=when(HALF)), NO_OPTIONS),
        (Step(name="a", action="do", when=when("a", "==", HALF)), NO_OPTIONS),
        (Step(name="a", action="do", retry=RetryPolicy(retry_on=(HALF,))), NO_OPTIONS),
        (Step(name="a", action="do"), Options(tags={"order": HALF})),
        (Step(name="a", child=ChildSaga("inner", INNER.steps, options=Options(tags={HALF: ""}))), NO_OPTIONS),
    ],
)
def test_text_that_cannot_be_kept_is_refused(step: Step, options: Options) -> None:
    with pytest.raises(DefinitionError, match=r"^Saga 'trip' holds text that cannot be kept: .*\\ud800"):
        define(step, options=options)


def test_a_text_in_place_of_names_is_refused() -> None:
    with pytest.raises(
        DefinitionError, match="step 'b': depends_on takes a tuple of names, not the text 'a'"
    ):
        define(Step(name="a", action="do"), Step(name="b", action="do", depends_on="a"))  # type: ignore[arg-type]


def test_a_saga_knows_where_its_pivot_is() -> None:
    assert saga_of("a b").plan.pivot is None
    assert not saga_of("a b").past_pivot
    saga = saga_of("a b! c")
    assert saga.plan.pivot == 1
    assert not play(saga, "a ok").saga.past_pivot
    assert play(saga, "a ok, b ok").saga.past_pivot
    assert play(saga, "a ok, b skips").saga.past_pivot


def test_states_are_strings() -> None:
    assert [str(state) for state in SagaState] == [
        "started",
        "completed",
        "failed",
        "compensating",
        "compensated",
    ]


def test_a_child_saga_has_no_key_of_its_own() -> None:
    child = ChildSaga("inner", [Step(name="x", action="do_x")], options=Options(key="k"))
    with pytest.raises(DefinitionError, match="'inner' is a child saga, and has no key"):
        define(Step(name="a", child=child))
