"""The participant in Node.js, as it stands in examples: its process runs the payment step of sagas of ours."""

# Neither a process nor a saga tells when it has come to where it is waited for: they are asked again and again.
# ruff: noqa: ASYNC110

import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec.structs import replace
from ulid import ULID

from saga_amqp import Saga, Step, StepError, StepState
from saga_amqp.contracts import Message
from saga_amqp.transports.amqp.transport import AmqpTransport
from saga_core import Execute, new_saga, outstanding
from tests.engine.world import steps
from tests.faults.world import DEADLINE, POLL_INTERVAL, RabbitWorld, messages_ready
from tests.node import Node, find_node
from tests.servers import RabbitMQ

EXAMPLE = Path(__file__).parents[2] / "examples" / "participant-node"
THEIRS = ("payment.steps", "payment.compensate")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the example, from a copy with its packages installed."""
    node: Node | None = find_node()
    if node is None:
        pytest.skip("there is no Node.js with npm here, so nobody sees that other languages can take part")
    folder = tmp_path_factory.mktemp("node") / "participant"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    node.install(folder)
    return [*node.node, str(folder / "index.js")]


class Payments:
    """A process of the example."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.process = process
        self.said: list[str] = []
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def says(self) -> str:
        """Return the next line that it prints."""
        with anyio.fail_after(DEADLINE):
            self.said.append((await self._lines.receive_until(b"\n", 65_536)).decode())
        return self.said[-1]

    async def stop(self) -> int:
        """Tell it to stop, and return its exit status."""
        os.kill(self.process.pid, signal.SIGTERM)
        with anyio.fail_after(DEADLINE):
            return await self.process.wait()


class Shop(RabbitWorld):
    """An orchestrator of orders whose payments are made elsewhere."""

    def __init__(self, url: str, prefix: str, program: list[str]) -> None:
        super().__init__(url, prefix)
        self.program = program

    def config(self, **changes: Any) -> Any:
        # The exchange and the queues stay: the example knows of no other kind.
        return super().config(**{"remote": ("payment.*",), "expires": None, **changes})

    @asynccontextmanager
    async def paying(self) -> AsyncIterator[Payments]:
        """Run the example, until it says that it is ready and to the end of the context."""
        environment = {**os.environ, "AMQP_URL": self.url, "PREFIX": f"{self.prefix}."}
        async with await anyio.open_process(self.program, stderr=None, env=environment) as process:
            try:
                payments = Payments(process)
                while await payments.says() != "ready":
                    pass  # it begins with what has waited for it
                yield payments
            finally:
                if process.returncode is None:
                    process.kill()

    async def until_quiet(self, dead_letters: int = 0) -> None:
        """Wait until nothing is left in any queue."""
        await self.until_ready(dead_letters=dead_letters)
        assert messages_ready(self.url, [f"{self.prefix}.{queue}" for queue in THEIRS]) == [0, 0]

    async def send(self, message: Message) -> None:
        """Publish a message as somebody else would."""
        confirmed = anyio.Event()
        async with AmqpTransport(self.url) as transport:
            await transport.publish(message, lambda error: confirmed.set())
            with anyio.fail_after(DEADLINE):
                await confirmed.wait()


@pytest.fixture
def shop(private_rabbitmq: RabbitMQ, unique: str, program: list[str]) -> Shop:
    """Its queues end with the private broker: nothing else would take them away."""
    return Shop(private_rabbitmq.url(), unique, program)


def order(card: str = "card-456") -> list[Step[Any]]:
    pay = Step[Any](
        name="pay",
        action="payment.charge",
        compensation="payment.refund",
        input={"amount": 99.99, "card": card},
    )
    return [*steps("a"), pay, *steps("b")]


async def test_a_payment_is_made_in_node(shop: Shop) -> None:
    async with shop.paying() as payments, shop.running() as manager:
        saga = await manager.wait((await manager.start("order", order())).id)
        assert saga.is_completed
        assert saga.step("pay").output == {"transaction_id": f"tx-{saga.step('pay').id}"}
        assert await payments.says() == f"charged {saga.step('pay').id}"
        assert await payments.stop() == 0
    assert shop.calls == ["do.a", "do.b"]
    await shop.until_quiet()


