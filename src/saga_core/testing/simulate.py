"""Run a saga offline, in virtual time: with the handlers that production uses, with scripted outcomes, or with both.

No broker, no store, no event loop, no waiting: a retry after three days comes at once. What a handler awaits must be
ready, as it is when its services are replaced by fakes; `simulate_async` runs handlers that need their event loop.
"""

from collections import deque
from collections.abc import Awaitable, Coroutine, Generator, Mapping, Sequence
from typing import Any, cast

from msgspec import Struct

from saga_core.children import child_saga, order_to_undo
from saga_core.commands import Command, Compensate, CompensateChild, Execute, Report, StartChild
from saga_core.errors import SagaError
from saga_core.events import ChildRested, Event, StepFailed, TimePassed
from saga_core.handlers import (
    Defer,
    Handler,
    StepHandler,
    answer_event,
    check_handler,
    failure_event,
    failure_of,
)
from saga_core.machine import new_saga, outstanding, wake_at
from saga_core.model import Saga
from saga_core.options import NO_OPTIONS, Options
from saga_core.plan import Failure, Step
from saga_core.shortcut import transition

SAGA_ID = "01J00000000000000000000000"
LONGEST = 1_000_000


class Never(Struct, frozen=True):
    """A scripted outcome: no answer ever comes, and the step's timeout has to see to it."""


class Lost(Struct, frozen=True):
    """A scripted outcome: the worker is lost for good, and nobody knows what it did."""


class Later(Struct, frozen=True):
    """A scripted outcome: the handler defers, and the callback brings `outcome` after so many seconds."""

    outcome: object = None
    seconds: float = 1.0


Outcome = object
"""What an attempt leads to: an exception, which is raised; Never, Lost, Later, Skip, Defer; or else an output."""

Script = Mapping[str, "Outcome | list[Outcome]"]
Handlers = Mapping[str, StepHandler | Handler]


class SimulationError(SagaError):
    """A simulation cannot go on: a handler needs its event loop, or the saga never comes to rest."""


class Call(Struct, frozen=True):
    """A handler's call, or the scripted outcome in its place."""

    step: str
    operation: str
    attempt: int
    at: float


class Simulation(Struct):
    """A saga that was run: where it stands, how it came there, and every call on the way.

    `origin` and `history` can be given to `replay`. `children` are child sagas as they stand, by their ids.
    """

    saga: Saga
    origin: Saga
    history: list[Event]
    calls: list[Call]
    children: dict[str, Saga]
    at: float


def simulate(
    steps: Sequence[Step[Any]],
    handlers: Handlers | None = None,
    *,
    outcomes: Script | None = None,
    compensations: Script | None = None,
    context: object = None,
    options: Options = NO_OPTIONS,
    name: str = "simulated",
    start: float = 0.0,
) -> Simulation:
    """Run a saga to its rest, or until it waits for a person or a callback.

    `handlers` are async functions by the name of their action or compensation. `outcomes` and `compensations` script
    what happens instead, by the name of the step: one outcome for every attempt, or a list with one for each, after
    which the handler takes over. Where there is neither, an attempt succeeds. Times are seconds.

    Raises: DefinitionError, HandlerError, SimulationError.
    """
    world = _World(steps, handlers, outcomes, compensations, context, options, name, start)
    run = world.run()
    answer: tuple[object, Exception | None] | None = None
    try:
        while True:
            called = next(run) if answer is None else run.send(answer)
            answer = _by_hand(called)
    except StopIteration:
        return world.result()


async def simulate_async(
    steps: Sequence[Step[Any]],
    handlers: Handlers | None = None,
    *,
    outcomes: Script | None = None,
    compensations: Script | None = None,
    context: object = None,
    options: Options = NO_OPTIONS,
    name: str = "simulated",
    start: float = 0.0,
) -> Simulation:
    """Do as `simulate` does, awaiting handlers in the event loop of the caller. Cancel it at any time."""
    world = _World(steps, handlers, outcomes, compensations, context, options, name, start)
    run = world.run()
    answer: tuple[object, Exception | None] | None = None
    try:
        while True:
            called = next(run) if answer is None else run.send(answer)
            try:
                answer = (await called, None)
            except Exception as error:
                answer = (None, error)
    except StopIteration:
        return world.result()


def _by_hand(called: Awaitable[object]) -> tuple[object, Exception | None]:
    """Run a coroutine that needs no event loop."""
    coroutine = cast("Coroutine[object, None, object]", called)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value, None
    except Exception as error:
        return None, error
    coroutine.close()
    raise SimulationError(
        f"The handler {getattr(coroutine, '__qualname__', coroutine)!r} waits for its event loop; "
        f"use `await simulate_async(…)`, or replace what it waits for by a fake"
    )


