"""What a saga as a whole can be told, and how numbers of seconds are checked."""

from typing import Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from saga_core.errors import DefinitionError


def check_seconds(where: str, **given: float | None) -> None:
    """Raise DefinitionError unless each value is None or a positive, finite number of seconds."""
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            raise DefinitionError(f"{where}: {name} must be a positive number of seconds, not {value}")


def seconds(value: float | None) -> float | None:
    """Return a number of seconds as it would be read back: a whole number becomes a float."""
    return None if value is None else float(value)


LONGEST_KEY = 255
"""Bytes."""


class Options(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a saga as a whole can be told.

    `start_at`, seconds since 1970, UTC, delays its start; `timeout`, seconds from then, bounds it up to its pivot.
    `compensation_order` says whether independent compensations run side by side. `priority` (0 to 9) and `tags`
    are carried along for brokers and people. `key` makes starting idempotent: there is one saga of a name and a key,
    and who starts it again gets that one.
    """

    start_at: float | None = None
    timeout: float | None = None
    compensation_order: Literal["parallel", "sequential"] = "parallel"
    priority: int = 0
    tags: dict[str, str] = {}
    key: str | None = None

    def __post_init__(self) -> None:
        """Raise DefinitionError where the numbers make no sense."""
        check_seconds("The options of a saga", timeout=self.timeout, start_at=self.start_at)
        if not 0 <= self.priority <= 9:
            raise DefinitionError(f"The priority of a saga must be from 0 to 9, not {self.priority}")
        if self.key is not None and not 0 < len(self.key.encode(errors="replace")) <= LONGEST_KEY:
            raise DefinitionError(
                f"The key of a saga must have 1 to {LONGEST_KEY} bytes, not {self.key[:40]!r}"
            )
        for name in ("start_at", "timeout"):
            force_setattr(self, name, seconds(getattr(self, name)))


NO_OPTIONS = Options()
