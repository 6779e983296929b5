"""Handlers in a module that postpones its annotations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from saga_amqp import Saga, Step

if TYPE_CHECKING:
    from elsewhere import Unseen  # type: ignore[import-not-found]


class Postponed(Struct):
    count: int


PostponedStep = Step[Postponed]


async def by_struct(saga: Saga, step: Step[Postponed]) -> dict[str, object]:
    return {"count": step.input.count}


async def by_alias(saga: Saga, step: PostponedStep) -> dict[str, object]:
    return {"count": step.input.count}


async def _with_more(factor: int, saga: Saga, step: Step[Postponed]) -> dict[str, object]:
    return {"count": step.input.count * factor}


by_partial = partial(_with_more, 2)


class Service:
    async def by_method(self, saga: Saga, step: Step[Postponed]) -> dict[str, object]:
        return {"count": step.input.count}

    async def __call__(self, saga: Saga, step: Step[Postponed]) -> dict[str, object]:
        return {"count": step.input.count}


async def unreadable(saga: Saga, step: Step[Unseen]) -> None: ...


async def plain(saga: Unseen, step: Unseen) -> None: ...
