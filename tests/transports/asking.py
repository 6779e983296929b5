"""Ask the broker for something without any code of ours in between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiormq
import aiormq.abc
import anyio.to_thread

T = TypeVar("T")


async def ask(url: str, work: Callable[[aiormq.abc.AbstractChannel], Awaitable[T]]) -> T:
    """Do something on a channel of plain aiormq, in a thread."""

    async def run() -> T:
        async with aiormq.connect(url) as connection:
            return await work(await connection.channel())

    return await anyio.to_thread.run_sync(lambda: asyncio.run(run()))


async def delete_queue(url: str, queue: str) -> None:
    await ask(url, lambda channel: channel.queue_delete(queue))


async def depth(url: str, queue: str) -> int:
    """Return how many messages are ready in a queue."""
    found = await ask(url, lambda channel: channel.queue_declare(queue, passive=True))
    return found.message_count or 0
