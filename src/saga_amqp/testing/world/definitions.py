"""Random sagas with everything that a saga can have, and random behaviour for each of their handlers."""

from random import Random
from typing import Any

from msgspec import Struct

from saga_amqp.testing.world.services import Act, Behaviour, Call, Outcome
from saga_core import ChildSaga, Options, RetryPolicy, Step, when

CONTEXT: dict[str, object] = {"yes": True, "no": False, "total": 7, "who": {"name": "Ann"}}

POLICIES = (
    RetryPolicy(max_attempts=2, jitter=0),
    RetryPolicy(max_attempts=3, initial_delay=0, jitter=0.5),
    RetryPolicy(max_attempts=3, initial_delay=4, max_delay=6),
    RetryPolicy(max_attempts=5),
    RetryPolicy(max_attempts=None, initial_delay=2, multiplier=1, retry_on=("busy", "timeout")),
)
CONDITIONS = (
    when("yes"),
    when("no"),
    ~when("no"),
    when("total", ">", 9),
    when("who.name", "in", ("Ann", "Bob")),
)

DEEPEST = 2
"""How deep child sagas lie within each other."""


class Mood(Struct, frozen=True):
    """What the sagas of one world are like.

    How often, from 0 to 1, a handler fails, is slow, defers, has a timeout, hears of no cancellation, and so on.
    """

    trouble: float
    slowness: float
    deferring: float
    timeouts: float
    children: float
    unguarded: float
    rich: float
    deafness: float
    most: int


def draw_mood(source: Random) -> Mood:
    """Draw what a world's sagas are like."""
    few = source.choice
    return Mood(
        trouble=few((0.0, 0.05, 0.15, 0.4)),
        slowness=few((0.0, 0.2, 0.6)),
        deferring=few((0.0, 0.1, 0.3)),
        timeouts=few((0.0, 0.3, 0.6)),
        children=few((0.0, 0.1, 0.3)),
        unguarded=few((0.0, 0.0, 0.3)),
        rich=few((0.0, 0.3, 0.7)),
        deafness=few((0.0, 0.3, 0.8)),
        most=few((3, 5, 8)),
    )


def draw_steps(source: Random, mood: Mood, depth: int = 0) -> list[Step[Any]]:
    """Draw the steps of a saga."""
    many = source.randint(1, mood.most if depth == 0 else 3)
    linear = source.random() < 0.5
    pivot = source.randrange(many) if source.random() < 0.25 else None
    steps: list[Step[Any]] = []
    for position in range(many):
        if linear:
            wanted = {position - 1} if position else set[int]()
        else:
            wanted = (
                {source.randrange(position) for _ in range(source.randint(0, 2))} if position else set[int]()
            )
        if pivot is not None and position == pivot:
            wanted = set(range(position))
        elif pivot is not None and position > pivot:
            wanted.add(pivot)
        names = tuple(f"t{other}" for other in sorted(wanted))
        steps.append(_step(source, mood, depth, f"t{position}", names, position == pivot))
    return steps


def draw_options(source: Random, mood: Mood, now: float, key: str | None) -> Options:
    """Draw what a saga as a whole is told."""
    rich = source.random() < mood.rich
    return Options(
        start_at=now + source.uniform(-5, 40) if rich and source.random() < 0.3 else None,
        timeout=source.choice((4.0, 30.0, 120.0)) if rich and source.random() < 0.3 else None,
        compensation_order=source.choice(("parallel", "parallel", "sequential")),
        key=key,
    )


def _step(
    source: Random, mood: Mood, depth: int, name: str, wanted: tuple[str, ...], pivot: bool
) -> Step[Any]:
    given: dict[str, Any] = {"name": name, "depends_on": wanted, "pivot": pivot}
    if source.random() < mood.rich and source.random() < 0.25:
        given["when"] = source.choice(CONDITIONS)
    if source.random() < 0.3:
        given["compensation_retry"] = source.choice(POLICIES)
    if depth < DEEPEST and source.random() < mood.children:
        given["child"] = ChildSaga(f"inner{depth + 1}", draw_steps(source, mood, depth + 1))
        if source.random() < mood.timeouts:
            given["timeout"] = source.choice((10.0, 60.0))
        return Step(**given)
    if source.random() < 0.5:
        given["retry"] = source.choice(POLICIES)
    timeout = source.choice((1.0, 5.0, 30.0)) if source.random() < mood.timeouts else None
    if timeout is not None:
        given["timeout"] = timeout
    if source.random() < mood.timeouts / 2:
        given["total_timeout"] = source.choice((1.0, 8.0, 40.0))
    undo_timeout = source.choice((2.0, 20.0)) if source.random() < mood.timeouts else None
    if undo_timeout is not None:
        given["compensation_timeout"] = undo_timeout
    given["input"] = Behaviour(
        do=_acts(source, mood, timeout, skips=True),
        undo=_acts(source, mood, undo_timeout, skips=False),
        guarded=source.random() >= mood.unguarded,
    )
    return Step(action="do", compensation="undo" if source.random() < 0.8 else None, **given)


def _acts(source: Random, mood: Mood, timeout: float | None, *, skips: bool) -> tuple[Act, ...]:
    acts = [_act(source, mood, timeout, skips=skips) for _ in range(source.choice((1, 1, 2, 3)))]
    if source.random() < 0.3 or any(act != Act() for act in acts):
        # In the end it is quick: what is slower than its timeout would be tried again for days.
        acts.append(Act("broken" if source.random() < mood.trouble / 3 else "well"))
    return tuple(acts)


def _act(source: Random, mood: Mood, timeout: float | None, *, skips: bool) -> Act:
    outcome: Outcome = "well"
    if source.random() < mood.trouble:
        outcome = source.choice(("busy", "busy", "busy", "broken", "odd", "unwritable"))
        if outcome == "unwritable" and not skips:
            outcome = "odd"  # nobody reads what a compensation returns
        if timeout is not None and source.random() < 0.3:
            outcome = "hang"
    elif skips and source.random() < 0.05:
        outcome = "skip"
    elif source.random() < mood.deferring:
        outcome = "later"
    before = source.choice((0.01, 1.0, 8.0)) * source.random() if source.random() < mood.slowness else 0.0
    after = source.choice((0.01, 1.0, 8.0)) * source.random() if source.random() < mood.slowness else 0.0
    twice = outcome == "well" and source.random() < mood.deferring / 2
    call = _call(source, mood) if outcome == "later" or twice else None
    deaf = False
    if timeout is not None and outcome != "hang" and source.random() < mood.deafness:
        deaf, before = True, timeout * source.uniform(0.5, 3.0)
    return Act(outcome, before, after, call, deaf)


def _call(source: Random, mood: Mood) -> Call:
    troubled = source.random() < mood.trouble
    return Call(
        after=source.choice((0.0, 0.1, 5.0, 40.0)) * source.random(),
        outcome=source.choice(("busy", "broken")) if troubled else "well",
        times=2 if source.random() < 0.2 else 1,
        forged=source.random() < 0.1,
    )
