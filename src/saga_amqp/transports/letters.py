"""What a broker writes into a message's headers: how often it was given back, and how it died. RabbitMQ's own words."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, cast

from saga_amqp.contracts import Queue

DELIVERY_COUNT = "x-delivery-count"

Reason = Literal["rejected", "delivery_limit"]


def delivered(headers: Mapping[str, object], queue: Queue, given_back: int) -> dict[str, object]:
    """Return the headers that a consumer of a queue sees. Only quorum queues count, and not the first delivery."""
    counted = {DELIVERY_COUNT: given_back} if given_back and queue.kind == "quorum" else {}
    return {**headers, **counted}


def is_given_up(queue: Queue, given_back: int, otherwise: int | None = None) -> bool:
    """Whether a queue keeps a message no longer. `otherwise` is the limit of queues that name none."""
    limit = queue.delivery_limit if queue.delivery_limit is not None else otherwise
    return queue.kind == "quorum" and limit is not None and given_back > limit


def dead(
    headers: Mapping[str, object], queue: Queue, reason: Reason, exchange: str, routing_key: str, at: float
) -> dict[str, object]:
    """Return the headers of a message that has left a queue for its dead letters, at `at` seconds since 1970.

    `exchange` and `routing_key` are those that it was published with.
    """
    deaths = cast("list[dict[str, object]]", headers.get("x-death", []))
    before = [death for death in deaths if (death["queue"], death["reason"]) == (queue.name, reason)]
    death: dict[str, object] = {
        "count": 1,
        "reason": reason,
        "queue": queue.name,
        "time": datetime.fromtimestamp(int(at), UTC),
        "exchange": exchange,
        "routing-keys": [routing_key],
    }
    if before:
        death = before[0] | {"count": cast(int, before[0]["count"]) + 1}
    return {
        "x-first-death-exchange": exchange,
        "x-first-death-queue": queue.name,
        "x-first-death-reason": reason,
        **headers,
        "x-death": [death, *(each for each in deaths if each not in before)],
    }
