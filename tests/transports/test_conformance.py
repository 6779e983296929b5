"""Every shipped transport passes the suite that users have for their own."""

from collections.abc import Callable

import pytest

from saga_amqp.contracts import Transport
from saga_amqp.testing.transports import CASES, Case, Open, run_case
from saga_amqp.transports.amqp import AmqpTransport
from saga_amqp.transports.memory import MemoryBroker, MemoryTransport


def memory(_: pytest.FixtureRequest) -> Open:
    broker = MemoryBroker()
    return lambda: MemoryTransport(broker)


def rabbitmq(request: pytest.FixtureRequest) -> Open:
    url: str = request.getfixturevalue("amqp_url")
    return lambda: AmqpTransport(url)


TRANSPORTS: dict[str, Callable[[pytest.FixtureRequest], Callable[[], Transport]]] = {
    "memory": memory,
    "rabbitmq": rabbitmq,
}


@pytest.mark.uvloop
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_transport(transport: str, case: Case, request: pytest.FixtureRequest) -> None:
    await run_case(case, TRANSPORTS[transport](request))
