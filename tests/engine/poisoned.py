"""Messages that cannot be handled, of every kind, and what has to become of them: for a world of either broker."""

# An engine's counts have to be asked for again and again.
# ruff: noqa: ASYNC110

import logging
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest
from msgspec import Raw, Struct
from msgspec.structs import replace
from ulid import ULID

from saga_amqp import DeadLetter, Manager, Participant, Saga, SagaState
from saga_amqp.contracts import Message
from saga_amqp.testing.traffic import Inbox, Outbox
from saga_core import (
    Carried,
    Compensate,
    Event,
    Execute,
    Failure,
    StepFailed,
    StepSucceeded,
    new_saga,
    transition,
)

from .world import World, steps

AT = 1_700_000_000.0

LIMIT = 2
"""How often a message may come back."""

SIZE = 2_000
"""Bytes that a message may have."""

LIMITS = {"delivery_limit": LIMIT, "max_message_size": SIZE}


class Poisoned(Struct, frozen=True):
    """What is wrong with a message, or is done to it, and the reason that is found for it.

    `told`: its saga can be. `unknown`: it may have been handled before. `taken` is how often somebody takes it who does
    not acknowledge it; he gives it back, or rejects it for good where `away` is set. `missing`: nobody has its handler.
    """

    reason: str
    spoil: Callable[[bytes], bytes] = bytes
    told: bool = True
    unknown: bool = True
    taken: int = 0
    away: bool = False
    missing: bool = False


def added(more: bytes) -> Callable[[bytes], bytes]:
    """Return what adds fields to a message."""
    return lambda body: body[:-1] + b"," + more + b"}"


POISONED = {
    "bytes": Poisoned("undecodable", lambda body: b"\xff\xfe", told=False),
    "empty": Poisoned("undecodable", lambda body: b"", told=False),
    "wrong schema": Poisoned("undecodable", added(b'"deadline":"soon"')),
    "later version": Poisoned("undecodable", added(b'"version":99,"deadline":[]')),
    "too long": Poisoned("oversize", added(b'"padding":"%s"' % (b"x" * SIZE))),
    "too long, and no message": Poisoned("oversize", lambda body: b"x" * (SIZE + 1), told=False),
    "unknown saga": Poisoned(
        "unknown_saga", lambda body: body.replace(b'"saga":"01', b'"saga":"00'), told=False
    ),
    "unknown step": Poisoned(
        "unknown_step", lambda body: body.replace(b'"step":"a"', b'"step":"z"'), told=False
    ),
    "no handler": Poisoned("no_handler", unknown=False, missing=True),
    "too often": Poisoned("delivered_too_often", taken=LIMIT),
    "too often for the broker": Poisoned("delivered_too_often", taken=LIMIT + 1),
    "no message, and too often for the broker": Poisoned(
        "undecodable", lambda body: b"\xff\xfe", told=False, taken=LIMIT + 1
    ),
    "dropped by the broker": Poisoned("dropped_by_broker", taken=1, away=True),
}


# What there is before ----------------------------------------------------------------------------------------------


async def stored(world: World, *events: Event) -> Saga:
    """Return a saga of two steps to which these events have come to pass, with nothing published."""
    saga = new_saga("s", steps("a", "b"), id=str(ULID()), at=AT)
    await world.store.create(saga)
    for event in events:
        saga = transition(saga, event).saga
        await world.store.commit(saga, event)
    return saga


async def ordered(world: World, operation: str) -> tuple[Saga, Execute | Compensate]:
    """Return a saga, and the command for its first step: to execute it, or to compensate it."""
    if operation == "execute":
        saga = await stored(world)
        return saga, Execute(saga.id, "a", "do.a", 1)
    done, no = StepSucceeded("a", 1, Raw(b"{}"), AT), StepFailed("b", 1, Failure("no", "no"), AT)
    saga = await stored(world, done, no)
    return saga, Compensate(saga.id, "a", "undo.a", 1)


