"""Every state of some sagas, visited. `test_explore_finds` shows that no broken rule is overlooked."""

import sys
from functools import cache
from typing import Any
from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from saga_core import machine, shortcut
from saga_core.conditions import when
from saga_core.draft import Transition
from saga_core.errors import DefinitionError, StepError
from saga_core.events import CompensationSucceeded, Event
from saga_core.machine import TABLE
from saga_core.model import Saga
from saga_core.options import Options
from saga_core.plan import ChildSaga, Step
from saga_core.retry import RetryPolicy
from saga_core.states import SagaState, StepState
from saga_core.testing import Exploration, TooManyStates, Violation, explore, simulate, world
from saga_core.testing.world import Happening, World, happen, happenings

ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, initial_delay=10)
AT_ONCE = RetryPolicy(max_attempts=2, initial_delay=0)
SEQUENTIAL = Options(compensation_order="sequential")

Steps = list[Step[Any]]


def step(name: str, *after: str, undo: bool = True, **more: Any) -> Step[Any]:
    compensation = f"undo_{name}" if undo else None
    return Step(name=name, action=name, compensation=compensation, depends_on=after, **more)


def child(name: str, *after: str, steps: Steps, **more: Any) -> Step[Any]:
    return Step(name=name, depends_on=after, child=ChildSaga(name, steps), **more)


PAIR = [step("a", retry=TWICE), step("b", "a")]
PIVOT = [
    step("a"),
    step("pay", "a", pivot=True),
    step("ship", "pay", retry=TWICE),
    step("gift", "ship", undo=False, when=when("gift")),
]
HALVES = [step("pay", pivot=True), step("x", "pay"), step("y", "pay"), step("z", "x", when=when("gift"))]
KID = child("kid", steps=[step("x")])