async def test_a_payment_is_undone_in_node(shop: Shop) -> None:
    async def fails(saga: Saga, step: Step[Any]) -> None:
        raise StepError("no", "it cannot be sent")

    shop.replace("do.b", fails)
    async with shop.paying() as payments, shop.running() as manager:
        saga = await manager.wait((await manager.start("order", order())).id)
        assert saga.is_compensated
        assert [step.state for step in saga.steps] == ["compensated", "compensated", "failed"]
        assert await payments.says() == f"charged {saga.step('pay').id}"
        assert await payments.says() == f"refunded {saga.step('pay').id}"
        assert await payments.stop() == 0
    assert shop.calls == ["do.a", "do.b", "undo.a"]
    await shop.until_quiet()


async def test_a_payment_that_is_declined_in_node_undoes_the_order(shop: Shop) -> None:
    async with shop.paying(), shop.running() as manager:
        saga = await manager.wait((await manager.start("order", order("card-declined"))).id)
    assert saga.is_compensated
    error = saga.step("pay").error
    assert error is not None
    assert (error.code, error.message, error.retryable) == ("card_declined", "the bank said no", False)
    assert bytes(error.details) == b'{"amount":99.99,"card":"card-declined"}'
    assert saga.step("pay").state is StepState.FAILED
    await shop.until_quiet()


async def test_a_payment_that_is_asked_for_twice_is_made_once(shop: Shop) -> None:
    async with shop.paying() as payments, shop.running() as manager:
        saga = await manager.start("order", order())
        await manager.wait(saga.id)
        paid = await manager.get(saga.id)
        await shop.send(shop.config().message(Execute(saga.id, "pay", "payment.charge", 1), paid))
        other = await manager.wait((await manager.start("order", order())).id)
        said = [await payments.says() for _ in range(2)]
        assert said == [f"charged {one.step('pay').id}" for one in (paid, other)]
        await shop.until_all_is_acknowledged()
        assert await manager.get(saga.id) == paid
    await shop.until_quiet()


async def test_a_payment_process_that_is_killed_is_followed_by_one_that_pays(shop: Shop) -> None:
    async with shop.running() as manager:
        async with shop.paying() as payments:
            await payments.stop()
        saga = await manager.start("order", order())
        while (await manager.get(saga.id)).step("pay").state is not StepState.STARTED:
            await anyio.sleep(POLL_INTERVAL)
        async with shop.paying() as payments:
            os.kill(payments.process.pid, signal.SIGKILL)
        async with shop.paying():
            assert (await manager.wait(saga.id)).is_completed
    await shop.until_quiet()


async def test_a_payment_that_comes_too_late_is_neither_made_nor_refunded(shop: Shop) -> None:
    async with shop.paying() as payments:
        await payments.stop()
    async with shop.running() as manager:
        late, later = ([replace(step, timeout=0.3) for step in order()], order())
        saga = await manager.start("order", late)
        while not (await manager.get(saga.id)).is_compensating:
            await anyio.sleep(POLL_INTERVAL)
        async with shop.paying() as payments:
            assert (await manager.wait(saga.id)).is_compensated
            other = await manager.wait((await manager.start("order", later)).id)
            await payments.says()
            assert payments.said == ["ready", f"charged {other.step('pay').id}"]
    await shop.until_quiet()


async def test_a_reply_that_nobody_takes_is_sent_again(shop: Shop) -> None:
    """The orchestrator's queue is not there yet."""
    saga = new_saga("order", order()[1:2], id=str(ULID()), at=time.time())
    await shop.store.create(saga)
    async with shop.paying() as payments:
        (command,) = outstanding(saga)
        await shop.send(shop.config().message(command, saga))
        assert await payments.says() == f"charged {saga.step('pay').id}"
        async with AmqpTransport(shop.url) as transport:
            await transport.declare(shop.config().topology())
        with anyio.fail_after(DEADLINE):
            while messages_ready(shop.url, [shop.config().orchestrator]) != [1]:
                await anyio.sleep(POLL_INTERVAL)
    async with shop.running() as manager:
        assert (await manager.wait(saga.id)).is_completed
    await shop.until_quiet()


async def test_a_message_that_node_cannot_read_is_kept_and_its_saga_is_told(shop: Shop) -> None:
    async with shop.paying(), shop.running() as manager:
        bad = Execute("01ARZ3NDEKTSV4RRFFQ69G5FAV", "pay", "payment.charge", 1)
        await shop.send(shop.config().message(bad))  # it has no work in it
        assert (await manager.wait((await manager.start("order", order())).id)).is_completed
        await shop.until_quiet(dead_letters=1)
        assert manager.dead_lettered() == {"dropped_by_broker": 1}
