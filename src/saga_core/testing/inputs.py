"""The inputs of transcripts: what can happen to a saga, in words, read and written. `transcript` lists them."""

import re
from typing import Any, cast

import msgspec
from msgspec import Raw

from saga_core.commands import CompensateChild, StartChild
from saga_core.events import (
    CancelRequested,
    ChildRested,
    CompensationDeferred,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    ResumeRequested,
    RetryRequested,
    SkipRequested,
    StepDeferred,
    StepFailed,
    StepResolved,
    StepSkipped,
    StepSucceeded,
    SuspendRequested,
    TimePassed,
)
from saga_core.ids import child_id
from saga_core.model import Progress, Saga
from saga_core.payload import EMPTY
from saga_core.plan import Failure
from saga_core.states import SagaState, StepState
from saga_core.testing.definitions import TranscriptError, name_of, number_text, quoted, tokens_of
from saga_core.testing.world import REASON, Happening, World

_REMARK = re.compile(r"^(?P<what>.*?)(?: by (?P<by>\S+))?(?: because (?P<reason>.*))?$")
_OUTPUT = re.compile(r"\s+(?P<output>\{.*\})$")

_ASKED: dict[str, Any] = {
    "compensate": CompensationRequested,
    "cancel": CancelRequested,
    "retry": RetryRequested,
    "suspend": SuspendRequested,
    "resume": ResumeRequested,
}
_WORDS = {type_: word for word, type_ in _ASKED.items()}


def write_happening(world: World, happening: Happening) -> str:
    """Return the input that lets something happen to a world."""
    what = happening.what
    saga = world.saga(happening.saga)
    assert saga is not None
    words = _written(saga, what)
    if happening.at != world.now and not isinstance(what, TimePassed):
        words = f"at {number_text(happening.at)} {words}"
    while saga.plan.parent is not None:
        parent = saga.plan.parent
        above = world.saga(parent.saga)
        assert above is not None
        latest = above.progress_of(parent.step).attempt == parent.attempt
        words = f"in {quoted(parent.step)}{'' if latest else f' #{parent.attempt}'}: {words}"
        saga = above
    return f"> {words}"


def read_happening(world: World, words: str) -> Happening:
    """Read an input.

    Raises: TranscriptError; UnknownStepError.
    """
    saga = world.sagas[0]
    while words.startswith("in "):
        inner, colon, words = words[3:].partition(":")
        if not colon:
            raise TranscriptError("there should be a colon after the step")
        step, attempt = _step_and_attempt(tokens_of(inner))
        position = saga.plan.position(step)
        found = child_id(saga.plan.id, position, attempt or saga.record(position).attempt)
        child = world.saga(found)
        if child is None:
            raise TranscriptError(f"step {step!r} has started no child")
        saga, words = child, words.strip()
    at = world.now
    if words.startswith("at "):
        _, moment, words = words.split(" ", 2)
        at = float(moment)
    what = _read(saga, world, words, at)
    return Happening(saga.id, what.at if isinstance(what, TimePassed) else at, what)


# Reading


def _read(saga: Saga, world: World, words: str, at: float) -> Event | StartChild | CompensateChild:
    output = EMPTY
    if found := _OUTPUT.search(words):
        output, words = Raw(found["output"].encode()), words[: found.start()]
        msgspec.json.decode(output, type=dict[str, object])
    remark = _REMARK.match(words)
    assert remark is not None
    reason, by = remark["reason"] or REASON, remark["by"] or ""
    verb, *rest = tokens_of(remark["what"]) or [""]
    match verb, rest:
        case "time", [moment]:
            return TimePassed(float(moment))
        case (("compensate" | "start"), ["child", step]):
            return _about_child(saga, verb, name_of(step))
        case "report", [_, *_]:
            return _rested(saga, world, rest, at)
        case "resolve", [step, ("completed" | "failed" | "compensated") as state]:
            return StepResolved(name_of(step), state, reason, at, by, output)
        case "ask", ["to", "skip", step]:
            return SkipRequested(name_of(step), reason, at, by)
        case "compensate", [number] if number.startswith("#"):
            return CompensationRequested(reason, at, by, int(number[1:]))
        case _, [] if verb in _ASKED:
            return cast("Event", _ASKED[verb](reason, at, by))
        case _, ["undo", _, *_]:
            return _undo_result(saga, verb, rest[1:], at)
        case _, [_, *_]:
            return _result(saga, verb, rest, at, output, reason)
        case _:
            raise TranscriptError(f"there is no input {remark['what']!r}")


