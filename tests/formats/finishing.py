"""Engines that find sagas in a database, and messages in their queues, and bring them all to rest."""

import time
from typing import Any

import anyio
import msgspec

from saga_amqp import (
    Config,
    Manager,
    MemoryBroker,
    MemoryTransport,
    Query,
    Saga,
    SagaState,
    Step,
    TransportError,
)
from saga_amqp.contracts import Message, Store
from saga_amqp.stores.looking import find_all
from saga_core import StepPlan

DEADLINE = 30.0

EVERYTHING = Query(states=frozenset(SagaState))

Ends = dict[str, dict[str, Any]]


async def do(saga: Saga, step: Step[Any]) -> dict[str, object]:
    return {"done": step.name}


class Published(msgspec.Struct):
    """A message as it was published; `frames` are the bytes of it on the wire, in hexadecimal."""

    exchange: str
    routing_key: str
    id: str
    type: str
    content_type: str
    delivery_mode: int
    body: str
    frames: str


class Ask(msgspec.Struct, omit_defaults=True):
    """What a person does about a saga: `call` is a method of the manager, `to` what it is called with."""

    call: str
    to: str


async def finish(store: Store, messages: list[Published], asks: list[Ask], now: float) -> Ends:
    """Bring every saga in a store to rest, beginning at a moment, and return how each ends, by its id."""
    began, broker = time.monotonic(), MemoryBroker()
    sagas = await find_all(store, EVERYTHING)
    steps = [step for saga in sagas for step in _all_steps(saga.plan.steps)]
    config = Config(
        step_handlers={step.action: do for step in steps if step.action},
        compensation_handlers={step.compensation: do for step in steps if step.compensation},
        sweep_interval=0.05,
        republish_after=1.0,
    )
    with anyio.fail_after(DEADLINE):
        async with MemoryTransport(broker) as transport:
            await transport.declare(config.topology())
            for one in messages:
                await transport.publish(
                    Message(one.exchange, one.routing_key, one.body.encode(), one.id, one.type), _routed
                )
        manager = Manager(
            MemoryTransport(broker), store, config, clock=lambda: now + time.monotonic() - began
        )
        async with manager, anyio.create_task_group() as tasks:
            await tasks.start(manager.run)
            for ask in asks:
                await getattr(manager, ask.call)(ask.to)
            for saga in sagas:
                await manager.wait(saga.id)
            manager.stop()
    assert not broker.queues[config.dead_letter_queue].ready
    return {saga.id: _end(saga) for saga in await find_all(store, EVERYTHING)}


def _all_steps(steps: tuple[StepPlan, ...]) -> list[StepPlan]:
    inner = [one for step in steps if step.child is not None for one in _all_steps(step.child.steps)]
    return [*steps, *inner]


def _end(saga: Saga) -> dict[str, Any]:
    return {"state": saga.state.value, "steps": {step.name: step.state.value for step in saga.steps}}


def _routed(error: TransportError | None) -> None:
    assert error is None, error
