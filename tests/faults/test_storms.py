"""RabbitMQ fails as it does in production, with hundreds of sagas in flight: all of them come to rest as they should.

Every fault strikes while there is much in hand, and some handlers run until it is over. Then each saga has the result
that it should have, each handler has done what it should, nothing is in any queue, and no engine has ended.
"""

# Neither a broker nor a transport tells when it is in trouble: they have to be asked again and again.
# ruff: noqa: ASYNC110

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from saga_amqp import SQLiteStore
from tests.servers import RabbitMQ

from .proxy import BOTH, Direction
from .storm import AT_ONCE, Storm
from .world import POLL_INTERVAL

# Each channel is told to acknowledge what it has never delivered, an error for which the broker closes it.
ACKNOWLEDGE_WHAT_WAS_NEVER_DELIVERED = (
    "[rabbit_channel:do(C, {'basic.ack', 999999999, false}) || C <- rabbit_channel:list()], ok."
)

Fault = Callable[[Storm], Awaitable[None]]


# What happens to the broker, until it is over ------------------------------------------------------------------------


async def restarted(storm: Storm) -> None:
    async with storm.connecting_again():
        await storm.ctl("stop_app")
        await storm.ctl("start_app")


async def killed(storm: Storm) -> None:
    async with storm.connecting_again():
        await anyio.to_thread.run_sync(storm.node.kill)
        await anyio.to_thread.run_sync(storm.node.restart)


async def emptied(storm: Storm) -> None:
    async with storm.connecting_again():
        for command in ("stop_app", "reset", "start_app"):
            await storm.ctl(command)


async def cut(storm: Storm) -> None:
    async with storm.connecting_again():
        storm.proxy.cut()


async def silent(storm: Storm, *directions: Direction) -> None:
    async with storm.connecting_again():
        storm.proxy.fall_silent(*directions)


async def slow(storm: Storm) -> None:
    storm.proxy.delay = 0.05
    await storm.until_rested(storm.rested + AT_ONCE // 3)
    storm.proxy.delay = 0.0


async def closed_connection(storm: Storm) -> None:
    async with storm.connecting_again():
        await storm.ctl("close_all_connections", "a storm")


async def closed_channels(storm: Storm) -> None:
    before = await channels(storm)
    await storm.evaluate(ACKNOWLEDGE_WHAT_WAS_NEVER_DELIVERED)
    while (now := await channels(storm)) & before or len(now) < len(before):
        await anyio.sleep(POLL_INTERVAL)


async def channels(storm: Storm) -> set[str]:
    return set(re.findall(r"<[\d.]+>", await storm.evaluate("rabbit_channel:list().")))


async def deleted_queue(storm: Storm, name: str) -> None:
    queue = f"{storm.prefix}.saga.{name}"
    with storm.looking_again() as looks:
        await storm.ctl("delete_queue", queue)
        await storm.until_true(f'rabbit_amqqueue:exists(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)).')
        await looks.over()


async def deleted_exchanges(storm: Storm) -> None:
    for exchange in storm.exchanges:
        await storm.evaluate(f'ok = rabbit_exchange:delete({exchange}, false, <<"a storm">>).')
    for exchange in storm.exchanges:
        await storm.until_true(f"element(1, rabbit_exchange:lookup({exchange})) =:= ok.")


async def blocked(storm: Storm, command: str, short: str, enough: str) -> None:
    confirmed = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await storm.ctl(command, short)
        try:
            while not storm.transports[0].is_blocked:
                await anyio.sleep(POLL_INTERVAL)
            tasks.start_soon(storm.buy, 0, -1, confirmed.set)
            await storm.evaluate("ok.")
            assert not confirmed.is_set()
        finally:
            await storm.ctl(command, enough)
    while storm.transports[0].is_blocked:
        await anyio.sleep(POLL_INTERVAL)


FAULTS: dict[str, Fault] = {
    "cut": cut,
    "slow": slow,
    "closed connection": closed_connection,
    "closed channels": closed_channels,
    "deleted steps": partial(deleted_queue, name="steps"),
    "deleted compensations": partial(deleted_queue, name="compensate"),
    "deleted orchestrator": partial(deleted_queue, name="orchestrator"),
    "deleted exchanges": deleted_exchanges,
    "short of memory": partial(
        blocked, command="set_vm_memory_high_watermark", short="0.0000001", enough="0.4"
    ),
    "short of disk": partial(blocked, command="set_disk_free_limit", short="100000GB", enough="50MB"),
    "half-open": lambda storm: silent(storm, *BOTH),
    "deaf": lambda storm: silent(storm, "to the client"),
    "dumb": lambda storm: silent(storm, "to the broker"),
    "restarted": restarted,
    "killed": killed,
    "emptied": emptied,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_saga_comes_to_rest(storm: Storm, fault: str) -> None:
    before = partial(anyio.to_thread.run_sync, storm.node.write_down) if fault == "killed" else None
    await storm.rage(FAULTS[fault], before=before)


@pytest.mark.parametrize("fault", ["closed connection", "deleted steps", "deleted orchestrator"])
async def test_every_saga_of_two_engines_comes_to_rest(storm: Storm, tmp_path: Path, fault: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(SQLiteStore(tmp_path / "sagas.db")) for _ in range(2)]
        storm.store = stores[0]
        await storm.rage(FAULTS[fault], *stores)


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQ]:
    """A node of this module's own: it is emptied, and alarmed."""
    with RabbitMQ() as node:
        yield node


@pytest.fixture
async def storm(node: RabbitMQ, unique: str) -> AsyncIterator[Storm]:
    storm = Storm(node, unique)
    yield storm
    await storm.evaluate(
        '[rabbit_amqqueue:delete(Q, false, false, <<"test">>) || Q <- rabbit_amqqueue:list(<<"/">>)], '
        f'[rabbit_exchange:delete(X, false, <<"test">>) || X <- [{", ".join(storm.exchanges)}]].'
    )
