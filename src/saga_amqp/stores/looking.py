"""Going through everything that a query finds, page by page."""

from collections.abc import AsyncGenerator

from saga_amqp.contracts import Query, Store
from saga_core import Saga
from saga_core.states import ACTIVE

RUNNING = Query(states=ACTIVE)


async def pages(store: Store, query: Query, limit: int = 100) -> AsyncGenerator[tuple[Saga, ...]]:
    """Give the sagas that a query finds, oldest first, so many at a time. Raises: StoreError."""
    cursor: str | None = None
    while True:
        page = await store.find(query, limit=limit, cursor=cursor)
        yield page.sagas
        if (cursor := page.cursor) is None:
            return


async def find_all(store: Store, query: Query) -> list[Saga]:
    """Return every saga that a query finds, oldest first. Raises: StoreError."""
    return [saga async for page in pages(store, query) for saga in page]
