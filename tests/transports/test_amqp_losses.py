"""A broker that dies, stops, or says nothing for a while: everything settles, once, and soon."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from saga_amqp.contracts import Delivery, Queue, Topology
from saga_amqp.errors import ConnectionLostError, TransportError
from saga_amqp.testing.traffic import Inbox, Outbox, drain, message_to, new_queue, unique_name
from saga_amqp.transports.amqp import AmqpTransport
from tests.servers import RabbitMQ
from tests.transports.test_amqp import assert_nothing_of_aiormq

# After this many confirmed hops the broker is struck, so that it happens under full load.
WARM = 500
IN_FLIGHT = 200


class Relay:
    """Messages that go round a queue, and what became of each publish."""

    def __init__(self, transport: AmqpTransport, queue: str) -> None:
        self.warm = anyio.Event()
        self.begun = 0
        self.outcomes: Counter[str] = Counter()
        self.refused = 0
        self.confirmed: set[str] = set()
        self.acknowledged: set[str] = set()
        self._transport = transport
        self._queue = queue

    async def go_round(self, deliveries: "anyio.abc.ObjectReceiveStream[Delivery]") -> None:
        async with deliveries:
            async for delivery in deliveries:
                await self.publish(delivery)

    async def publish(self, delivery: Delivery | None = None) -> None:
        self.begun += 1
        id = str(self.begun)
        try:
            await self._transport.publish(message_to(self._queue, id), partial(self._settled, id, delivery))
        except ConnectionLostError:
            self.refused += 1

    def _settled(self, id: str, delivery: Delivery | None, error: TransportError | None) -> None:
        self.outcomes[type(error).__name__] += 1
        if error is None:
            self.confirmed.add(id)
            if delivery is not None:
                self.acknowledged.add(delivery.message_id)
                delivery.acknowledge()
        if len(self.confirmed) == WARM:
            self.warm.set()


async def relay_until(
    rabbitmq: RabbitMQ, transport: AmqpTransport, queue: str, strike: signal.Signals
) -> Relay:
    """Relay messages, strike the broker, and return when everything has settled."""
    relay = Relay(transport, queue)
    send, receive = anyio.create_memory_object_stream[Delivery](10_000)
    async with transport.consume(queue, 2 * IN_FLIGHT, send.send_nowait) as consumer:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.go_round, receive)
            for _ in range(IN_FLIGHT):
                await relay.publish()
            await relay.warm.wait()
            os.kill(rabbitmq.pid, strike)
            for _ in range(50):  # which nobody is there to confirm
                await relay.publish()
            error = await consumer.failed()
            assert type(error) is ConnectionLostError
            assert f":{rabbitmq.port}" in str(error)
            send.close()
        with pytest.raises(ConnectionLostError):
            await transport.publish(message_to(queue, "late"), lambda error: None)
    assert relay.outcomes["ConnectionLostError"] >= 50
    assert sum(relay.outcomes.values()) + relay.refused == relay.begun
    assert set(relay.outcomes) <= {"NoneType", "ConnectionLostError"}
    return relay


async def lasting_queue(rabbitmq: RabbitMQ, transport: AmqpTransport) -> str:
    name = unique_name("lasting")
    await transport.declare(Topology((), (Queue(name),)))
    await anyio.to_thread.run_sync(rabbitmq.write_down)
    return name


@pytest.mark.uvloop
async def test_a_killed_broker_is_noticed_and_nothing_confirmed_is_lost(
    private_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(90):
        async with AmqpTransport(private_rabbitmq.url()) as transport:
            queue = await lasting_queue(private_rabbitmq, transport)
            relay = await relay_until(private_rabbitmq, transport, queue, signal.SIGKILL)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        await anyio.to_thread.run_sync(private_rabbitmq.restart)
        async with AmqpTransport(private_rabbitmq.url()) as transport:
            kept = {id for id, _ in await drain(transport, queue)}
        # What was confirmed and not acknowledged must be there; what was not confirmed may be.
        assert relay.confirmed - relay.acknowledged <= kept
    assert_nothing_of_aiormq(caplog)


async def test_a_stopped_broker_is_noticed_by_its_silence(
    private_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        with anyio.fail_after(60):
            async with AmqpTransport(private_rabbitmq.url() + "?heartbeat=1") as transport:
                queue = await new_queue(transport)
                began = time.monotonic()
                await relay_until(private_rabbitmq, transport, queue, signal.SIGSTOP)
                assert 1 < time.monotonic() - began < 10
                began = time.monotonic()
            assert time.monotonic() - began < 2
    finally:
        os.kill(private_rabbitmq.pid, signal.SIGCONT)
    assert_nothing_of_aiormq(caplog)


async def test_closing_does_not_wait_for_a_stopped_broker(private_rabbitmq: RabbitMQ) -> None:
    try:
        with anyio.fail_after(60):
            async with AmqpTransport(private_rabbitmq.url()) as transport:
                queue = await new_queue(transport)
                outbox = Outbox(transport)
                inbox = Inbox()
                consuming = transport.consume(queue, 10, inbox)
                await consuming.__aenter__()
                await outbox.publish(message_to(queue, "in hand"))
                await inbox.take()
                private_rabbitmq.freeze()
                await outbox.begin(message_to(queue, "lost"))
                began = time.monotonic()
                await transport.close()
                assert time.monotonic() - began < 6
                await outbox.settled()
                assert outbox.outcomes["lost"] is not None
                await consuming.__aexit__(None, None, None)
    finally:
        os.kill(private_rabbitmq.pid, signal.SIGCONT)


async def test_connecting_to_a_stopped_broker_gives_up(private_rabbitmq: RabbitMQ) -> None:
    private_rabbitmq.freeze()
    try:
        with anyio.fail_after(30):
            with pytest.raises(TransportError, match=r"did not answer within 0\.5 seconds"):
                async with AmqpTransport(private_rabbitmq.url(), connect_timeout=0.5):
                    pass
    finally:
        os.kill(private_rabbitmq.pid, signal.SIGCONT)


async def test_a_connection_with_heartbeats_survives_traffic_and_quiet(amqp_url: str) -> None:
    """Ten heartbeats long: nothing but traffic of a lane, which aiormq never sees, and nothing at all."""
    with anyio.fail_after(60):
        async with (
            AmqpTransport(amqp_url, heartbeat=1) as busy,
            AmqpTransport(amqp_url, heartbeat=1) as quiet,
            AmqpTransport(amqp_url, heartbeat=0) as without,
        ):
            queue, silent = await new_queue(busy), await new_queue(busy)
            inbox = Inbox()
            ends = anyio.current_time() + 10
            async with (
                busy.consume(queue, 10, inbox),
                quiet.consume(silent, 1, Inbox()),
                without.consume(silent, 1, Inbox()),
            ):
                count = 0
                while anyio.current_time() < ends:
                    count += 1
                    await Outbox(busy).publish(message_to(queue, str(count)))
                    (delivery,) = await inbox.take()
                    delivery.acknowledge()
            for transport in (busy, quiet, without):
                await transport.declare(Topology((), ()))
            assert threads_named("saga-amqp-control") == 3
    assert threads_named("saga-amqp-control") == 0


@asynccontextmanager
async def hanging_channels(rabbitmq: RabbitMQ) -> AsyncIterator[None]:
    """Stop what works for each channel of the broker; its connections and their heartbeats go on."""

    async def tell(what: str) -> None:
        everybody = f"[catch sys:{what}(Channel, 5000) || Channel <- rabbit_channel:list()], ok."
        await anyio.to_thread.run_sync(rabbitmq.evaluate, everybody)

    await tell("suspend")
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await tell("resume")


async def test_a_confirm_that_never_comes_ends_the_connection(private_rabbitmq: RabbitMQ) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(private_rabbitmq.url(), answer_timeout=0.5) as transport:
            queue, outbox = await new_queue(transport), Outbox(transport)
            await outbox.publish(message_to(queue, "0"))
            async with hanging_channels(private_rabbitmq):
                await outbox.publish(message_to(queue, "1"))
                assert "has not answered for 0.5 seconds" in str(await transport.lost())
    assert outbox.outcomes["0"] is None
    assert isinstance(outbox.outcomes["1"], ConnectionLostError)


async def test_a_question_that_is_never_answered_ends_the_connection(private_rabbitmq: RabbitMQ) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport(private_rabbitmq.url(), answer_timeout=0.5) as transport:
            queue = await new_queue(transport)
            async with transport.consume(queue, 1, Inbox()) as consumer, hanging_channels(private_rabbitmq):
                with pytest.raises(ConnectionLostError, match=r"has not answered for 0\.5 seconds"):
                    await consumer.cancel()


async def test_a_blocked_event_loop_does_not_lose_a_healthy_broker(amqp_url: str) -> None:
    """A program that blocks its own event loop finds the broker's heartbeats in the socket when it goes on."""
    with anyio.fail_after(30):
        async with AmqpTransport(amqp_url, heartbeat=2) as transport:
            queue = await new_queue(transport)
            time.sleep(3.5)  # noqa: ASYNC251 - this is the case
            outbox = Outbox(transport)
            await outbox.publish(message_to(queue, "0"))
            assert outbox.outcomes == {"0": None}


def threads_named(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())
