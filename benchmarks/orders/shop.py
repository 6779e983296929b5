"""The order saga that everything here runs: three small steps, which count how often they ran."""

from collections.abc import Sequence
from typing import Any

import anyio
from msgspec import Struct

from saga_amqp import Registry, Saga, Step, StepError

CUSTOMER = {"customer_id": "cust-789"}
DECLINED = "card-declined"
STEPS = 3


class Items(Struct):
    """Some units of a product."""

    product_id: str
    quantity: int


class Charge(Struct):
    """Money to take from a card."""

    amount: float
    card: str


class Shop:
    """Handlers that wait so many seconds, or do nothing, and the steps that run them."""

    def __init__(self, wait: float = 0.0) -> None:
        self.ran = 0
        self._goal, self._reached = 0, anyio.Event()
        self.registry = registry = Registry()

        async def work() -> None:
            self.ran += 1
            if self.ran == self._goal:
                self._reached.set()
            if wait:
                await anyio.sleep(wait)

        @registry.action("orders.create")
        async def create_order(saga: Saga, step: Step[Items]) -> dict[str, object]:
            await work()
            return {"order_id": step.input.product_id}

        @create_order.compensation("orders.delete")
        async def delete_order(saga: Saga, step: Step) -> None:
            await work()

        @registry.action("inventory.reserve")
        async def reserve_inventory(saga: Saga, step: Step[Items]) -> dict[str, object]:
            await work()
            return {"reserved": step.input.quantity}

        @reserve_inventory.compensation("inventory.release")
        async def release_inventory(saga: Saga, step: Step) -> None:
            await work()

        @registry.action("payment.charge")
        async def charge_payment(saga: Saga, step: Step[Charge]) -> dict[str, object]:
            await work()
            if step.input.card == DECLINED:
                raise StepError(DECLINED, "the bank said no")
            return {"charged": step.input.amount}

        @charge_payment.compensation("payment.refund")
        async def refund_payment(saga: Saga, step: Step) -> None:
            await work()

        self._create, self._reserve, self._charge = create_order, reserve_inventory, charge_payment

    async def has_run(self, count: int) -> None:
        """Wait until so many handlers have begun."""
        if self.ran < count:
            self._goal = count
            await self._reached.wait()

    def order(self, *, declined: bool = False) -> Sequence[Step[Any]]:
        """Return the steps of an order; where the card is declined, the two before it are undone."""
        return [
            self._create.step(Items("prod-123", 2)),
            self._reserve.step(Items("prod-123", 2)),
            self._charge.step(Charge(99.99, DECLINED if declined else "card-456")),
        ]

    def chain(self, steps: int) -> Sequence[Step[Any]]:
        """Return an order of so many steps, one after the other."""
        return [self._create.step(Items("prod-123", 2), name=f"step{number}") for number in range(steps)]
