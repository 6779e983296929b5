"""What a broker writes into a message's headers: how often it was given back, and how it died. RabbitMQ's own words."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, cast

from saga_amqp.contracts import Queue

DELIVERY_COUNT = "x-delivery-count"
ACQUIRED_COUNT = "x-acquired-count"
"""From RabbitMQ 4.3 on: how often it was handed out. The other one then leaves out what a lost consumer had in hand."""

ADDED = (DELIVERY_COUNT, ACQUIRED_COUNT, "x-death", "x-first-death-", "x-last-death-")
"""How the names of those headers begin that a broker adds."""

LONGEST_NAME = 128
"""Bytes in the name of a header, for AMQP."""

LARGE = 2**63

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


def given_back(headers: Mapping[str, object]) -> int:
    """Return how often a message came back to the queue that it was taken from, as far as the broker counts that."""
    counts = (headers.get(name) for name in (DELIVERY_COUNT, ACQUIRED_COUNT))
    return max((count for count in counts if isinstance(count, int)), default=0)


class Death(NamedTuple):
    """Which queue a message left for its dead letters, why, and when: seconds since 1970, None where it is not said."""

    queue: str
    reason: str
    at: float | None


def death(headers: Mapping[str, object]) -> Death | None:
    """Return the latest death of a message, if it had any."""
    deaths = headers.get("x-death")
    latest = cast("list[object]", deaths)[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(latest, Mapping):
        return None
    told = cast("Mapping[str, object]", latest)
    time = told.get("time")
    at = time.timestamp() if isinstance(time, datetime) else None
    return Death(str(told.get("queue", "")), str(told.get("reason", "unknown")), at)


def own(headers: Mapping[str, object]) -> dict[str, str | int]:
    """Return the headers that a message was published with: those that can be published again, text and numbers."""
    return {
        name: value
        for name, value in headers.items()
        if (isinstance(value, str) or (isinstance(value, int) and -LARGE <= value < LARGE))
        and len(name.encode()) <= LONGEST_NAME
        and not name.startswith(ADDED)
    }
