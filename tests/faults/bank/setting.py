"""What every process of a trial is told, and how it comes to its store and its broker."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar

import anyio
import msgspec
from msgspec import Struct

from saga_amqp import AmqpTransport, Config, Manager, Registry, StoreUnavailableError, TransportError
from tests.stores.hammer import open_store

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two tries to reach what is away."""


class Setting(Struct, frozen=True):
    """One trial. In the file `released` is how many of its transfers may be started by now, so many a second.

    Its exchange and queues have the name `unique` in front, as no other trial's have.
    """

    seed: int
    sagas: int
    per_second: float
    released: str
    unique: str
    amqp: str
    store: str
    ledger: str


def run(main: Callable[[Setting], Awaitable[None]]) -> None:
    """Run a process of a trial, whose arguments are the setting and the event loop."""
    setting, loop = msgspec.json.decode(sys.argv[1], type=Setting), sys.argv[2]
    if loop == "trio":
        anyio.run(main, setting, backend="trio")
    else:
        anyio.run(main, setting, backend_options={"use_uvloop": loop == "uvloop"})


def config(setting: Setting, *registries: Registry) -> Config:
    """Return the configuration of every engine, which is quick to notice what others have left behind."""
    return Config(
        prefix=f"{setting.unique}.",
        registries=registries,
        concurrency=16,
        grace_period=3.0,
        sweep_interval=0.2,
        republish_after=2.0,
    )


@asynccontextmanager
async def manager_for(setting: Setting, registry: Registry) -> AsyncIterator[Manager]:
    """Give a manager as soon as store and broker are there: whoever starts may find them away."""
    async with AsyncExitStack() as stack:
        store = await _enter(stack, lambda: open_store(setting.store), StoreUnavailableError)
        yield await _enter(
            stack,
            lambda: Manager(AmqpTransport(setting.amqp), store, config(setting, registry)),
            TransportError,
        )


async def _enter(
    stack: AsyncExitStack, make: Callable[[], AbstractAsyncContextManager[T]], away: type[Exception]
) -> T:
    while True:
        try:
            return await stack.enter_async_context(make())
        except away as error:
            print(f"not yet: {error}", flush=True)
            await anyio.sleep(PAUSE)
