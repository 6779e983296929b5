"""Short notation for examples, so that a table of them reads as text.

Steps: `"a b- c"` is a saga of three steps, of which `b` has no compensation. Step `a` has the action `do_a`
and the compensation `undo_a`. `"a b<a c<a d<b+c"` is a diamond, `c<` depends on nothing, `c!` is the pivot, and
`c*` starts a child saga.

Events: `"a ok"`, `"a fails"` (for good), `"a busy"` (worth another attempt), `"a lost"` (nobody knows), `"a skips"`,
`"a later"`; with `undo` before it, `ok`, `fails`, `busy` and `later`; each for attempt 1 unless it says another one, as
in `"undo a#2 fails"`. `"child a completed"` is the report of a child saga. `"wait 30"`: half a minute passes. People:
`"compensate"`, `"cancel"`, `"retry"`, `"suspend"`, `"resume"`, `"skip a"` and `"resolve a completed"`. Several are
joined by commas, and are one second apart.

Commands: `"a#1"` runs the action of `a`, `"undo a#2"` its compensation for the second time.
"""

import re
from collections.abc import Iterable
from typing import Any

from msgspec import Raw
from msgspec.structs import replace

from saga_core import (
    CancelRequested,
    ChildRested,
    ChildSaga,
    Command,
    CompensateChild,
    CompensationDeferred,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Options,
    Report,
    ResumeRequested,
    RetryRequested,
    Saga,
    SagaState,
    SkipRequested,
    StartChild,
    Step,
    StepDeferred,
    StepFailed,
    StepResolved,
    StepSkipped,
    StepSucceeded,
    SuspendRequested,
    TimePassed,
    Transition,
    new_saga,
    transition,
)
from saga_core.options import NO_OPTIONS

ID = "01HZY3V9Q8W7X6T5S4R3P2N1M0"
BORN = 1_700_000_000.0

INNER = ChildSaga("inner", [Step(name="x", action="do_x", compensation="undo_x")])

_STEP = re.compile(r"(\w+)([-!*]*)(<(.*))?")
_RESULT = re.compile(r"(undo )?(\w+?)(?:#(\d+))? (ok|fails|busy|lost|skips|later)")
_PEOPLE = {
    "compensate": CompensationRequested,
    "cancel": CancelRequested,
    "retry": RetryRequested,
    "suspend": SuspendRequested,
    "resume": ResumeRequested,
}


def saga_of(steps: str, *, id: str = ID, options: Options = NO_OPTIONS, **more: dict[str, Any]) -> Saga:
    """Build a saga; `"a b- c"` has three steps, and `b` has no compensation. `b={"timeout": 5}` adds to step `b`."""
    made = [step_of(word) for word in steps.split()]
    made = [replace(step, **more.get(step.name, {})) for step in made]
    return new_saga("trip", made, {"customer": 7}, id=id, at=BORN, options=options)


def step_of(word: str) -> Step:
    match = _STEP.fullmatch(word)
    assert match, f"no step: {word!r}"
    name, marks, depends, others = match.groups()
    depends_on = tuple(filter(None, others.split("+"))) if depends else None
    if "*" in marks:
        return Step(name=name, child=INNER, depends_on=depends_on, pivot="!" in marks)
    return Step(
        name=name,
        action=f"do_{name}",
        compensation=None if "-" in marks else f"undo_{name}",
        input={"for": name},
        depends_on=depends_on,
        pivot="!" in marks,
    )


def event_of(text: str, at: float = BORN + 1) -> Event:
    words = text.split()
    if text in _PEOPLE:
        return _PEOPLE[text]("a person asked", at)
    if words[0] == "wait":
        return TimePassed(at)
    if words[0] == "skip":
        return SkipRequested(words[1], "a person asked", at)
    if words[0] == "resolve":
        return StepResolved(words[1], words[2], "a person looked", at, "Ann", output_of(words[1]))
    if words[0] == "child":
        name, _, number = words[1].partition("#")
        return ChildRested(name, int(number or 1), ID, SagaState(words[2]), at)
    match = _RESULT.fullmatch(text)
    assert match, f"no event: {text!r}"
    undo, name, attempt, outcome = match.groups()
    number = int(attempt or 1)
    error = replace(error_of(f"{'undo' if undo else 'do'}_{name}"), retryable=outcome == "busy")
    match bool(undo), outcome:
        case False, "ok":
            return StepSucceeded(name, number, output_of(name), at)
        case False, "skips":
            return StepSkipped(name, number, "nothing to do", at)
        case False, "later":
            return StepDeferred(name, number, at)
        case False, _:
            return StepFailed(name, number, error, at, outcome == "lost")
        case True, "ok":
            return CompensationSucceeded(name, number, at)
        case True, "later":
            return CompensationDeferred(name, number, at)
        case _:
            return CompensationFailed(name, number, error, at)


def output_of(name: str) -> Raw:
    return Raw(b'{"from":"%s"}' % name.encode())


def error_of(action: str) -> Failure:
    return Failure("broken", f"{action} is broken", details=Raw(b'{"seen":1}'))


def events_of(text: str, after: float = BORN) -> list[Event]:
    """Read several events, one second apart where they do not say how long to wait."""
    events = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        after += float(word.split()[1]) if word.startswith("wait ") else 1
        events.append(event_of(word, after))
    return events


def play(saga: Saga, text: str) -> Transition:
    """Feed the events to the saga and return the last answer; none may be ignored."""
    answer = Transition(saga)
    for event in events_of(text, saga.updated_at):
        answer = transition(answer.saga, event)
        assert answer.ignored is None, answer.ignored
    return answer


def shown(commands: Iterable[Command]) -> str:
    return ", ".join(map(_shown, commands))


def _shown(command: Command) -> str:
    if isinstance(command, Report):
        return f"report {command.state}"
    start = isinstance(command, Execute | StartChild)
    child = "child " if isinstance(command, StartChild | CompensateChild) else ""
    return f"{'' if start else 'undo '}{child}{command.step}#{command.attempt}"


def states(saga: Saga) -> str:
    return ", ".join(f"{step.name} {step.state}" for step in saga.steps)
