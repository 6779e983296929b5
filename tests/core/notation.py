"""Short notation for examples, so that a table of them reads as text.

Steps: `"a b- c"` is a saga of three steps, of which `b` has no compensation. Step `a` has the action `do_a`
and the compensation `undo_a`.

Events: `"a ok"`, `"a fails"`, `"undo a ok"`, `"undo a fails"`, each for attempt 1 unless it says another one,
as in `"undo a#2 fails"`; and `"compensate"`, which is somebody's wish. Several are joined by commas.

Commands: `"a#1"` runs the action of `a`, `"undo a#2"` its compensation for the second time.
"""

import re
from collections.abc import Iterable

from msgspec import Raw

from saga_core import (
    Command,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Saga,
    Step,
    StepFailed,
    StepSucceeded,
    Transition,
    new_saga,
    transition,
)

ID = "01HZY3V9Q8W7X6T5S4R3P2N1M0"
BORN = 1_700_000_000.0

_RESULT = re.compile(r"(undo )?(\w+?)(?:#(\d+))? (ok|fails)")


def saga_of(steps: str, *, id: str = ID) -> Saga:
    """Build a saga; `"a b- c"` has three steps, and `b` has no compensation."""
    return new_saga("trip", [step_of(word) for word in steps.split()], {"customer": 7}, id=id, at=BORN)


def step_of(word: str) -> Step:
    name = word.rstrip("-")
    compensation = None if word.endswith("-") else f"undo_{name}"
    return Step(name=name, action=f"do_{name}", compensation=compensation, input={"for": name})


def event_of(text: str, at: float = BORN + 1) -> Event:
    if text == "compensate":
        return CompensationRequested("a person asked", at)
    match = _RESULT.fullmatch(text)
    assert match, f"no event: {text!r}"
    undo, name, attempt, outcome = match.groups()
    number = int(attempt or 1)
    match bool(undo), outcome:
        case False, "ok":
            return StepSucceeded(name, number, output_of(name), at)
        case False, _:
            return StepFailed(name, number, error_of(f"do_{name}"), at)
        case True, "ok":
            return CompensationSucceeded(name, number, at)
        case _:
            return CompensationFailed(name, number, error_of(f"undo_{name}"), at)


def output_of(name: str) -> Raw:
    return Raw(b'{"from":"%s"}' % name.encode())


def error_of(action: str) -> Failure:
    return Failure("broken", f"{action} is broken", details=Raw(b'{"seen":1}'))


def events_of(text: str, after: float = BORN) -> list[Event]:
    """Read several events, one second apart."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [event_of(word, after + second) for second, word in enumerate(words, 1)]


def play(saga: Saga, text: str) -> Transition:
    """Feed the events to the saga and return the last answer; none may be ignored."""
    answer = Transition(saga)
    for event in events_of(text, saga.updated_at):
        answer = transition(answer.saga, event)
        assert answer.ignored is None, answer.ignored
    return answer


def shown(commands: Iterable[Command]) -> str:
    return ", ".join(
        f"{one.step}#{one.attempt}" if isinstance(one, Execute) else f"undo {one.step}#{one.attempt}"
        for one in commands
    )


def states(saga: Saga) -> str:
    return ", ".join(f"{step.name} {step.state}" for step in saga.steps)
