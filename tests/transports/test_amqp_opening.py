"""Connecting and closing: clear errors without passwords, and nothing left behind when cancelled anywhere."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from anyio.lowlevel import checkpoint

from saga_amqp.contracts import Topology
from saga_amqp.errors import AuthenticationError, ConnectFailedError, VirtualHostError
from saga_amqp.testing.traffic import Inbox, Outbox, message_to, new_queue
from saga_amqp.transports.amqp import AmqpTransport
from tests.transports.test_amqp import assert_nothing_of_aiormq

PASSWORD = "5ecret/pa#ss@word"
QUOTED = "5ecret%2Fpa%23ss%40word"


async def refusal(url: str, **settings: float) -> ConnectFailedError:
    with anyio.fail_after(20), pytest.raises(ConnectFailedError) as caught:
        await AmqpTransport(url, connect_timeout=settings.get("connect_timeout", 5.0)).__aenter__()
    assert_no_password(caught.value)
    return caught.value


def assert_no_password(error: BaseException | None) -> None:
    while error is not None:
        assert "5ecret" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


async def test_nobody_listens(unused_port: int, caplog: pytest.LogCaptureFixture) -> None:
    error = await refusal(f"amqp://guest:{QUOTED}@127.0.0.1:{unused_port}/")
    assert type(error) is ConnectFailedError
    assert f"127.0.0.1:{unused_port}" in str(error)
    assert "refused" in str(error)
    assert_nothing_of_aiormq(caplog)


async def test_a_host_that_does_not_exist() -> None:
    error = await refusal(f"amqp://guest:{QUOTED}@broker.invalid/")
    assert "broker.invalid:5672" in str(error)


async def test_a_wrong_password(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    error = await refusal(amqp_url.replace("guest:guest", f"guest:{QUOTED}"))
    assert type(error) is AuthenticationError
    assert "ACCESS_REFUSED" in str(error)
    assert_nothing_of_aiormq(caplog)


async def test_an_unknown_virtual_host(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    error = await refusal(amqp_url.rpartition("/")[0] + "/no%2Fsuch")
    assert type(error) is VirtualHostError
    assert "'no/such'" in str(error)
    assert_nothing_of_aiormq(caplog)


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not AMQP"),
        (b"AMQP\x00\x00\x09\x00", "not AMQP"),
        (b"", "closed it"),
        (b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0b\xce", "No connection"),
    ],
)
async def test_something_that_is_no_broker(
    greeting: bytes, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if greeting:
                await stream.send(greeting)

    async with server(talk) as port:
        error = await refusal(f"amqp://guest:{QUOTED}@127.0.0.1:{port}/")
        assert type(error) is ConnectFailedError
        assert message in str(error)
        assert f"127.0.0.1:{port}" in str(error)
    assert_nothing_of_aiormq(caplog)


async def test_somebody_who_never_answers() -> None:
    async def talk(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await anyio.sleep_forever()

    async with server(talk) as port:
        error = await refusal(f"amqp://guest:{QUOTED}@127.0.0.1:{port}/", connect_timeout=0.3)
        assert f"127.0.0.1:{port} did not answer within 0.3 seconds" in str(error)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://broker/", "amqp:// or amqps://"),
        ("broker", "amqp:// or amqps://"),
        ("amqp:///vhost", "no host"),
        (f"amqp://guest:{PASSWORD}@broker/", "cannot be read|percent-encode"),
        ("amqp://guest:5ecret/more@broker/", "cannot be read|percent-encode"),
        ("amqp://guest:12/5ecret@broker/", "percent-encode"),
        ("amqp://guest:12#5ecret@broker/", "percent-encode"),
        (f"amqp://guest:{QUOTED}@broker:notaport/", "cannot be read"),
        (f"amqp://guest:{QUOTED}@broker/?heartbeat=often", "heartbeat"),
        (f"amqp://guest:{QUOTED}@broker/?heartbeat=65535", "heartbeat"),
        (f"amqp://guest:{QUOTED}@broker/?heartbeat=-1", "heartbeat"),
        (f"amqp://guest:{QUOTED}@broker/?heartbeat", "cannot be read"),
        (f"amqp://guest:{QUOTED}@broker/?heartbeat={'9' * 5_000}", "heartbeat"),
        (f"amqp://guest:{QUOTED}@broker/?name=\ud800", "cannot be read"),
        (f"amqp://guest:{QUOTED}@br\ud800ker/", "cannot be read"),
        (f"amqp://guest:{QUOTED}@bro\\ker/", "cannot be read"),
        (f"amqp://guest:{QUOTED}@[::1]5673/", "cannot be read"),
        (f'amqp://[::1]:"@//guest:{QUOTED}@broker/', "cannot be read"),
        (f"amqp://guest:{QUOTED}@[::1/", "cannot be read"),
        (f"amqp://guest:{QUOTED}@broker:99999/", "cannot be read"),
        ("amqp://guest:5ecret\udcff@broker/", "cannot be read"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(ConnectFailedError, match=message) as caught:
        AmqpTransport(url)
    assert_no_password(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"amqp://guest:{QUOTED}@broker", "amqp://broker:5672/"),
        (f"amqps://guest:{QUOTED}@broker/", "amqps://broker:5671/"),
        (f"amqps://guest:{QUOTED}@broker:1234/a%2Fb?heartbeat=5", "amqps://broker:1234/a/b"),
        (f"amqp://guest:{QUOTED}@BRÖKER/ö", "amqp://xn--brker-kua:5672/ö"),
        (f"amqp://guest:{QUOTED}@[::1]:1234", "amqp://::1:1234/"),
        (f"amqp://guest:{QUOTED}@brök.example/", "amqp://xn--brk-tna.example:5672/"),
    ],
)
def test_how_a_transport_is_shown(url: str, shown: str) -> None:
    assert repr(AmqpTransport(url)) == f"<AmqpTransport {shown}>"


# Cancelled anywhere -----------------------------------------------------------------------------------------------


async def use(url: str) -> None:
    """Open, declare, consume, publish, acknowledge, leave, close."""
    async with AmqpTransport(url) as transport:
        queue = await new_queue(transport)
        inbox = Inbox()
        async with transport.consume(queue, 10, inbox) as consumer:
            await Outbox(transport).publish(message_to(queue, "0"))
            (delivery,) = await inbox.take()
            delivery.acknowledge()
            await consumer.cancel()
        await transport.declare(Topology((), ()))


async def test_cancelled_after_any_number_of_turns_nothing_is_left(amqp_url: str) -> None:
    async def cancel_after(turns: int, scope: anyio.CancelScope) -> None:
        for _ in range(turns):
            await checkpoint()
        scope.cancel()

    with anyio.fail_after(100):
        for turns in range(30):
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_after, turns, scope)
                    await use(amqp_url)
                scope.cancel()
            assert not control_threads()


async def test_cancelled_at_any_time_nothing_is_left(amqp_url: str) -> None:
    with anyio.fail_after(100):
        began = anyio.current_time()
        await use(amqp_url)
        takes = anyio.current_time() - began
        for part in range(40):
            with anyio.move_on_after(takes * part / 35):
                await use(amqp_url)
            assert not control_threads()


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"], indirect=True
)
async def test_cancelled_the_native_way_nothing_is_left(amqp_url: str) -> None:
    """Only asyncio can cancel a task from anywhere, and again while it is already ending."""
    for part in range(30):
        task = asyncio.ensure_future(use(amqp_url))
        await asyncio.sleep(part * 0.002)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task], timeout=20)
        assert task.done()
        assert task.cancelled() or task.exception() is None
        assert not control_threads()


async def test_a_cancelled_subscription_leaves_no_channel_open(amqp_url: str) -> None:
    with anyio.fail_after(60):
        async with AmqpTransport(amqp_url) as transport:
            queue = await new_queue(transport)
            for part in range(40):
                with anyio.move_on_after(part * 0.0002):
                    async with transport.consume(queue, 10, Inbox()):
                        pass
            assert transport._connection is not None
            while len(transport._connection.control._connection.channels) > 1:  # that of the publisher
                await checkpoint()
            assert transport._connection is not None
            assert len(transport._connection.link.lanes) == 1


async def test_cancelled_while_nobody_answers_nothing_is_left() -> None:
    """The calls that wait for the broker's answer are cancelled at once."""

    async def swallow(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            while True:
                try:
                    await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return

    async with server(swallow) as port:
        with anyio.fail_after(5):
            with anyio.move_on_after(0.2) as scope:
                await use(f"amqp://guest:guest@127.0.0.1:{port}/")
            assert scope.cancelled_caught
            assert not control_threads()


def control_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "saga-amqp-control"]


@asynccontextmanager
async def server(talk: Callable[[anyio.abc.SocketStream], Awaitable[None]]) -> AsyncGenerator[int, None]:
    """Somebody who listens on a port and is no broker."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, talk)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.fixture
def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