async def publish(world: World, *messages: Message, limits: Mapping[str, Any] = LIMITS) -> None:
    """Publish messages, with the queues declared as `limits` wants them."""
    async with world.transport() as transport:
        await transport.declare(world.config(**limits).topology())
        for message in messages:
            outbox = Outbox(transport)
            await outbox.publish(message)
            assert outbox.outcomes == {message.id: None}


async def take(world: World, queue: str, times: int, *, away: bool = False) -> None:
    """Take a message again and again, and give it back, or reject it for good."""
    async with world.transport() as transport:
        inbox = Inbox()
        async with transport.consume(world.config().on_broker(queue), 1, inbox) as consumer:
            for left in reversed(range(times)):
                (delivery,) = await inbox.take()
                if not left:
                    await consumer.cancel()  # so that it does not come once more
                delivery.reject(requeue=not away)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def code(saga: Saga, step: str) -> str:
    """Return the code of the error that a step has failed with."""
    error = saga.step(step).error
    assert error is not None
    return error.code


async def until_buried(manager: Manager | Participant, count: int = 1) -> None:
    """Wait until an engine has put so many messages to the dead letters."""
    while sum(manager.dead_lettered().values()) < count:
        await anyio.sleep(0.01)


# What happens ----------------------------------------------------------------------------------------------------


async def meet(world: World, poisoned: Poisoned, operation: str, caplog: pytest.LogCaptureFixture) -> None:
    """Let an engine meet such a message, and check all that has to become of it."""
    saga, command = await ordered(world, operation)
    config = world.config(**LIMITS)
    message = config.message(command)
    message = replace(message, body=poisoned.spoil(message.body), headers={"trace": "t-1"})
    await publish(world, message)
    queue = config.step_queue if operation == "execute" else config.compensate_queue
    if poisoned.taken:
        await take(world, queue, poisoned.taken, away=poisoned.away)

    handlers: dict[str, Any] = {}
    if poisoned.missing:
        handlers["step_handlers"] = {"do.c": world.services.handlers("do")["do.c"]}
        handlers["compensation_handlers"] = {"undo.c": world.services.handlers("undo")["undo.c"]}
    async with world.running(concurrency=1, prefetch=1, **LIMITS, **handlers) as manager:
        if poisoned.told:
            saga = await manager.wait(saga.id)
        good = await manager.start("s", steps("c"))  # nobody else is kept waiting
        assert (await manager.wait(good.id)).is_completed
        await until_buried(manager)
        assert manager.dead_lettered() == {poisoned.reason: 1}

    (letter,) = await world.letters()
    check_letter(letter, message, poisoned, config.on_broker(queue))
    check_log(caplog, letter, command if poisoned.told else None)
    if poisoned.told:
        check_saga(saga, poisoned, operation)
        undone = operation == "execute" and poisoned.unknown
        assert world.calls == [*(["undo.a"] if undone else []), "do.c"]
    else:
        assert await world.store.load(saga.id) == saga
        assert world.calls == ["do.c"]


def check_letter(letter: DeadLetter, message: Message, poisoned: Poisoned, queue: str) -> None:
    assert (letter.reason, letter.queue) == (poisoned.reason, queue)
    assert letter.error
    assert (letter.message_id, letter.body) == (message.id, message.body)
    assert letter.headers["trace"] == "t-1"
    assert letter.when is not None
    assert letter.deliveries == (None if poisoned.away or poisoned.taken > LIMIT else poisoned.taken + 1)


def check_log(caplog: pytest.LogCaptureFixture, letter: DeadLetter, command: Carried | None) -> None:
    """Check that it was said once, and with all the ids."""
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    said = record.getMessage()
    assert all(part in said for part in (letter.message_id, letter.queue, letter.reason, letter.error))
    if command is not None:
        assert f"saga {command.saga}, step {command.step!r}, attempt {command.attempt}" in said


def check_saga(saga: Saga, poisoned: Poisoned, operation: str) -> None:
    step = saga.step("a")
    assert step.error is not None
    assert step.error.code == poisoned.reason
    assert saga.state is (SagaState.COMPENSATED if operation == "execute" else SagaState.FAILED)
