"""A world of two services: the orchestrator with the store, and another one that has nothing but the broker."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from saga_amqp import Config, MemoryTransport, Participant, Saga, Step
from saga_amqp.contracts import Message

from .world import Services, Watch, World

QUEUES = ("far.steps", "far.compensate")


def far(name: str, **more: Any) -> Step[Any]:
    """Make a step that the other service runs: `b` has the action `far.b`, and is undone by `unfar.b`."""
    return Step(name=name, action=f"far.{name}", compensation=f"unfar.{name}", **more)


class TwoServices(World):
    """A world whose actions `far.a` to `far.e`, and their compensations, are those of another service."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere = Services(self.services.calls)
        self.watch_elsewhere = Watch()

    def replace_elsewhere(self, name: str, handler: Callable[[Saga, Step[Any]], Awaitable[object]]) -> None:
        """Give the action `far.a`, or the compensation `unfar.a`, another handler."""
        self.elsewhere.replaced[name] = handler

    def config(self, **changes: Any) -> Config:
        return super().config(**{"remote": ("far.*", "unfar.*"), **changes})

    def config_elsewhere(self, **changes: Any) -> Config:
        return Config(
            **{
                "step_queue": QUEUES[0],
                "compensate_queue": QUEUES[1],
                "step_handlers": self.elsewhere.handlers("far"),
                "compensation_handlers": self.elsewhere.handlers("unfar"),
                "observer": self.watch_elsewhere,
                **changes,
            }
        )

    def participant(self, *, transport: Any = None, clock: Any = None, **changes: Any) -> Participant:
        more = {} if clock is None else {"clock": clock}
        return Participant(
            transport or MemoryTransport(self.broker), self.config_elsewhere(**changes), **more
        )

    @asynccontextmanager
    async def participating(self, **changes: Any) -> AsyncIterator[Participant]:
        """Run a participant; stop it at the end, within the deadline."""
        with anyio.fail_after(self.deadline):
            async with self.participant(**changes) as participant, anyio.create_task_group() as tasks:
                await tasks.start(participant.run)
                yield participant
                participant.stop()

    @asynccontextmanager
    async def bound_elsewhere(self) -> AsyncIterator[None]:
        """Have the other service's queues there, and nobody who takes from them."""
        async with self.participant():
            yield

    async def publish(self, message: Message) -> None:
        """Publish a message as somebody else would."""
        async with MemoryTransport(self.broker) as transport:
            await transport.publish(message, lambda error: None)

    def assert_queues_are_empty(self, *more: str, dead_letters: int = 0) -> None:
        super().assert_queues_are_empty(*QUEUES, *more, dead_letters=dead_letters)
