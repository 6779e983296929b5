"""Run one relay in this process and print its outcome as JSON (`benchmarks.relay` starts one for each run).

A process of its own: no event loop policy, no thread, no grown heap of one rival can disturb another.
"""

import argparse
import asyncio
import contextlib
import functools
import sys
import uuid
from collections.abc import Awaitable, Callable

import aiormq
import anyio
import msgspec

from benchmarks.relays.course import BrokenCourseError, Course, Outcome

RELAYS = (
    "aiormq-usual",
    "aiormq-best",
    "bare-calls",
    "bare-tasks",
    "durable-memory",
    "durable-sqlite",
    "durable-postgres",
    "saga-calls",
    "saga-tasks",
)

Relay = Callable[[str, str, Course, int], Awaitable[None]]


def relay_named(name: str, database: str | None) -> Relay:
    """Import only what this relay needs. `database` is the URL of a PostgreSQL."""
    kind, _, manner = name.partition("-")
    if kind == "aiormq":
        from benchmarks.relays import with_aiormq

        return {"usual": with_aiormq.usual, "best": with_aiormq.best}[manner]
    if kind == "bare":
        from benchmarks.relays import bare

        return functools.partial(bare.relay, task=bare.pass_on if manner == "tasks" else None)
    if kind == "durable":
        from benchmarks.relays import durable

        return functools.partial(durable.relay, kind=manner, database=database)
    from benchmarks.relays import library

    return functools.partial(library.relay, task_per_message=manner == "tasks")


async def declare(url: str, queue: str) -> None:
    """Create the quorum queue."""
    async with aiormq.connect(url) as connection:
        channel = await connection.channel()
        await channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})


async def delete(url: str, queue: str) -> int:
    """Delete the queue and return how many messages were left; unacknowledged ones have come back by now."""
    async with aiormq.connect(url) as connection:
        channel = await connection.channel()
        found = await channel.basic_get(queue, no_ack=True)
        deleted = await channel.queue_delete(queue)
        return (deleted.message_count or 0) + (found.delivery_tag is not None)


def main() -> None:
    """Parse the command line, run, check, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relays", description=__doc__)
    parser.add_argument("relay", choices=RELAYS)
    parser.add_argument("loop", choices=["asyncio", "uvloop", "trio"])
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/")
    parser.add_argument("--hops", type=int, default=20_000)
    parser.add_argument("--in-flight", type=int, default=300)
    parser.add_argument("--database", metavar="URL", help="of PostgreSQL")
    options = parser.parse_args()

    queue = f"bench.{uuid.uuid4().hex}"
    course = Course(options.hops, options.in_flight, options.hops // 10, finished=lambda: None)
    relay, backend = (
        relay_named(options.relay, options.database),
        "trio" if options.loop == "trio" else "asyncio",
    )
    if not options.relay.startswith("saga"):  # the transport declares for itself
        asyncio.run(declare(options.url, queue))
    try:
        anyio.run(
            relay,
            options.url,
            queue,
            course,
            2 * options.in_flight,  # so that waiting acknowledgements keep no message away
            backend=backend,
            backend_options={} if backend == "trio" else {"use_uvloop": options.loop == "uvloop"},
        )
        outcome: Outcome = course.outcome()
    except BaseException:
        with contextlib.suppress(aiormq.AMQPError):  # what went wrong is more interesting
            asyncio.run(delete(options.url, queue))
        raise
    if left := asyncio.run(delete(options.url, queue)):
        raise BrokenCourseError(f"{left} messages were left in the queue")
    sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")


if __name__ == "__main__":
    main()