def _result(saga: Saga, verb: str, rest: list[str], at: float, output: Raw, reason: str) -> Event:
    step, number = _step_and_attempt(rest)
    attempt = number or _latest(saga.progress_of(step))
    code = [name_of(token) for token in rest if token != "retryable"]
    retryable = "retryable" in rest
    if verb in ("fail", "lose"):
        word = code[0] if code else "lost" if verb == "lose" else "failed"
        return StepFailed(step, attempt, Failure(word, word, retryable), at, verb == "lose")
    if verb == "succeed":
        return StepSucceeded(step, attempt, output, at)
    if verb == "skip":
        return StepSkipped(step, attempt, reason, at)
    if verb == "defer":
        return StepDeferred(step, attempt, at)
    raise TranscriptError(f"a step cannot {verb!r}")


def _undo_result(saga: Saga, verb: str, rest: list[str], at: float) -> Event:
    step, number = _step_and_attempt(rest)
    attempt = number or _latest(saga.progress_of(step), undo=True)
    code = [name_of(token) for token in rest if token != "retryable"]
    if verb == "fail":
        word = code[0] if code else "failed"
        return CompensationFailed(step, attempt, Failure(word, word, "retryable" in rest), at)
    if verb == "succeed":
        return CompensationSucceeded(step, attempt, at)
    if verb == "defer":
        return CompensationDeferred(step, attempt, at)
    raise TranscriptError(f"a compensation cannot {verb!r}")


def _about_child(saga: Saga, verb: str, step: str) -> StartChild | CompensateChild:
    position = saga.plan.position(step)
    record = saga.record(position)
    child = child_id(saga.id, position, record.attempt)
    if verb == "start":
        return StartChild(saga.id, step, record.attempt, child)
    return CompensateChild(saga.id, step, record.compensation_attempt, child)


def _rested(saga: Saga, world: World, rest: list[str], at: float) -> ChildRested:
    step, number = _step_and_attempt(rest)
    position = saga.plan.position(step)
    attempt = number or saga.record(position).attempt
    child = child_id(saga.id, position, attempt)
    found = world.saga(child)
    if found is None:
        raise TranscriptError(f"step {step!r} has started no child")
    if not rest:
        return ChildRested(step, attempt, child, found.state, at, found.asked)
    asked = int(rest[2]) if rest[1:2] == ["asked"] else 0
    return ChildRested(step, attempt, child, SagaState(rest[0]), at, asked)


def _latest(record: Progress, *, undo: bool = False) -> int:
    """Return the number of the latest attempt that has gone out, or of the first one."""
    attempt = record.compensation_attempt if undo else record.attempt
    waits = record.waiting and (record.state is StepState.COMPENSATING) is undo
    return max(attempt - waits, 1)


def _step_and_attempt(tokens: list[str]) -> tuple[str, int | None]:
    """Take a step, and an attempt if there is one, off the front of the tokens."""
    step = name_of(tokens.pop(0))
    if tokens and tokens[0].startswith("#"):
        return step, int(tokens.pop(0)[1:])
    return step, None


# Writing


def _written(saga: Saga, what: Event | StartChild | CompensateChild) -> str:
    match what:
        case TimePassed():
            return f"time {number_text(what.at)}"
        case StartChild():
            return f"start child {quoted(what.step)}"
        case CompensateChild():
            return f"compensate child {quoted(what.step)}"
        case StepResolved():
            return f"resolve {quoted(what.step)} {what.state}"
        case SkipRequested():
            return f"ask to skip {quoted(what.step)}"
        case ChildRested():
            latest = saga.progress_of(what.step).attempt == what.attempt
            asked = f" asked {what.asked}" if what.asked else ""
            return f"report {_target(what.step, what.attempt, latest)} {what.state}{asked}"
        case StepSucceeded() | StepSkipped() | StepDeferred() | StepFailed():
            latest = _latest(saga.progress_of(what.step)) == what.attempt
            return _said("", what, _target(what.step, what.attempt, latest))
        case CompensationSucceeded() | CompensationDeferred() | CompensationFailed():
            latest = _latest(saga.progress_of(what.step), undo=True) == what.attempt
            return _said("undo ", what, _target(what.step, what.attempt, latest))
        case CompensationRequested() if what.attempt:
            return f"compensate #{what.attempt}"
        case _:
            return _WORDS[type(what)]


def _said(undo: str, what: Any, target: str) -> str:
    if isinstance(what, StepFailed | CompensationFailed):
        verb = "lose" if isinstance(what, StepFailed) and what.unknown else "fail"
        code = "" if (verb, what.error.code) == ("lose", "lost") else f" {quoted(what.error.code)}"
        return f"{verb} {undo}{target}{code}{' retryable' if what.error.retryable else ''}"
    if isinstance(what, StepSucceeded | CompensationSucceeded):
        return f"succeed {undo}{target}"
    return f"{'skip' if isinstance(what, StepSkipped) else 'defer'} {undo}{target}"


def _target(step: str, attempt: int, latest: bool) -> str:
    return quoted(step) if latest else f"{quoted(step)} #{attempt}"
