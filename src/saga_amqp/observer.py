"""One seam to watch an engine through: telemetry, tests and crash points all use it."""

from collections.abc import Callable
from enum import StrEnum

import msgspec

from saga_core import Carried


class Point(StrEnum):
    """The moments in a message's life that an observer is told of, in their order."""

    RECEIVED = "received"
    HANDLER_BEGAN = "handler began"
    HANDLER_ENDED = "handler ended"
    COMMITTING = "committing"
    COMMITTED = "committed"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    DEAD_LETTERED = "dead-lettered"
    ACKNOWLEDGING = "acknowledging"
    ACKNOWLEDGED = "acknowledged"


class Moment(msgspec.Struct, frozen=True, gc=False):
    """A point that a saga has reached; `command` is the message being worked on, None for a call of the manager."""

    point: Point
    saga_id: str
    command: Carried | None = None


Observer = Callable[[Moment], None]
