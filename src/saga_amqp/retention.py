"""Forgetting sagas that have rested for long, and keeping them as JSON lines where somebody wants to."""

import os
from collections.abc import Collection, Sequence
from contextlib import aclosing
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from saga_amqp.contracts import Query, Store
from saga_amqp.errors import ConflictError, SagaNotFoundError
from saga_amqp.stores.looking import pages
from saga_core import (
    CodecError,
    Event,
    Saga,
    SagaState,
    decode_event,
    decode_saga,
    encode_event,
    encode_saga,
)
from saga_core.states import RESTING

ENDED = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED})
"""What is purged unless told otherwise. A failed saga is left for a person."""


async def purge(
    store: Store,
    *,
    before: float,
    states: Collection[SagaState] = ENDED,
    archive: Path | None = None,
    batch: int = 100,
) -> int:
    """Delete the sagas that have rested since before a moment, and return how many; each batch in one go.

    `before` is in seconds since 1970, UTC. With `archive` each is first appended to that file, a line of JSON, which
    `read_archived` reads; one that was archived when the process died is archived again the next time. A child
    saga stays as long as its parent, which may still have it undone.

    Raises: ValueError for states that are no rest; StoreError, OSError. Cancelled, some are deleted and some not.
    """
    if not RESTING.issuperset(states):
        raise ValueError(
            f"Only sagas at rest can be purged, so states must be of {', '.join(sorted(RESTING))}"
        )
    deleted = 0
    query = Query(states=frozenset(states), updated_before=before)
    async with aclosing(pages(store, query, batch)) as found:
        async for sagas in found:
            going = [saga for saga in sagas if not await _is_needed(store, saga)]
            if archive is not None and going:
                lines = [_line(*await store.history(saga.id)) for saga in going]
                await anyio.to_thread.run_sync(_append, archive, lines)
            deleted += await _delete(store, going)
    return deleted


def read_archived(line: bytes) -> tuple[Saga, list[Event]]:
    """Read one line of an archive: the saga as created, and its events.

    Raises: CodecError.
    """
    try:
        archived = msgspec.json.decode(line, type=_Archived)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CodecError(f"This is no saga of an archive: {error}") from error
    return decode_saga(archived.saga), [decode_event(event) for event in archived.events]


class _Archived(msgspec.Struct):
    saga: msgspec.Raw
    events: list[msgspec.Raw]


def _line(origin: Saga, events: Sequence[Event]) -> bytes:
    raw = [msgspec.Raw(encode_event(event)) for event in events]
    return msgspec.json.encode(_Archived(msgspec.Raw(encode_saga(origin)), raw))


def _append(archive: Path, lines: Sequence[bytes]) -> None:
    """Write lines down so that they outlive a loss of power: only then what they tell may be deleted."""
    with archive.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if (
                file.read(1) != b"\n"
            ):  # the last time was cut short; its half line is not to spoil the next one
                file.write(b"\n")
        file.writelines(line + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


async def _is_needed(store: Store, saga: Saga) -> bool:
    if saga.plan.parent is None:
        return False
    try:
        await store.load(saga.plan.parent.saga)
    except SagaNotFoundError:
        return False
    return True


async def _delete(store: Store, sagas: Sequence[Saga]) -> int:
    deleted = 0

    async def delete(saga: Saga) -> None:
        nonlocal deleted
        try:
            await store.delete(saga.id, revision=saga.revision)
        except ConflictError:
            return  # it goes on: somebody has it undone
        deleted += 1

    async with anyio.create_task_group() as tasks:
        for saga in sagas:
            tasks.start_soon(delete, saga)
    return deleted
