"""Running one handler for one attempt, and what its answer, its failure or its silence becomes."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from saga_amqp.cancellation import without_cancellation
from saga_amqp.config import Config
from saga_amqp.observer import Point
from saga_amqp.poison import Poison, Reason
from saga_core import (
    Compensate,
    Event,
    Execute,
    Handler,
    Saga,
    Step,
    StepError,
    TimePassed,
    answer_event,
    failure_event,
    failure_of,
)
from saga_core.ids import Origin

logger = logging.getLogger("saga_amqp.engine")


async def run_handler(
    config: Config,
    clock: Callable[[], float],
    saga: Saga,
    command: Execute | Compensate,
    token: str | None = None,
) -> Event:
    """Run the handler that a command asks for, and return the event that its end is: TimePassed when it took too long.

    `token` takes the place of the step's own, where the saga does not know its secret.

    Raises: Poison, when there is no handler for it.
    """
    handler = config.handler(command)
    if handler is None:
        text = (
            f"No handler for {command.action!r} is registered in the engine that got the message; "
            f"register it in every engine that shares the queue"
        )
        raise Poison(Reason.NO_HANDLER, text, command, unknown=False)
    config.observe(Point.HANDLER_BEGAN, command.saga, command)
    event: Event | None = None
    try:
        if command.deadline is None:
            event = answer_event(command, await _call(handler, saga, command.step, token), clock())
        else:
            with anyio.move_on_after(max(0.0, command.deadline - clock())):
                event = answer_event(command, await _call(handler, saga, command.step, token), clock())
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
        event = failure_event(command, failure, clock())
    if event is None:
        event = TimePassed(max(clock(), command.deadline or 0.0))
    config.observe(Point.HANDLER_ENDED, command.saga, command)
    return event


def _call(handler: Handler, saga: Saga, name: str, token: str | None) -> Awaitable[object]:
    step: Step[Any] = saga.step(name, handler.input_type)
    if token is not None:
        step = msgspec.structs.replace(step, origin=Origin(saga.id, saga.plan.position(name), token=token))
    return handler.function(saga, step)
