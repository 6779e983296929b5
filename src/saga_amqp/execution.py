"""What one message asks for, done: run a handler, start or undo a child saga, tell a parent; and commit the result."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
import anyio.lowlevel

from saga_amqp.cancellation import without_cancellation
from saga_amqp.config import Config
from saga_amqp.contracts import Commit, Store
from saga_amqp.errors import ConflictError, SagaExistsError, SagaNotFoundError
from saga_amqp.observer import Moment, Point
from saga_amqp.outgoing import Outgoing
from saga_amqp.patience import PatientStore
from saga_core import (
    CancelRequested,
    ChildRested,
    Command,
    Compensate,
    CompensateChild,
    Event,
    Execute,
    Failure,
    Report,
    Saga,
    StartChild,
    StepError,
    TimePassed,
    Transition,
    answer_event,
    awaits,
    caused_by,
    child_saga,
    consequences,
    failure_event,
    failure_of,
    order_to_undo,
    outstanding,
    transition,
)

logger = logging.getLogger("saga_amqp.engine")


async def decide(
    store: Store | PatientStore,
    saga: Saga,
    event: Event,
    *,
    note: Callable[[], float] | None = None,
    committing: Callable[[], None] = lambda: None,
) -> Transition:
    """Apply an event and commit it; where somebody else was first, decide anew on what they left.

    `note` gives the note of a commit that no message causes, and that has something to publish. `committing` is called
    before each try.

    Raises: SagaNotFoundError, StoreError. Cancelled, the commit may have happened or not.
    """
    while True:
        answer = transition(saga, event)
        if answer.ignored is not None:
            logger.debug("Ignored: %s", answer.ignored)
            return answer
        committing()
        try:
            await store.commit(
                answer.saga, event, unpublished=note() if note is not None and answer.commands else None
            )
        except ConflictError:
            saga = await store.load(saga.id)
        else:
            return answer


class Execution:
    """Does what commands ask for, on one store with one set of handlers."""

    def __init__(
        self,
        store: PatientStore,
        config: Config,
        clock: Callable[[], float],
        hold: Callable[[Saga], None],
        outgoing: Outgoing,
    ) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._hold = hold
        self._outgoing = outgoing
        self._observe = config.observer

    async def settle(self, command: Command) -> Sequence[Command]:
        """Bring a command's result into the store, and return what has to be published before it is acknowledged.

        Raises: SagaNotFoundError, UnknownStepError, StoreError, TransportError.
        """
        saga = await self._store.load(command.saga)
        self._hold(saga)
        if isinstance(command, StartChild):
            return await self._start_child(saga, command)
        if isinstance(command, CompensateChild):
            return await self._compensate_child(saga, command)
        if awaits(saga, command):
            if isinstance(command, Report):
                event: Event = ChildRested(
                    command.step, command.attempt, command.child, command.state, self._clock(), command.asked
                )
            else:
                event = await self._run_handler(saga, command)
            if isinstance(event, TimePassed):
                # Another delivery may have brought a result before, and its engine may have died before it published.
                await self._commit_alone(saga, event, command)
            else:
                answer = await self._commit(saga, event, command)
                if answer.ignored is None:
                    return answer.commands
        origin, events = await self._store.history(command.saga)
        return consequences(origin, events, command)

    async def pass_time(self, saga_id: str) -> None:
        """Do what is due in a saga, and publish what comes of it; nothing if the saga is gone.

        Raises: StoreError, TransportError.
        """
        with suppress(SagaNotFoundError):
            await self._commit_alone(await self._store.load(saga_id), TimePassed(self._clock()), None)

    async def publish_again(self, commit: Commit) -> None:
        """Publish what a commit has caused and is still outstanding; nothing if the saga is gone.

        Raises: StoreError, TransportError.
        """
        with suppress(SagaNotFoundError):
            origin, events = await self._store.history(commit[0])
            await self._outgoing.publish(commit, caused_by(origin, events, commit[1]))

    async def _commit(
        self, saga: Saga, event: Event, command: Command | None, *, note: Callable[[], float] | None = None
    ) -> Transition:
        answer = await decide(
            self._store,
            saga,
            event,
            note=note,
            committing=lambda: self.observe(Point.COMMITTING, saga.id, command),
        )
        self._hold(answer.saga)
        if answer.ignored is None:
            self.observe(Point.COMMITTED, saga.id, command)
        return answer

    async def _commit_alone(self, saga: Saga, event: Event, command: Command | None) -> None:
        """Commit what no message would bring up again, and publish what comes of it."""
        answer = await self._commit(saga, event, command, note=self._outgoing.note)
        if answer.commands:
            await self._outgoing.publish((saga.id, answer.saga.revision), answer.commands)

    async def _start_child(self, parent: Saga, command: StartChild) -> Sequence[Command]:
        if awaits(parent, command):
            child = await self._child(parent, command)
            # The parent may have turned round before the child was there to be undone.
            if awaits(await self._store.load(parent.id), command):
                return outstanding(child)
        try:
            child = await self._store.load(command.child)
        except SagaNotFoundError:
            return ()
        reason = f"its parent {parent.id} does not wait for it any more"
        answer = await self._commit(child, CancelRequested(reason, self._clock()), command)
        return outstanding(answer.saga)

    async def _child(self, parent: Saga, command: StartChild) -> Saga:
        try:
            child = child_saga(parent, command, self._clock())
            await self._store.create(child)
        except SagaExistsError:
            child = await self._store.load(command.child)
        self._hold(child)
        return child

    async def _compensate_child(self, parent: Saga, command: CompensateChild) -> Sequence[Command]:
        if not awaits(parent, command):
            return ()
        try:
            child = await self._store.load(command.child)
        except SagaNotFoundError:
            child = None
        while True:
            about, event = order_to_undo(parent, child, command, self._clock())
            if about is not child:
                await self._commit_alone(about, event, command)
                return ()
            answer = await self._commit(about, event, command)
            if answer.ignored is None:
                # What else is outstanding is with the broker, or runs: it is left alone.
                return answer.commands
            if not (answer.saga.past_pivot or answer.saga.is_compensated):
                return outstanding(answer.saga)
            child = answer.saga  # it went past its pivot, or was undone, before it could be told

    async def _run_handler(self, saga: Saga, command: Execute | Compensate) -> Event:
        handler = self._config.handler(command)
        if handler is None:
            missing = Failure(
                "no_handler",
                f"No handler for {command.action!r} is registered in the engine that got the message; "
                f"register it in every engine that shares the queue",
            )
            logger.error("Saga %s, step %r: %s", saga.id, command.step, missing.message)
            return failure_event(command, missing, self._clock())
        self.observe(Point.HANDLER_BEGAN, saga.id, command)
        event: Event | None = None
        try:
            with anyio.move_on_after(self._time_left(command)):
                output = await handler.function(saga, saga.step(command.step, handler.input_type))
                event = answer_event(command, output, self._clock())
        except BaseException as raised:
            error = without_cancellation(raised)
            if not isinstance(error, Exception):
                raise
            # A handler that fails because the engine is ending has not failed: it runs again elsewhere.
            await anyio.lowlevel.checkpoint_if_cancelled()
            failure = failure_of(error)
            expected = isinstance(error, StepError)
            logger.log(
                logging.INFO if expected else logging.WARNING,
                "%s of step %r of saga %s failed in attempt %d: %s: %s",
                command.action,
                command.step,
                saga.id,
                command.attempt,
                failure.code,
                failure.message,
                exc_info=not expected,
            )
            event = failure_event(command, failure, self._clock())
        if event is None:
            event = TimePassed(max(self._clock(), command.deadline or 0.0))
        self.observe(Point.HANDLER_ENDED, saga.id, command)
        return event

    def _time_left(self, command: Execute | Compensate) -> float | None:
        return None if command.deadline is None else max(0.0, command.deadline - self._clock())

    def observe(self, point: Point, saga_id: str, command: Command | None = None) -> None:
        """Tell the observer, if there is one."""
        if self._observe is not None:
            self._observe(Moment(point, saga_id, command))