CASES: dict[str, tuple[Steps, dict[str, Any], str]] = {
    "an order, with a parallel pair": (
        [
            step("create"),
            step("reserve", "create"),
            step("charge", "create", retry=TWICE),
            step("ship", "reserve", "charge"),
            step("notify", "ship", undo=False),
        ],
        {},
        "1726 states, 5854 transitions, depth 11; at rest: 48 completed, 143 failed, 66 compensated",
    ),
    "a diamond that is joined by its pivot": (
        [
            step("a"),
            step("b", "a"),
            step("c", "a"),
            step("pay", "b", "c", pivot=True, retry=TWICE),
            step("ship", "pay"),
            step("mail", "pay", undo=False),
        ],
        {},
        "4206 states, 20861 transitions, depth 11; at rest: 162 completed, 326 failed, 24 compensated",
    ),
    "retries, timeouts and callbacks": (
        [
            step("a", retry=TWICE, timeout=7, total_timeout=20),
            step("b", "a", timeout=30, compensation_timeout=5),
        ],
        {"options": Options(timeout=50), "failures": 2},
        "130 states, 838 transitions, depth 9; at rest: 6 completed, 6 failed, 6 compensated",
    ),
    "retries side by side with a timeout": (
        [step("a", retry=TWICE, timeout=7), step("b", timeout=17), step("c", retry=AT_ONCE, timeout=7)],
        {},
        "2857 states, 35115 transitions, depth 9; at rest: 18 completed, 37 failed, 26 compensated",
    ),
    "a delayed start": (
        [step("a", when=when("x"), undo=False), step("b", timeout=4)],
        {"options": Options(start_at=9, timeout=3)},
        "14 states, 49 transitions, depth 5; at rest: 2 completed, 1 failed, 2 compensated",
    ),
    "a delayed start with nothing to do": (
        [step("a", when=when("x"))],
        {"options": Options(start_at=9)},
        "2 states, 1 transitions, depth 1; at rest: 1 completed",
    ),
    "three alike": (
        [step("a"), step("b"), step("c")],
        {},
        "244 states, 1319 transitions, depth 10; at rest: 4 completed, 10 failed, 9 compensated",
    ),
    "one after the other": (
        [step("a"), step("b"), step("c"), step("d", "a", "b")],
        {"options": SEQUENTIAL},
        "1093 states, 3731 transitions, depth 10; at rest: 16 completed, 120 failed, 58 compensated",
    ),
    "a child, with a timeout": (
        [
            step("a"),
            child("kid", steps=[step("x"), step("y", "x", undo=False)], timeout=5),
            step("z", "a", "kid", undo=False),
        ],
        {},
        "2767 states, 12373 transitions, depth 13; at rest: 16 completed, 91 failed, 109 compensated",
    ),
    "a child that is past its pivot": (
        [step("a"), child("kid", steps=[step("x", pivot=True), step("y", "x")])],
        {"failures": 0},
        "192 states, 666 transitions, depth 7; at rest: 8 completed, 14 failed, 6 compensated",
    ),
    "a grandchild": (
        [child("kid", steps=[child("grandkid", steps=[step("x")]), step("y", "grandkid", undo=False)])],
        {},
        "60 states, 108 transitions, depth 9; at rest: 4 completed, 6 compensated",
    ),
    "a child at the pivot, by hand": (
        [child("kid", pivot=True, steps=[step("x")]), step("y", "kid")],
        {"operations": ("cancel", "resolve")},
        "591 states, 2731 transitions, depth 10; at rest: 105 completed, 70 failed, 36 compensated",
    ),
    "only a child at the pivot, cancelled": (
        [child("kid", pivot=True, steps=[step("x", undo=False)])],
        {"operations": ("cancel",)},
        "30 states, 62 transitions, depth 4; at rest: 4 completed, 6 compensated",
    ),
    "a child behind the pivot, by hand": (
        [step("pay", pivot=True), child("kid", "pay", steps=[step("x")])],
        {"operations": ("resolve", "compensate", "retry")},
        "2802 states, 10859 transitions, depth 15; at rest: 466 completed, 550 failed, 12 compensated",
    ),
    "a child, by hand": (
        [KID],
        {"operations": ("compensate", "resolve", "retry")},
        "450 states, 1238 transitions, depth 13; at rest: 52 completed, 38 failed, 117 compensated",
    ),
    "undone, and tried again": (
        PAIR,
        {"operations": ("compensate", "retry")},
        "244 states, 702 transitions, depth 8; at rest: 12 completed, 26 failed, 30 compensated",
    ),
    "cancelled, and resolved": (
        PAIR,
        {"operations": ("cancel", "resolve")},
        "206 states, 629 transitions, depth 8; at rest: 10 completed, 23 failed, 28 compensated",
    ),
    "skipped, resolved, and tried again": (
        PAIR,
        {"operations": ("skip", "resolve", "retry")},
        "314 states, 942 transitions, depth 7; at rest: 32 completed, 32 failed, 46 compensated",
    ),
    "suspended, resumed and cancelled": (
        PAIR,
        {"operations": ("suspend", "resume", "cancel")},
        "401 states, 1225 transitions, depth 10; at rest: 18 completed, 39 failed, 39 compensated",
    ),
    "side by side, resolved and undone": (
        [step("a"), step("b")],
        {"operations": ("resolve", "compensate")},
        "226 states, 1040 transitions, depth 8; at rest: 5 completed, 15 failed, 21 compensated",
    ),
    "one after the other, tried again": (
        [step("a"), step("b")],
        {"operations": ("compensate", "retry"), "options": SEQUENTIAL},
        "306 states, 920 transitions, depth 9; at rest: 4 completed, 28 failed, 27 compensated",
    ),
    "a pivot, by hand": (
        PIVOT,
        {"operations": ("skip", "resolve", "retry")},
        "743 states, 2888 transitions, depth 8; at rest: 93 completed, 94 failed, 40 compensated",
    ),
    "a pivot, suspended": (
        PIVOT,
        {"operations": ("suspend", "resume")},
        "293 states, 846 transitions, depth 8; at rest: 24 completed, 39 failed, 16 compensated",
    ),
    "a pivot at the end, cancelled": (
        [step("a"), replace(step("pay", pivot=True), depends_on=None)],
        {"operations": ("cancel", "resolve")},
        "157 states, 417 transitions, depth 7; at rest: 14 completed, 17 failed, 25 compensated",
    ),
    "two ways behind the pivot": (
        HALVES,
        {"operations": ("skip", "suspend", "resume")},
        "2954 states, 17048 transitions, depth 9; at rest: 108 completed, 198 failed, 12 compensated",
    ),
    "out of time behind the pivot": (
        [step("pay", pivot=True), step("ship", "pay", total_timeout=20), step("mail", "ship", undo=False)],
        {"operations": ("skip", "resolve")},
        "342 states, 1540 transitions, depth 7; at rest: 63 completed, 53 failed, 8 compensated",
    ),
    "nothing to undo, suspended": (
        [step("a", undo=False, timeout=5), step("b", undo=False)],
        {"operations": ("suspend", "resume")},
        "141 states, 1192 transitions, depth 4; at rest: 12 completed, 25 compensated",
    ),
    "a compensation out of time, suspended": (
        [
            step("a", compensation_retry=ONCE, compensation_timeout=5),
            step("b", "a", undo=False, timeout=5),
        ],
        {"operations": ("suspend", "resume")},
        "95 states, 470 transitions, depth 5; at rest: 12 completed, 9 failed, 16 compensated",
    ),
}


@cache
def explored(name: str) -> Exploration:
    steps, arguments, _ = CASES[name]
    return explore(steps, **arguments)


@pytest.mark.parametrize("name", CASES)
def test_every_state_is_visited_and_all_invariants_hold(name: str) -> None:
    """The numbers are asserted so that a change in what can be reached is seen."""
    found = str(explored(name))
    print(f"{name}: {found}")
    assert found == CASES[name][2]


def test_all_moves_of_the_table_occur_and_no_others() -> None:
    occurred = frozenset[tuple[str, SagaState, SagaState]]().union(*(explored(name).edges for name in CASES))
    table = {
        (event.__name__, state, other)
        for event, row in TABLE.items()
        for state, following in row.leads.items()
        for other in following
    }
    assert occurred == table