class _World:
    def __init__(
        self,
        steps: Sequence[Step[Any]],
        handlers: Handlers | None,
        outcomes: Script | None,
        compensations: Script | None,
        context: object,
        options: Options,
        name: str,
        start: float,
    ) -> None:
        self.now = start
        self.origin = new_saga(
            name, steps, context, id=SAGA_ID, at=start, options=options, secret="simulated"
        )
        self.sagas = {self.origin.id: self.origin}
        self.history: list[Event] = []
        self.calls: list[Call] = []
        self.commands: deque[Command] = deque(outstanding(self.origin))
        self.callbacks: list[tuple[float, str, Execute | Compensate, object]] = []
        self.handlers = {
            key: handler
            if isinstance(handler, Handler)
            else check_handler(handler, f"The handler of {key!r}")
            for key, handler in (handlers or {}).items()
        }
        self.scripts = {
            "execute": {key: _as_list(value) for key, value in (outcomes or {}).items()},
            "compensate": {key: _as_list(value) for key, value in (compensations or {}).items()},
        }

    def result(self) -> Simulation:
        saga = self.sagas.pop(self.origin.id)
        return Simulation(saga, self.origin, self.history, self.calls, self.sagas, self.now)

    def run(self) -> Generator[Awaitable[object], tuple[object, Exception | None], None]:
        for _ in range(LONGEST):
            if self.commands:
                command = self.commands.popleft()
                if isinstance(command, Execute | Compensate):
                    yield from self._work(command)
                else:
                    self._see_to(command)
            elif not self._pass_time():
                return
        raise SimulationError(f"The saga did not come to rest in {LONGEST} events")

    def _work(
        self, command: Execute | Compensate
    ) -> Generator[Awaitable[object], tuple[object, Exception | None], None]:
        saga = self.sagas[command.saga]
        operation = "execute" if isinstance(command, Execute) else "compensate"
        self.calls.append(Call(command.step, operation, command.attempt, self.now))
        script = self.scripts[operation].get(command.step)
        if script is not None and script[0]:
            outcome = script[0][0] if script[1] else script[0].pop(0)
            self._apply(command.saga, self._scripted(command, outcome))
            return
        handler = self.handlers.get(command.action)
        if handler is None:
            self._answer(command, None)
            return
        try:
            step: Step[Any] = saga.step(command.step, handler.input_type)
        except SagaError as unfit:
            self._apply(command.saga, failure_event(command, failure_of(unfit), self.now))
            return
        answer, raised = yield handler.function(saga, step)
        if raised is None:
            self._answer(command, answer)
        else:
            self._apply(command.saga, failure_event(command, failure_of(raised), self.now))

    def _answer(self, command: Execute | Compensate, answer: object) -> None:
        try:
            event = answer_event(command, answer, self.now)
        except SagaError as error:
            event = failure_event(command, failure_of(error), self.now)
        self._apply(command.saga, event)

    def _scripted(self, command: Execute | Compensate, outcome: object) -> Event | None:
        if isinstance(outcome, Never):
            return None
        if isinstance(outcome, Lost):
            error = Failure("lost", "the worker was lost")
            if isinstance(command, Compensate):
                return failure_event(command, error, self.now)
            return StepFailed(command.step, command.attempt, error, self.now, unknown=True)
        if isinstance(outcome, Exception):
            return failure_event(command, failure_of(outcome), self.now)
        if isinstance(outcome, Later):
            self.callbacks.append((self.now + outcome.seconds, command.saga, command, outcome.outcome))
            return answer_event(command, Defer(), self.now)
        return answer_event(command, outcome, self.now)

    def _see_to(self, command: StartChild | CompensateChild | Report) -> None:
        if isinstance(command, StartChild):
            started = child_saga(self.sagas[command.saga], command, self.now)
            self.sagas[started.id] = started
            self.commands.extend(outstanding(started))
        elif isinstance(command, CompensateChild):
            child = self.sagas.get(command.child)
            about, event = order_to_undo(self.sagas[command.saga], child, command, self.now)
            self._apply(about.id, event)
        else:
            rested = ChildRested(
                command.step, command.attempt, command.child, command.state, self.now, command.asked
            )
            self._apply(command.saga, rested)

    def _pass_time(self) -> bool:
        """Go to the next moment when something happens by itself; False if there is none."""
        wakes = [
            (moment, saga_id) for saga_id, saga in self.sagas.items() if (moment := wake_at(saga)) is not None
        ]
        due = min(wakes, default=None)
        if self.callbacks:
            self.callbacks.sort(key=lambda callback: callback[0])
            moment, saga_id, command, outcome = self.callbacks[0]
            if due is None or moment <= due[0]:
                del self.callbacks[0]
                self.now = max(self.now, moment)
                self._apply(saga_id, self._scripted(command, outcome))
                return True
        if due is None:
            return False
        self.now = max(self.now, due[0])
        self._apply(due[1], TimePassed(self.now))
        return True

    def _apply(self, saga_id: str, event: Event | None) -> None:
        if event is None:
            return
        answer = transition(self.sagas[saga_id], event)
        if answer.ignored is None:
            self.sagas[saga_id] = answer.saga
            self.commands.extend(answer.commands)
            if saga_id == self.origin.id:
                self.history.append(event)


def _as_list(outcome: object) -> tuple[list[object], bool]:
    """Return the outcomes of a script, and whether the only one is for every attempt."""
    if isinstance(outcome, list):
        return list(cast("list[object]", outcome)), False
    return [outcome], True
