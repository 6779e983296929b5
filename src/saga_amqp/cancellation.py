"""Cancellation apart from errors, the same on asyncio and trio."""

from typing import cast

import anyio


def without_cancellation(error: BaseException) -> BaseException | None:
    """Return what is left of an exception, or of a group, when cancellation is taken out of it."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        some, rest = cast("BaseExceptionGroup[BaseException]", error).split(cancelled)
        return rest if some is not None else error
    return None if isinstance(error, cancelled) else error
