"""Graphs: what they may be, what errors say, and the order in which they run and are undone."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga_core import (
    DefinitionError,
    Options,
    RetryPolicy,
    Step,
    TimePassed,
    decode_saga,
    encode_saga,
    new_saga,
    outstanding,
    transition,
    when,
)
from saga_core.graph import build_graph

from .notation import BORN, ID, play, saga_of, shown
from .walks import Definition, Walk, definitions, well

BAD_GRAPHS = {
    "an unknown name": ("a b<x", "step 'b' depends on 'x', and there is no such step"),
    "one of several is unknown": ("a b c<a+y+b", "step 'c' depends on 'y', and there is no such step"),
    "a name twice": ("a b c<a+b+a", "step 'c' names a dependency twice: a, b, a"),
    "itself": ("a b<b", "steps depend on each other in a circle: 'b' → 'b'"),
    "a circle of two": ("a<b b<a", "in a circle: 'a' → 'b' → 'a'"),
    "a circle of three": ("a<c b<a c<b", "in a circle: 'a' → 'c' → 'b' → 'a'"),
    "a circle behind a step": ("a b<a+d c<b d<c", "in a circle: 'b' → 'd' → 'c' → 'b'"),
    "a circle before a step": ("a<b b<c c<b", "in a circle: 'b' → 'c' → 'b'"),
    "a circle beside steps that are fine": ("a b<c c<b d<a", "in a circle: 'b' → 'c' → 'b'"),
    "a circle with the default": ("a<b b", "in a circle: 'a' → 'b' → 'a'"),
    "a step beside the pivot": ("a b!<a c<a", "the pivot 'b' must not run beside other steps, and 'c' can"),
    "steps beside the pivot": ("a b!< c< d<c", "the pivot 'b' .*, and 'a', 'c', 'd' can run"),
    "a step beside a pivot in the middle": ("a b! c d<a", "the pivot 'b' .*, and 'd' can .*; let the pivot depend"),
    "two pivots": ("a! b c!", "has two pivots, 'a' and 'c'; a saga has one point of no return"),
    "three pivots": ("a! b! c!", "has two pivots, 'a' and 'b'"),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "message"), BAD_GRAPHS.values(), ids=BAD_GRAPHS)
def test_a_graph_that_cannot_be_run_is_refused_by_name(steps: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=f"^Saga 'trip':? .*{message}"):
        saga_of(steps)


@pytest.mark.parametrize("steps", ["a!", "a! b c", "a b c!", "a b<a c<a d!<b+c e f<d", "d!<c a< b<a c<b"])
def test_a_pivot_that_runs_alone_is_fine(steps: str) -> None:
    saga_of(steps)


def test_a_graph_knows_who_waits_for_whom() -> None:
    graph = saga_of("a b<a c!<b d<c e<c").plan.graph
    assert graph.dependencies == ((), (0,), (1,), (2,), (2,))
    assert graph.dependents == ((1,), (2,), (3, 4), (), ())
    assert graph.masks == (0, 0b1, 0b10, 0b100, 0b100)
    assert graph.roots == 0b1
    assert graph.behind == 0b11000


def test_a_graph_without_pivot_has_nothing_behind_it() -> None:
    graph = build_graph(("a", "b", "c"), (None, (), ("a", "b")), (True,) * 3, None, "Saga")
    assert graph.dependencies == ((), (), (0, 1))
    assert graph.masks == (0, 0, 0b11)
    assert graph.roots == 0b11
    assert graph.behind == 0


DIAMOND = "a b<a c<a d<b+c"


@pytest.mark.parametrize(
    ("steps", "events", "caused"),
    [
        ("a< b< c<", "", "a#1, b#1, c#1"),
        ("a< b<a", "", "a#1"),
        ("a<c b<a c<", "", "c#1"),
        ("a<c b<a c<", "c ok", "a#1"),
        (DIAMOND, "a ok", "b#1, c#1"),
        (DIAMOND, "a ok, b ok", "c#1"),
        (DIAMOND, "a ok, c ok", "b#1"),
        (DIAMOND, "a ok, c ok, b ok", "d#1"),
        (DIAMOND, "a ok, b skips, c ok", "d#1"),
        (DIAMOND, "a ok, b ok, c fails", "undo b#1"),
        (DIAMOND, "a ok, b fails", "c#1"),
        (DIAMOND, "a ok, b fails, c ok", "undo c#1"),
        (DIAMOND, "a ok, b ok, c ok, d fails", "undo b#1, undo c#1"),
        (DIAMOND, "a ok, b ok, c ok, d fails, undo b ok", "undo c#1"),
        (DIAMOND, "a ok, b ok, c ok, d fails, undo b ok, undo c ok", "undo a#1"),
        (DIAMOND, "a ok, b ok, c ok, d ok, compensate", "undo d#1"),
        ("a b<a c-<a d<b+c", "a ok, b ok, c ok, d fails", "undo b#1"),
        ("a b<a c-<a d<b+c", "a ok, b ok, c ok, d fails, undo b ok", "undo a#1"),
        ("a b-<a c-<a d<b+c", "a ok, b ok, c ok, d fails", "undo a#1"),
        ("a b<a c<a d<b+c", "a ok, b ok, c ok, d lost", "undo d#1"),
        ("a b<a c<a d-<b+c", "a ok, b ok, c ok, d lost", "undo b#1, undo c#1"),
    ],
)  # fmt: skip
def test_steps_run_when_all_before_them_has_ended_well_and_are_undone_in_reverse(
    steps: str, events: str, caused: str
) -> None:
    assert shown(outstanding(play(saga_of(steps), events).saga)) == caused


@settings(deadline=None, max_examples=60)
@given(definitions(), st.randoms(use_true_random=False))
def test_any_graph_runs_in_an_order_of_its_dependencies_to_the_end(
    definition: Definition, chance: object
) -> None:
    """All steps well: each begins after those that it waits for, and none is left out."""
    plain = Definition(
        tuple(
            type(step)(name=step.name, action="do", depends_on=step.depends_on) for step in definition.steps
        )
    )
    walk = Walk(plain)
    ended: list[str] = []
    while walk.flight():
        command = chance.choice(walk.flight())  # type: ignore[attr-defined]
        place = walk.saga.plan.graph.positions[command.step]
        names = [step.name for step in plain.steps]
        assert {names[other] for other in walk.saga.plan.graph.dependencies[place]} <= set(ended)
        walk.take(well(command, walk.now))
        ended.append(command.step)
    assert sorted(ended) == sorted(step.name for step in plain.steps)
    assert walk.saga.is_completed


# Large ones.

MANY = 1000


def many(form: str) -> str:
    if form == "chain":
        return " ".join(f"s{n}" for n in range(MANY))
    if form == "backwards":
        return " ".join(f"s{n}<" + (f"s{n + 1}" if n < MANY - 1 else "") for n in range(MANY))
    if form == "wide":
        return " ".join(f"s{n}<" for n in range(MANY))
    if form == "fan":
        return (
            "first "
            + " ".join(f"s{n}<first" for n in range(MANY - 2))
            + " last<"
            + "+".join(f"s{n}" for n in range(MANY - 2))
        )
    raise AssertionError(form)


@pytest.mark.parametrize("form", ["chain", "backwards", "wide", "fan"])
def test_a_saga_of_a_thousand_steps_runs_to_its_end_and_back(form: str) -> None:
    saga = saga_of(many(form))
    for operation, count in (("", MANY), ("undo ", MANY)):
        done = 0
        while commands := outstanding(saga):
            for command in commands:
                saga = transition(saga, well(command, saga.updated_at + 1)).saga
                done += 1
        assert done == count
        if not operation:
            assert saga.is_completed
            saga = play(saga, "compensate").saga
    assert saga.is_compensated


def test_a_thousand_steps_that_are_all_skipped_end_in_one_go() -> None:
    never = when("missing")
    steps = [Step(name=f"s{n}", action="do", when=never) for n in range(MANY)]
    assert new_saga("trip", steps, id=ID, at=BORN).is_completed
    late = new_saga("trip", steps, id=ID, at=BORN, options=Options(start_at=BORN + 5))
    assert transition(late, TimePassed(BORN + 5)).saga.is_completed
    first = [Step(name="first", action="do", compensation="undo"), *steps]
    saga = play(new_saga("trip", first, id=ID, at=BORN), "first ok").saga
    assert saga.is_completed
    assert shown(play(saga, "compensate").commands) == "undo first#1"


def test_a_thousand_steps_that_all_wait_for_another_attempt_are_given_up_in_one_go() -> None:
    names = [f"s{n}" for n in range(MANY)]
    retry = {name: {"retry": RetryPolicy()} for name in names}
    saga = saga_of(" ".join(f"{name}<" for name in names), **retry)
    saga = play(saga, ", ".join(f"{name} busy" for name in names)).saga
    assert play(saga, "cancel").saga.is_compensated


def test_a_circle_of_a_thousand_steps_is_found() -> None:
    with pytest.raises(DefinitionError, match="'s0' → 's999' → 's998'"):
        saga_of("s0<s999 " + " ".join(f"s{n}" for n in range(1, MANY)))


def test_all_orders_of_two_ends_lead_to_one_join() -> None:
    for order in itertools.permutations("bcd"):
        saga = play(
            saga_of("a b<a c<a d<a e<b+c+d"), "a ok, " + ", ".join(f"{name} ok" for name in order)
        ).saga
        assert shown(outstanding(saga)) == "e#1"


def test_a_graph_with_more_paths_than_anybody_can_walk_is_checked() -> None:
    """Forty joins one after the other have 2 ** 40 paths through them."""
    words = "a0<" + "".join(f" l{n}<a{n} r{n}<a{n} a{n + 1}<l{n}+r{n}" for n in range(40)) + " end!"
    assert saga_of(words).plan.graph.behind == 0
    assert saga_of(words.replace("a0<", "a0!<").replace("end!", "end")).plan.graph.behind == (1 << 122) - 2


def test_sagas_of_a_kind_share_their_graph_whatever_else_they_differ_in() -> None:
    first, second = (
        new_saga("trip", [Step(name="a", action=f"do_{number}", timeout=number)], id=ID, at=BORN)
        for number in (1.0, 2.0)
    )
    assert first.plan.graph is second.plan.graph is decode_saga(encode_saga(first)).plan.graph
