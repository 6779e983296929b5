"""Handlers as the core sees them: what they have to look like, and what their answers and failures become.

A handler is the user's async function `(saga, step)`. Nothing here calls one: an engine or a simulation does. Where a
handler annotates the step as `Step[T]`, with a msgspec Struct or a dataclass for T, the step's input is read into T
and validated before the handler runs.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast, get_args, get_origin

import msgspec
import msgspec.inspect

from saga_core.commands import Compensate, Execute
from saga_core.errors import HandlerError, PayloadError, StepError
from saga_core.events import (
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Event,
    StepDeferred,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from saga_core.model import Saga
from saga_core.payload import encode_payload
from saga_core.plan import Failure, Step

StepHandler = Callable[[Saga, Step[Any]], Awaitable[object]]
CompensationHandler = Callable[[Saga, Step[Any]], Awaitable[object]]

LONGEST_MESSAGE = 4_000


class Skip(msgspec.Struct, frozen=True):
    """Return this from an action that finds nothing to do: the step counts as ended well, and is not compensated."""

    reason: str = ""


class Defer(msgspec.Struct, frozen=True):
    """Return this from a handler whose result will come from outside, with the step's token."""


class Handler(msgspec.Struct, frozen=True):
    """A checked handler, and the type that it wants the step's input in (None: a dict)."""

    function: StepHandler
    input_type: type | None


def check_handler(function: Any, what: str) -> Handler:
    """Check that a function can serve as a handler; `what` names it in errors.

    Raises: HandlerError.
    """
    if not callable(function):
        raise HandlerError(f"{what} is not a function, but {function!r}")
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
        raise HandlerError(f"{what}, {function!r}, is not async; write it as `async def`")
    signature = inspect.signature(function)
    try:
        bound = signature.bind(None, None)
    except TypeError as error:
        raise HandlerError(f"{what} must take (saga, step), but takes {signature}: {error}") from None
    arguments = [
        name
        for name in bound.arguments
        if signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    annotation = signature.parameters[arguments[1]].annotation if len(arguments) > 1 else None
    return Handler(cast("StepHandler", function), _input_type(function, annotation, what))


def _input_type(function: Any, annotation: object, what: str) -> type | None:
    """Find T where a handler's second argument is annotated `Step[T]`."""
    if isinstance(annotation, str):
        annotation = _evaluate(annotation, function, what)
    if get_origin(annotation) is not Step:
        return None
    (wanted,) = get_args(annotation)
    if isinstance(wanted, TypeVar) or wanted is Any or wanted is object:
        return None
    try:
        unknown = isinstance(msgspec.inspect.type_info(wanted), msgspec.inspect.CustomType)
        msgspec.json.Decoder(wanted)
    except TypeError as error:
        raise HandlerError(
            f"{what} wants its input as {wanted!r}, which cannot be read from JSON: {error}"
        ) from None
    if unknown:
        raise HandlerError(
            f"{what} wants its input as {wanted!r}, which cannot be read from JSON; use a Struct or a dataclass"
        )
    return wanted  # type: ignore[no-any-return]


def _evaluate(annotation: str, function: Any, what: str) -> object:
    """Read an annotation that is kept as text, as `from __future__ import annotations` does."""
    target = inspect.unwrap(function)
    while isinstance(target, partial):
        target = inspect.unwrap(target.func)
    names = getattr(target, "__globals__", None) or getattr(type(target).__call__, "__globals__", {})
    try:
        return eval(annotation, names)  # the user's own source, as typing.get_type_hints does
    except Exception as error:
        if "[" not in annotation:  # a plain `Step` that only type checkers import: it says no type
            return None
        raise HandlerError(
            f"{what} annotates its step as {annotation!r}, which cannot be read at run time ({error}); "
            f"import the names where the module can see them"
        ) from None


def answer_event(command: Execute | Compensate, answer: object, at: float) -> Event:
    """Return the event that a handler's answer is.

    Raises: PayloadError for an output that cannot be kept; it is a failure of the step.
    """
    if isinstance(command, Compensate):
        kind = CompensationDeferred if isinstance(answer, Defer) else CompensationSucceeded
        return kind(command.step, command.attempt, at)
    if isinstance(answer, Defer):
        return StepDeferred(command.step, command.attempt, at)
    if isinstance(answer, Skip):
        return StepSkipped(command.step, command.attempt, _text(answer.reason), at)
    what = "The output of %r in step %r of saga %s"
    output = encode_payload(answer, what, command.action, command.step, command.saga)
    return StepSucceeded(command.step, command.attempt, output, at)


def failure_event(command: Execute | Compensate, error: Failure, at: float) -> Event:
    """Return the event that a handler's failure is."""
    kind = CompensationFailed if isinstance(command, Compensate) else StepFailed
    return kind(command.step, command.attempt, error, at)


def failure_of(error: Exception) -> Failure:
    """Return what a handler raised as data: a StepError as it says, anything else as worth another attempt.

    A group of one, as a handler's own task group makes, is what it holds.
    """
    told = list(leaves(error))
    if len(told) == 1 and isinstance(told[0], Exception):
        error = told[0]
    if isinstance(error, StepError):
        try:
            details = encode_payload(error.details, "The details of the error")
        except PayloadError as unusable:
            return Failure(_text(error.code), _text(f"{error.message} ({unusable})"), error.retryable)
        return Failure(_text(error.code), _text(error.message), error.retryable, details)
    if isinstance(error, PayloadError):
        return Failure("invalid_payload", _text(error))
    message = _text(error)
    if len(told) > 1:
        message = "; ".join(f"{type(leaf).__name__}: {_text(leaf)}" for leaf in told)
    return Failure(type(error).__name__, _text(message), retryable=True)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Go through the exceptions that a group holds, however deep; one that is no group is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


def _text(value: object) -> str:
    """Make a string of anything: never raising, valid UTF-8, bounded. It will be stored with the saga."""
    try:
        text = str(value)
    except Exception:
        text = f"<{type(value).__name__} that cannot be printed>"
    return text.encode("utf-8", "replace").decode()[:LONGEST_MESSAGE]
