"""The order saga, as one readable module: what `saga demo` runs.

Three services take part: orders, inventory, payment. Each action stands beside the compensation that undoes it.
"""

from typing import Any

from msgspec import Struct

from saga_amqp.handlers import Registry
from saga_core import Saga, Step, StepError

shop = Registry()


class Items(Struct):
    """Some units of a product."""

    product_id: str
    quantity: int


class Charge(Struct):
    """Money to take from a card."""

    amount: float
    card: str


@shop.action("orders.create")
async def create_order(saga: Saga, step: Step[Items]) -> dict[str, object]:
    """Write the order down."""
    return {"order_id": f"order-{saga.id[-6:]}", "customer_id": saga.context["customer_id"]}


@create_order.compensation("orders.delete")
async def delete_order(saga: Saga, step: Step) -> None:
    """Delete the order, if it was written."""


@shop.action("inventory.reserve")
async def reserve_inventory(saga: Saga, step: Step[Items]) -> dict[str, object]:
    """Put the goods aside."""
    return {"reservation_id": f"reservation-{saga.id[-6:]}", "quantity": step.input.quantity}


@reserve_inventory.compensation("inventory.release")
async def release_inventory(saga: Saga, step: Step) -> None:
    """Put the goods back."""


@shop.action("payment.charge")
async def charge_payment(saga: Saga, step: Step[Charge]) -> dict[str, object]:
    """Take the money; the card `card-declined` has none."""
    if step.input.card == "card-declined":
        raise StepError("card_declined", f"the bank declined {step.input.amount:.2f}")
    return {"transaction_id": step.idempotency_key(), "amount": step.input.amount}


@charge_payment.compensation("payment.refund")
async def refund_payment(saga: Saga, step: Step) -> None:
    """Give the money back, if it was taken."""


def order_steps(card: str) -> list[Step[Any]]:
    """Return the steps of an order that is paid with this card."""
    return [
        create_order.step(Items("prod-123", 2)),
        reserve_inventory.step(Items("prod-123", 2)),
        charge_payment.step(Charge(99.99, card)),
    ]
