"""Run orders in this process, at one concurrency after the other, and print the outcomes as JSON.

A process of its own: no event loop policy, no thread, no grown heap of one rival can disturb another.
"""

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial

import anyio
import msgspec
from ulid import ULID

from benchmarks.orders.load import Outcome, drive
from benchmarks.orders.parts import parts
from benchmarks.orders.places import STORES, broker_names, opened
from benchmarks.orders.shop import Shop
from benchmarks.profiling import profiled
from saga_amqp import AmqpTransport, Config, Manager

ROUND_TRIP = 400
"""Of more orders at once each takes so long that it has to be measured for longer."""


async def run(given: argparse.Namespace) -> Sequence[Outcome]:
    """Measure at each concurrency, with a store and queues of its own."""
    if given.parts:
        async with opened(given.store, given.database) as store:
            return [Outcome.of_latency((await parts(given.url, store)).together())]
    return [await measure(given, at_once) for at_once in given.at_once]


async def measure(given: argparse.Namespace, at_once: int) -> Outcome:
    """Measure at one concurrency."""
    shop, stretch = Shop(given.wait / 1e3), max(1.0, at_once / ROUND_TRIP)
    watched = partial(profiled, lambda: shop.ran, given.profile) if given.profile else contextlib.nullcontext
    async with engine(given, shop, at_once) as manager:
        return await drive(
            manager,
            shop,
            at_once,
            declined=given.declined,
            warm_up=given.seconds * stretch / 3,
            seconds=given.seconds * stretch,
            watched=watched,
        )


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace, shop: Shop, at_once: int) -> AsyncIterator[Manager]:
    """Run an engine that lets so many handlers run at once."""
    names = broker_names(f"bench-{ULID()}")
    config = Config(registries=(shop.registry,), concurrency=at_once, **names)
    async with (
        opened(given.store, given.database) as store,
        Manager(AmqpTransport(given.url), store, config) as manager,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(manager.run)
        yield manager
        manager.stop()


def main() -> None:
    """Parse the command line, run, check, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders", description=__doc__)
    parser.add_argument("store", choices=STORES)
    parser.add_argument("loop", choices=["asyncio", "uvloop", "trio"])
    parser.add_argument("--at-once", type=int, nargs="+", default=[100], help="how many orders are under way")
    parser.add_argument("--wait", type=float, default=0.0, metavar="MS", help="how long each handler waits")
    parser.add_argument("--declined", action="store_true", help="the last step fails, the others are undone")
    parser.add_argument(
        "--parts", action="store_true", help="measure what an order is made of, each part alone"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each concurrency, after a third as warm-up"
    )
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/")
    parser.add_argument("--database", metavar="URL", help="of PostgreSQL")
    parser.add_argument(
        "--profile", metavar="FILE", help="profile what is measured, print what it costs per step"
    )
    given = parser.parse_args()
    outcomes = anyio.run(
        run,
        given,
        backend="trio" if given.loop == "trio" else "asyncio",
        backend_options={} if given.loop == "trio" else {"use_uvloop": given.loop == "uvloop"},
    )
    sys.stdout.write(msgspec.json.encode(outcomes).decode() + "\n")


if __name__ == "__main__":
    main()
