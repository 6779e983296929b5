"""Cancellation apart from errors, the same on asyncio and trio."""

from typing import cast

import anyio


def without_cancellation(error: BaseException) -> BaseException | None:
    """Return what is left of an exception, or of a group, when cancellation is taken out of it."""
    cancelled = anyio.get_cancelled_exc_class()
    if not isinstance(error, BaseExceptionGroup):
        return None if isinstance(error, cancelled) else error
    group = cast("BaseExceptionGroup[BaseException]", error)
    some, rest = group.split(cancelled)
    return group if some is None else rest
