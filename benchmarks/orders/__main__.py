"""Run orders in this process, at one concurrency after the other, and print the outcomes as JSON.

A process of its own: no event loop policy, no thread, no grown heap of one rival can disturb another. Or several that
share queues and store, and begin to measure at the same moment.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import anyio
import anyio.to_thread
import msgspec
from ulid import ULID

from benchmarks.orders.crowd import KINDS, fill
from benchmarks.orders.load import Outcome, Weight, chain, check, drive, weigh
from benchmarks.orders.parts import parts
from benchmarks.orders.places import STORES, config, opened
from benchmarks.orders.shop import Shop
from benchmarks.profiling import profiled
from saga_amqp import AmqpTransport, Manager

ROUND_TRIP = 400
"""Of more orders at once each takes so long that it has to be measured for longer."""

FOR_EVER = 3_600.0  # seconds

CHAINED = 5_000
"""Steps to run where it is their number in an order that is looked at."""


async def run(given: argparse.Namespace) -> Sequence[Outcome | Weight]:
    """Measure at each concurrency, with a store and queues of its own."""
    if given.parts:
        async with opened(given.store, given.database) as store:
            return [Outcome.of_latency((await parts(given.url, store)).together())]
    return [await measure(given, at_once) for at_once in given.at_once]


async def measure(given: argparse.Namespace, at_once: int) -> Outcome | Weight:
    """Measure at one concurrency."""
    shop = Shop(FOR_EVER if given.weigh else given.wait / 1e3)
    stretch = max(1.0, at_once / ROUND_TRIP)
    async with engine(given, shop, at_once) as manager:
        if given.weigh:
            with anyio.CancelScope() as scope:
                weight = await weigh(manager, shop, at_once)
                scope.cancel()
            return weight
        if given.chain:
            return await chain(manager, shop, at_once, given.chain, CHAINED)
        outcome = await drive(
            manager,
            shop,
            given.orders or at_once,
            declined=given.declined,
            warm_up=await agreed() if given.together else given.seconds * stretch / 3,
            seconds=given.seconds * stretch,
            watched=partial(profiled, lambda: shop.ran, given.profile)
            if given.profile
            else contextlib.nullcontext,
        )
    # Only now: until the engine has stopped it runs handlers for the orders of those that share its queues.
    outcome = msgspec.structs.replace(outcome, ran=shop.ran)
    if not given.queues:
        check([outcome], declined=given.declined)
    return outcome


async def agreed() -> float:
    """Say that this process is ready, wait until it is told when to begin, and return the seconds until then."""
    print("ready", flush=True)
    begin = float(await anyio.to_thread.run_sync(sys.stdin.readline))
    return max(0.0, begin - time.time())


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace, shop: Shop, at_once: int) -> AsyncIterator[Manager]:
    """Run an engine that lets so many handlers run at once."""
    told = config(shop, given.queues or f"bench-{ULID()}", at_once, 0.2 if given.weigh else 10.0)
    async with opened(given.store, given.database, given.place) as store:
        if given.crowd:
            await fill(store, given.crowd[0], int(given.crowd[1]))
        async with (
            Manager(AmqpTransport(given.url), store, told) as manager,
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
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=[100], help="how many handlers, and orders, at most"
    )
    parser.add_argument(
        "--orders", type=int, help="how many orders are under way, if not as many as handlers"
    )
    parser.add_argument("--wait", type=float, default=0.0, metavar="MS", help="how long each handler waits")
    parser.add_argument("--declined", action="store_true", help="the last step fails, the others are undone")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each concurrency, after a third as warm-up"
    )
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/")
    parser.add_argument("--database", metavar="URL", help="of PostgreSQL")
    parser.add_argument(
        "--profile", metavar="FILE", help="profile what is measured, say what a step costs where"
    )
    instead = parser.add_argument_group("something else instead")
    instead.add_argument("--parts", action="store_true", help="what an order is made of, each part alone")
    instead.add_argument(
        "--chain", type=int, metavar="STEPS", help="orders of so many steps, from start to end"
    )
    instead.add_argument("--weigh", action="store_true", help="the memory of orders whose handlers all wait")
    shared = parser.add_argument_group("with others")
    shared.add_argument(
        "--queues", metavar="PREFIX", help="of the names on the broker, for several that share them"
    )
    shared.add_argument("--place", help="a store that is there: a file of SQLite, a schema of PostgreSQL")
    shared.add_argument("--together", action="store_true", help="wait to be told when to begin: see `agreed`")
    shared.add_argument(
        "--crowd", nargs=2, metavar=("KIND", "N"), help=f"fill the store first: {', '.join(KINDS)}"
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
