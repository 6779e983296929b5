"""The registry: a service's actions, each beside its compensation, its input type and its policies.

What a handler has to look like is checked in `saga_core.handlers`.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from saga_core import (
    CompensationHandler,
    Condition,
    Handler,
    HandlerError,
    RetryPolicy,
    Saga,
    Step,
    StepHandler,
    check_handler,
)
from saga_core.plan import InputT

HandlerT = TypeVar("HandlerT", bound=Callable[..., Awaitable[object]])


class Policies(TypedDict, total=False):
    """What an action says about itself once, for every step that runs it; the fields are those of `Step`."""

    retry: RetryPolicy
    timeout: float
    total_timeout: float


class Action(Generic[InputT]):
    """A registered action: still the function that it decorates, and the maker of steps that run it."""

    def __init__(
        self,
        registry: "Registry",
        name: str,
        function: Callable[[Saga, Step[InputT]], Awaitable[object]],
        policies: Policies,
    ) -> None:
        self.name = name
        self.compensation_name: str | None = None
        self._registry = registry
        self._policies: dict[str, Any] = {**policies}
        self.__wrapped__ = function
        self.__name__: str = getattr(function, "__name__", name)
        self.__doc__ = function.__doc__

    async def __call__(self, saga: Saga, step: Step[InputT]) -> object:
        """Run the action itself, as a unit test would."""
        return await self.__wrapped__(saga, step)

    def compensation(
        self, name: str, *, retry: RetryPolicy | None = None, timeout: float | None = None
    ) -> Callable[[HandlerT], HandlerT]:
        """Register the function below as what undoes this action, with its own policy and timeout, seconds.

        Raises: HandlerError.
        """
        if self.compensation_name is not None:
            raise HandlerError(f"Action {self.name!r} has a compensation already: {self.compensation_name!r}")

        def register(function: HandlerT) -> HandlerT:
            _enter(self._registry.compensations, name, function, "compensation")
            self.compensation_name = name
            self._policies |= {"compensation_retry": retry, "compensation_timeout": timeout}
            return function

        return register

    def step(
        self,
        input: InputT | None = None,
        *,
        name: str | None = None,
        depends_on: tuple[str, ...] | None = None,
        when: Condition | None = None,
        pivot: bool = False,
    ) -> Step[InputT]:
        """Make a step that runs this action; its name is the function's unless given."""
        given: dict[str, Any] = self._policies if input is None else {**self._policies, "input": input}
        return Step(
            name=name or self.__name__,
            action=self.name,
            compensation=self.compensation_name,
            depends_on=depends_on,
            when=when,
            pivot=pivot,
            **given,
        )


class Registry:
    """The actions of one service, each beside its compensation, so that the service is one readable module."""

    def __init__(self) -> None:
        self.actions: dict[str, Handler] = {}
        self.compensations: dict[str, Handler] = {}

    def action(
        self, name: str, **policies: Unpack[Policies]
    ) -> Callable[[Callable[[Saga, Step[InputT]], Awaitable[object]]], Action[InputT]]:
        """Register the function below as the action `name`, with its `retry`, `timeout` and `total_timeout`.

        Raises: HandlerError.
        """

        def register(function: Callable[[Saga, Step[InputT]], Awaitable[object]]) -> Action[InputT]:
            _enter(self.actions, name, function, "action")
            return Action(self, name, function, policies)

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


def _enter(handlers: dict[str, Handler], name: str, function: object, kind: str) -> None:
    if not name:
        raise HandlerError(f"The {kind} of {function!r} needs a name")
    if name in handlers:
        raise HandlerError(f"Two handlers are registered for {kind} {name!r}")
    handlers[name] = check_handler(function, f"The handler of {kind} {name!r}")


__all__ = ["Action", "CompensationHandler", "Policies", "Registry", "StepHandler", "collect"]
