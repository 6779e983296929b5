"""Several brokers to connect to: the first that works is taken, and the next one after a loss."""

from collections.abc import Iterator

import anyio
import pytest

from saga_amqp.contracts import Queue, Topology
from saga_amqp.errors import AuthenticationError, ConnectFailedError, ConnectionLostError
from saga_amqp.reconnecting import Reconnecting
from saga_amqp.testing.traffic import Inbox, Outbox, acknowledge, message_to, unique_name
from saga_amqp.transports.amqp import AmqpTransport
from tests.ports import HOST, free_ports
from tests.servers import External, RabbitMQ
from tests.transports.test_amqp_opening import QUOTED, assert_no_password, control_threads


@pytest.fixture(scope="session")
def another_node() -> Iterator[RabbitMQ]:
    """A second broker, which knows nothing of the first."""
    with RabbitMQ() as rabbit:
        yield rabbit


@pytest.fixture
def another_rabbitmq(another_node: RabbitMQ) -> RabbitMQ:
    """The second broker, to kill: it runs when the test begins."""
    if not another_node.running:
        another_node.restart()
    return another_node


@pytest.fixture
def dead_url() -> str:
    (port,) = free_ports(1)
    return f"amqp://guest:{QUOTED}@{HOST}:{port}/"


def connected_to(transport: AmqpTransport) -> int:
    assert transport._connection is not None
    return transport._connection.address.port


async def test_the_first_that_works_is_taken(
    amqp_url: str, dead_url: str, rabbitmq: RabbitMQ | External
) -> None:
    with anyio.fail_after(30):
        async with AmqpTransport([dead_url, dead_url, amqp_url]) as transport:
            assert connected_to(transport) == rabbitmq.port
            assert len(control_threads()) == 1
            await transport.declare(Topology((), ()))
        async with AmqpTransport([amqp_url, dead_url]) as transport:
            assert connected_to(transport) == rabbitmq.port
        async with AmqpTransport([dead_url, amqp_url, "amqp://third/"]) as transport:
            assert transport.renewed()._addresses[0].host == "third"


async def test_where_none_works_each_is_named_with_its_reason(amqp_url: str, dead_url: str) -> None:
    wrong_password = amqp_url.replace("guest:guest", f"guest:{QUOTED}")
    port = dead_url.rpartition(":")[2].strip("/")
    with anyio.fail_after(30):
        with pytest.raises(
            ConnectFailedError, match=f"{port}: Connection refused; .*ACCESS_REFUSED"
        ) as caught:
            await AmqpTransport([dead_url, wrong_password]).__aenter__()
        assert type(caught.value) is ConnectFailedError
        assert_no_password(caught.value)
        reasons = caught.value.__cause__
        assert isinstance(reasons, ExceptionGroup)
        assert [type(error) for error in reasons.exceptions] == [ConnectFailedError, AuthenticationError]
        for error in reasons.exceptions:
            assert_no_password(error)
        with pytest.raises(AuthenticationError, match="No broker of 2"):
            await AmqpTransport([wrong_password, wrong_password]).__aenter__()
        assert not control_threads()


async def test_each_address_gets_its_own_time(private_rabbitmq: RabbitMQ) -> None:
    """One that takes connections and says nothing keeps nobody from the next."""
    silent = await anyio.create_tcp_listener(local_host=HOST)
    port = silent.extra(anyio.abc.SocketAttribute.local_port)
    async with silent:
        with anyio.fail_after(30):
            urls = [f"amqp://{HOST}:{port}/", private_rabbitmq.url()]
            async with AmqpTransport(urls, connect_timeout=1.0) as transport:
                assert connected_to(transport) == private_rabbitmq.port


async def test_cancelled_between_two_addresses_nothing_is_left(amqp_url: str, dead_url: str) -> None:
    urls = [dead_url, amqp_url.replace("guest:guest", "guest:wrong"), amqp_url]
    with anyio.fail_after(60):
        began = anyio.current_time()
        async with AmqpTransport(urls):
            takes = anyio.current_time() - began
        for part in range(12):
            with anyio.move_on_after(takes * part / 10):
                async with AmqpTransport(urls):
                    pass
            assert not control_threads()


async def test_a_killed_broker_is_left_for_the_next(
    private_rabbitmq: RabbitMQ, another_rabbitmq: RabbitMQ
) -> None:
    """And the topology is declared there as well."""
    queue = unique_name("queue")
    topology = Topology((), (Queue(queue, expires=60.0),))
    urls = (another_rabbitmq.url(), private_rabbitmq.url())
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            line = Reconnecting(AmqpTransport(urls), topology)
            await line.open(tasks)
            try:
                first = await line.restored()
                assert isinstance(first, AmqpTransport)
                assert connected_to(first) == another_rabbitmq.port
                async with first.consume(queue, 10, Inbox()) as consumer:
                    await anyio.to_thread.run_sync(another_rabbitmq.kill)
                    assert isinstance(await consumer.failed(), ConnectionLostError)
                while (second := await line.restored()) is first:
                    await anyio.lowlevel.checkpoint()
                assert isinstance(second, AmqpTransport)
                assert connected_to(second) == private_rabbitmq.port
                assert second._tried == 0  # without having tried the dead one again
                inbox, outbox = Inbox(), Outbox(second)
                async with second.consume(queue, 10, inbox):
                    await outbox.publish(message_to(queue, "there"))
                    acknowledge(await inbox.take())
                assert outbox.outcomes == {"there": None}
            finally:
                await line.close()


def test_a_renewed_transport_begins_with_the_next_address() -> None:
    names = ["a", "b", "c"]
    transport = AmqpTransport([f"amqp://{name}/" for name in names])
    assert repr(transport) == "<AmqpTransport amqp://a:5672/, amqp://b:5672/, amqp://c:5672/>"
    for first in (1, 2, 0):
        transport = transport.renewed()
        assert [address.host for address in transport._addresses] == names[first:] + names[:first]
    alone = AmqpTransport("amqp://a/").renewed()
    assert [address.host for address in alone._addresses] == ["a"]


def test_no_address_is_none() -> None:
    with pytest.raises(ConnectFailedError, match="no URL"):
        AmqpTransport([])
