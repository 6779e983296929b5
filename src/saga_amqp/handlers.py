"""Handlers: the user's async functions, checked when they are registered, and what their failures become.

A handler takes `(saga, step)`. Where it annotates the step as `Step[T]`, with a msgspec Struct or a dataclass for
T, the step's input is read into T and validated before the handler runs.
"""

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

import msgspec
import msgspec.inspect

from saga_amqp.errors import HandlerError
from saga_core import Failure, PayloadError, Saga, Step, StepError, encode_payload
from saga_core.model import InputT

StepHandler = Callable[[Saga, Step[Any]], Awaitable[object]]
CompensationHandler = Callable[[Saga, Step[Any]], Awaitable[object]]
HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[object]])

LONGEST_MESSAGE = 4_000


class Handler(msgspec.Struct, frozen=True):
    """A checked handler, and the type that it wants the step's input in (None: a dict)."""

    function: StepHandler
    input_type: type | None


class Action(Generic[InputT]):
    """A registered action: still the function that it decorates, and the maker of steps that run it."""

    def __init__(
        self, registry: "Registry", name: str, function: Callable[[Saga, Step[InputT]], Awaitable[object]]
    ) -> None:
        self.name = name
        self.compensation_name: str | None = None
        self._registry = registry
        self.__wrapped__ = function
        self.__name__: str = getattr(function, "__name__", name)
        self.__doc__ = function.__doc__

    async def __call__(self, saga: Saga, step: Step[InputT]) -> object:
        """Run the action itself, as a unit test would."""
        return await self.__wrapped__(saga, step)

    def compensation(self, name: str) -> Callable[[HandlerT], HandlerT]:
        """Register the function below as what undoes this action.

        Raises: HandlerError.
        """
        if self.compensation_name is not None:
            raise HandlerError(f"Action {self.name!r} has a compensation already: {self.compensation_name!r}")

        def register(function: HandlerT) -> HandlerT:
            _enter(self._registry.compensations, name, function, "compensation")
            self.compensation_name = name
            return function

        return register

    def step(self, input: InputT | None = None, *, name: str | None = None) -> Step[InputT]:
        """Make a step that runs this action; its name is the function's unless given."""
        step: Step[InputT] = Step(
            name=name or self.__name__, action=self.name, compensation=self.compensation_name
        )
        return step if input is None else msgspec.structs.replace(step, input=input)


class Registry:
    """The actions of one service, each beside its compensation, so that the service is one readable module."""

    def __init__(self) -> None:
        self.actions: dict[str, Handler] = {}
        self.compensations: dict[str, Handler] = {}

    def action(
        self, name: str
    ) -> Callable[[Callable[[Saga, Step[InputT]], Awaitable[object]]], Action[InputT]]:
        """Register the function below as the action `name`.

        Raises: HandlerError.
        """

        def register(function: Callable[[Saga, Step[InputT]], Awaitable[object]]) -> Action[InputT]:
            _enter(self.actions, name, function, "action")
            return Action(self, name, function)

        return register


def collect(
    plain: Mapping[str, StepHandler], registered: Iterable[Mapping[str, Handler]], kind: str
) -> dict[str, Handler]:
    """Bring handlers from dicts and registries together.

    Raises: HandlerError when one cannot be used, or a name is there twice.
    """
    handlers: dict[str, Handler] = {}
    for name, function in plain.items():
        _enter(handlers, name, function, kind)
    for more in registered:
        for name, handler in more.items():
            if name in handlers:
                raise HandlerError(f"Two handlers are registered for {kind} {name!r}")
            handlers[name] = handler
    return handlers


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


def _enter(handlers: dict[str, Handler], name: str, function: object, kind: str) -> None:
    if not name:
        raise HandlerError(f"The {kind} of {function!r} needs a name")
    if name in handlers:
        raise HandlerError(f"Two handlers are registered for {kind} {name!r}")
    handlers[name] = _check(function, f"The handler of {kind} {name!r}")


def _check(function: Any, what: str) -> Handler:
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
    module = sys.modules.get(getattr(target, "__module__", ""), None)
    names = {**vars(module), **getattr(target, "__globals__", {})} if module else {}
    try:
        return eval(annotation, names)  # the user's own source, as typing.get_type_hints does
    except Exception as error:
        if "[" not in annotation:  # a plain `Step` that only type checkers import: it says no type
            return None
        raise HandlerError(
            f"{what} annotates its step as {annotation!r}, which cannot be read at run time ({error}); "
            f"import the names where the module can see them"
        ) from None


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
