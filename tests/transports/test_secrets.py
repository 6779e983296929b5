"""A password is only in the URL and on the wire: not in logs, errors, tracebacks, or what is shown of objects."""

import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import anyio
import anyio.abc
import pytest

from saga_amqp.contracts import Topology
from saga_amqp.errors import SagaError, TransportError
from saga_amqp.reconnecting import Reconnecting
from saga_amqp.testing.traffic import Inbox, Outbox, expiring_queue, message_to, unique_name
from saga_amqp.transports.amqp import AmqpTransport
from tests.ports import HOST, free_ports
from tests.servers import RabbitMQ
from tests.transports.test_amqp_opening import PASSWORD, QUOTED, server

# As much of it as no part of any other text.
SECRET = "5ecret"


def find(caplog: pytest.LogCaptureFixture, errors: list[BaseException]) -> list[str]:
    """Return where the password is to be seen."""
    everything = [
        f"{record.name}: {record.getMessage()} {record.args!r} {caplog.handler.format(record)}"
        for record in caplog.records
    ]
    for error in errors:
        everything += traceback.format_exception(error)
        everything += [f"{each} {each!r}" for each in related(error)]
    return [text for text in everything if SECRET in text]


def related(error: BaseException | None) -> list[BaseException]:
    """Return an error with its causes, contexts and parts."""
    if error is None:
        return []
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return [
        error,
        *related(error.__cause__),
        *related(error.__context__),
        *(each for part in parts for each in related(part)),
    ]


@pytest.fixture
async def url(private_rabbitmq: RabbitMQ) -> str:
    """The URL of a user whose password is the one that is looked for."""
    name = unique_name("user")
    commands = (
        f'rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"{PASSWORD}">>, <<"tests">>), '
        f'rabbit_auth_backend_internal:set_permissions(<<"{name}">>, <<"/">>, <<"conf.*">>, <<".*">>, <<".*">>, '
        '<<"tests">>).'
    )
    await anyio.to_thread.run_sync(private_rabbitmq.ctl, "eval", commands)
    return private_rabbitmq.url().replace("guest:guest", f"{name}:{QUOTED}")


async def answer(answer: bytes, stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await stream.receive()
        await stream.send(answer)


@asynccontextmanager
async def broken_brokers() -> AsyncGenerator[list[int]]:
    """People who listen and are no brokers: one hangs up, one talks nonsense, one says something of AMQP."""
    answers = [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0b\xce"]
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(server(partial(answer, each))) for each in answers]


async def gather(errors: list[BaseException], *calls: Callable[[], Awaitable[object]]) -> None:
    for call in calls:
        try:
            await call()
        except SagaError as error:
            errors.append(error)


async def test_no_password_is_seen_when_nothing_works(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    (dead,) = free_ports(1)
    where = url.rpartition("@")[2]
    with anyio.fail_after(60):
        async with broken_brokers() as ports:
            elsewhere = [url.replace(where, f"{HOST}:{port}/") for port in (dead, *ports)]
            urls: list[str | list[str]] = [
                *elsewhere,
                elsewhere,
                url.replace(QUOTED, f"{QUOTED}-and-more"),
                url + "missing-host",
                url.replace("amqp://", "amqps://"),
                url.replace(where, "broker.invalid/"),
            ]
            for each in urls:
                await gather(errors, AmqpTransport(each, connect_timeout=5.0).__aenter__)
    assert len(errors) == len(urls)
    assert find(caplog, errors) == []
    assert {"saga_amqp.transports.amqp"} <= {record.name for record in caplog.records}


async def test_no_password_is_seen_when_something_works_and_then_fails(
    url: str, private_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    outcomes: list[TransportError | None] = []
    topology = Topology((), (expiring_queue(unique_name("queue")),))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            line = Reconnecting(AmqpTransport(url + "?name=shop"), topology)
            await line.open(tasks)
            try:
                transport = await line.restored()
                queue = topology.queues[0].name
                await gather(
                    errors,
                    partial(transport.declare, Topology((), (expiring_queue("forbidden"),))),
                    partial(transport.depth, unique_name("missing")),
                    transport.consume(unique_name("missing"), 1, Inbox()).__aenter__,
                )
                await Outbox(transport).publish(message_to(queue, "there"))
                async with transport.consume(queue, 1, Inbox()) as consumer:
                    await transport.publish(message_to(unique_name("nowhere"), "lost"), outcomes.append)
                    await anyio.to_thread.run_sync(
                        private_rabbitmq.ctl, "close_all_connections", "maintenance"
                    )
                    errors.append(await consumer.failed())
                errors.append(await transport.lost())
                while (again := await line.restored()) is transport:
                    await anyio.lowlevel.checkpoint()
            finally:
                await line.close()
    errors += [error for error in outcomes if error is not None]
    assert len(errors) == 6
    assert find(caplog, errors) == []
    assert SECRET not in f"{transport} {transport!r} {again!r} {transport._connection.address!r}"  # type: ignore[attr-defined]
    assert SECRET not in str(transport._connection.address.__rich_repr__())  # type: ignore[attr-defined]
    logged = {record.name for record in caplog.records}
    assert {"saga_amqp.transports.amqp", "saga_amqp.connection"} <= logged


async def test_what_would_show_it_is_found(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """For a search that finds nothing proves little."""
    caplog.set_level(logging.DEBUG)
    cause = ExceptionGroup("some", [ValueError(url)])
    error = TransportError("something")
    error.__cause__ = cause
    assert find(caplog, [error])
    assert not find(caplog, [])
    logging.getLogger("aiormq").debug("to %s", url)
    assert find(caplog, [])