@pytest.mark.parametrize(
    "name",
    [
        "an order, with a parallel pair",
        "suspended, resumed and cancelled",
        "skipped, resolved, and tried again",
        "a pivot, by hand",
        "retries, timeouts and callbacks",
        "a child, by hand",
    ],
)
def test_the_shortcut_of_the_commonest_event_changes_no_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, long = 0, 0

    def both_ways(saga: Saga, event: Event) -> Transition:
        nonlocal short, long
        with monkeypatch.context() as patch:
            decided = Mock(wraps=machine.decide)
            patch.setattr(shortcut, "decide", decided)
            answer = shortcut.transition(saga, event)
        short, long = short + (not decided.called), long + decided.called
        assert answer == machine.decide(saga, event)
        return answer

    monkeypatch.setattr(world, "transition", both_ways)
    steps, arguments, _ = CASES[name]
    explore(steps, **arguments)
    assert bool(short) == (name not in {"retries, timeouts and callbacks", "a child, by hand"})
    assert long


def test_steps_that_are_alike_change_places_without_loss() -> None:
    steps, _, _ = CASES["three alike"]
    every = explore(steps, invariants=[lambda saga: None])
    some = explored("three alike")
    assert (every.depth, every.edges, set(every.resting)) == (some.depth, some.edges, set(some.resting))
    assert every.states > 3 * some.states


@pytest.mark.parametrize(
    "name",
    [
        "retries, timeouts and callbacks",
        "three alike",
        "a child, by hand",
        "undone, and tried again",
        "a pivot, suspended",
    ],
)
def test_states_that_count_as_one_lead_to_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ways_on(search: Any, world: World) -> set[tuple[str, object]]:
        results = [
            (type(happening.what).__name__, happen(world, happening))
            for happening in happenings(world, search.failures, search.operations)
        ]
        return {
            (what, search._key(result.world))
            for what, result in results
            if result.answer is None or result.answer.ignored is None
        }

    def comparing(search: Any, index: int, happening: Happening, world: World) -> None:
        nonlocal compared
        known = search.keys.get(search._key(world))
        if known is not None and search.worlds[known].sagas != world.sagas:
            assert ways_on(search, search.worlds[known]) == ways_on(search, world)
            compared += 1
        arrive(search, index, happening, world)

    compared = 0
    search = sys.modules["saga_core.testing.explore"]._Search
    arrive = search._arrive
    monkeypatch.setattr(search, "_arrive", comparing)
    steps, arguments, _ = CASES[name]
    explore(steps, **arguments)
    assert compared > 100


def test_more_failures_lead_further() -> None:
    steps = [step("a", retry=RetryPolicy(max_attempts=None))]
    assert [explore(steps, failures=most).states for most in range(4)] == [9, 19, 28, 37]


def test_a_simulated_child_past_its_pivot_cannot_be_undone() -> None:
    steps = [child("kid", steps=[step("x", pivot=True)]), step("b", "kid")]
    run = simulate(steps, outcomes={"b": StepError("busy", "no time")})
    assert run.saga.state is SagaState.FAILED
    error = run.saga.step("kid").error
    assert error is not None
    assert error.code == "child_past_pivot"


def test_a_saga_with_too_many_states_is_reported() -> None:
    with pytest.raises(TooManyStates, match="more than 50 states; explore with fewer failures"):
        explore(PIVOT, limit=50)


def test_a_definition_that_cannot_run_is_reported() -> None:
    with pytest.raises(DefinitionError, match="depends on 'c', and there is no such step"):
        explore([step("a", "c")])


# Invariants of users.


def test_an_invariant_of_a_state_is_checked() -> None:
    def never_both(saga: Saga) -> str | None:
        both = all(saga.step(name).state is StepState.COMPENSATED for name in "ab")
        return "both are undone" if both else None

    with pytest.raises(Violation, match="both are undone") as raised:
        explore([step("a"), step("b", "a"), step("c", "b")], invariants=[never_both])
    assert raised.value.length == 4


def test_an_invariant_that_raises_is_reported_with_its_trace() -> None:
    def incomplete(saga: Saga) -> str | None:
        return {0: None}[saga.revision]

    with pytest.raises(Violation, match="KeyError is raised: 1") as raised:
        explore([step("a")], invariants=[incomplete])
    assert raised.value.length == 1
    assert isinstance(raised.value.__cause__, KeyError)


def test_an_invariant_of_an_event_is_checked() -> None:
    def no_money_back(before: Saga, event: Event, after: Saga) -> str | None:
        undone = isinstance(event, CompensationSucceeded) and event.step == "pay"
        return f"the money goes back at revision {after.revision}" if undone else None

    with pytest.raises(Violation, match="the money goes back at revision 2") as raised:
        explore([step("pay"), step("ship", "pay")], invariants=[no_money_back])
    assert raised.value.trace == (
        """saga explored
step pay / undo_pay
step ship / undo_ship: after pay

> start
  saga: started
  pay: started #1
  -> execute pay #1

> lose pay
  saga: compensating
  pay: compensating #1
  -> undo pay #1

> succeed undo pay
  saga: compensated
  pay: compensated
"""
    )
