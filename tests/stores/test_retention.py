"""Forgetting sagas that have rested for long, and what an archive keeps of them, on every store."""

import os
from pathlib import Path
from typing import Any

import pytest
from ulid import ULID

from saga_amqp import SagaNotFoundError, SagaState, purge, read_archived
from saga_amqp.contracts import EVERYTHING, Page, Query, Store
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same, shipped, there_and_back
from saga_core import (
    ChildRested,
    ChildSaga,
    CodecError,
    CompensationRequested,
    Event,
    Saga,
    StartChild,
    Step,
    StepFailed,
    StepSucceeded,
    child_saga,
    fold,
    new_saga,
    outstanding,
)
from saga_core.payload import EMPTY
from saga_core.plan import Failure

LATER = AT + 1000


class Passing:
    """A store that hands everything on, for one to step in."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


async def lived(store: Store, events: list[Event], *, at: float = AT) -> Saga:
    """Keep an order to which all this has happened."""
    saga = await store.create(order(at=at))
    for event in events:
        saga = await apply(store, saga, event)
    return saga


async def one_in_each_state(store: Store) -> dict[SagaState, Saga]:
    life = there_and_back()
    lengths = {
        SagaState.STARTED: 1,
        SagaState.COMPLETED: 3,
        SagaState.COMPENSATING: 4,
        SagaState.FAILED: 5,
        SagaState.COMPENSATED: len(life),
    }
    sagas = {state: await lived(store, life[:length]) for state, length in lengths.items()}
    assert {state: saga.state for state, saga in sagas.items()} == {state: state for state in SagaState}
    return sagas


async def left(store: Store) -> set[str]:
    return {saga.id for saga in (await store.find(EVERYTHING, limit=1000)).sagas}


def lines_of(archive: Path) -> list[bytes]:
    return archive.read_bytes().splitlines()


# What goes ---------------------------------------------------------------------------------------------------------


async def test_what_has_ended_goes_and_what_failed_or_goes_on_stays(store: Store) -> None:
    sagas = await one_in_each_state(store)
    assert await purge(store, before=LATER) == 2
    stay = {SagaState.STARTED, SagaState.COMPENSATING, SagaState.FAILED}
    assert await left(store) == {sagas[state].id for state in stay}
    for state in (SagaState.COMPLETED, SagaState.COMPENSATED):
        with pytest.raises(SagaNotFoundError):
            await store.history(sagas[state].id)
    assert await purge(store, before=LATER) == 0


async def test_what_failed_goes_when_that_is_asked_for(store: Store) -> None:
    sagas = await one_in_each_state(store)
    assert await purge(store, before=LATER, states=[SagaState.FAILED]) == 1
    assert sagas[SagaState.FAILED].id not in await left(store)


@pytest.mark.parametrize("state", [SagaState.STARTED, SagaState.COMPENSATING])
async def test_states_that_are_no_rest_are_refused_before_anything_is_done(
    state: SagaState, store: Store, tmp_path: Path
) -> None:
    saga = await lived(store, [reserved(), charged(), shipped()])
    with pytest.raises(ValueError, match=r"Only sagas at rest.*compensated, completed, failed"):
        await purge(store, before=LATER, states=[SagaState.COMPLETED, state], archive=tmp_path / "archive")
    assert await left(store) == {saga.id}
    assert not (tmp_path / "archive").exists()


async def test_what_has_not_rested_for_long_enough_stays(store: Store) -> None:
    saga = await lived(store, [reserved(), charged(), shipped()])
    assert await purge(store, before=saga.updated_at) == 0
    assert await purge(store, before=saga.updated_at + 0.001) == 1


async def test_what_moves_on_meanwhile_stays(store: Store) -> None:
    """Somebody has it undone between the look and the deletion."""
    asleep, awake = [await lived(store, [reserved(), charged(), shipped()]) for _ in range(2)]

    class Meanwhile(Passing):
        async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
            if saga_id == awake.id:
                await apply(self.inner, awake, CompensationRequested("not so fast", AT + 4))
            await self.inner.delete(saga_id, revision=revision)

    assert await purge(Meanwhile(store), before=LATER) == 1  # type: ignore[arg-type]
    assert await left(store) == {awake.id}
    assert (await store.load(awake.id)).is_compensating
    assert asleep.id != awake.id


async def test_they_go_batch_by_batch(store: Store) -> None:
    ids = [(await lived(store, [reserved(), charged(), shipped()], at=AT - number)).id for number in range(7)]
    stays = await lived(store, [reserved()])
    batches: list[int] = []

    class Counting(Passing):
        async def find(self, query: Query, *, limit: int, cursor: str | None) -> Page:
            page = await self.inner.find(query, limit=limit, cursor=cursor)
            assert len(await left(self.inner)) == len(ids) + 1 - sum(batches), "the last batch is gone by now"
            batches.append(len(page.sagas))
            return page

    assert await purge(Counting(store), before=LATER, batch=3) == 7  # type: ignore[arg-type]
    assert [number for number in batches if number] == [3, 3, 1]
    assert await left(store) == {stays.id}


# Children ----------------------------------------------------------------------------------------------------------


async def family(store: Store) -> tuple[Saga, Saga]:
    """Keep a parent that waits for its child, which has completed."""
    step: Step[Any] = Step(name="x", child=ChildSaga("inner", [Step(name="b", action="do.b")]))
    parent = await store.create(new_saga("outer", [step], id=str(ULID()), at=AT))
    (command,) = outstanding(parent)
    assert isinstance(command, StartChild)
    child = await store.create(child_saga(parent, command, AT + 1))
    return parent, await apply(store, child, StepSucceeded("b", 1, EMPTY, AT + 2))


async def test_a_child_stays_as_long_as_its_parent(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    parent, child = await family(store)
    assert await purge(store, before=LATER, archive=archive) == 0
    assert not archive.exists()
    parent = await apply(store, parent, ChildRested("x", 1, child.id, child.state, AT + 3))
    assert parent.is_completed
    assert await purge(store, before=parent.updated_at, archive=archive) == 0
    gone = await purge(store, before=LATER, archive=archive)
    gone += await purge(
        store, before=LATER, archive=archive
    )  # at the latest the next time the child goes too
    assert gone == 2
    assert await left(store) == set()
    assert [read_archived(line)[0].id for line in lines_of(archive)] == [parent.id, child.id]


async def test_a_child_whose_parent_was_deleted_goes(store: Store) -> None:
    parent, _ = await family(store)
    await store.delete(parent.id)
    assert await purge(store, before=LATER) == 1
    assert await left(store) == set()


# The archive -------------------------------------------------------------------------------------------------------


async def test_a_line_of_the_archive_folds_to_the_saga(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    completed = await lived(store, [reserved(), charged(), shipped()], at=AT)
    undone = await lived(store, there_and_back(), at=AT + 0.5)
    failed = await store.create(order(at=AT + 0.6))
    failed = await apply(store, failed, StepFailed("reserve", 1, Failure("none", "left"), AT + 1))
    assert failed.is_compensated
    assert await purge(store, before=LATER, archive=archive, batch=2) == 3
    lines = lines_of(archive)
    assert len(lines) == 3
    for line, saga in zip(lines, (completed, undone, failed), strict=True):
        same(fold(*read_archived(line)), saga)


async def test_an_archive_grows(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"what was there\n")
    ids = []
    for _ in range(2):
        ids.append((await lived(store, [reserved(), charged(), shipped()])).id)
        await purge(store, before=LATER, archive=archive)
    first, *lines = lines_of(archive)
    assert first == b"what was there"
    assert [read_archived(line)[0].id for line in lines] == ids


async def test_a_line_that_was_torn_takes_no_other_with_it(store: Store, tmp_path: Path) -> None:
    """The disk was full, or the power failed, in the midst of it; its saga is still in the store."""
    archive = tmp_path / "archive"
    archive.write_bytes(b'{"saga":{"torn')
    saga = await lived(store, [reserved(), charged(), shipped()])
    assert await purge(store, before=LATER, archive=archive) == 1
    torn, line = lines_of(archive)
    assert torn == b'{"saga":{"torn'
    same(fold(*read_archived(line)), saga)


@pytest.mark.parametrize("trouble", ["no directory", "no disk"])
async def test_nothing_is_deleted_that_could_not_be_archived(
    trouble: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = await lived(store, [reserved(), charged(), shipped()])
    archive = tmp_path / "archive"

    def fail(descriptor: int) -> None:
        raise OSError("the disk does not answer")

    with monkeypatch.context() as patch:
        if trouble == "no disk":
            patch.setattr("saga_amqp.retention.os.fsync", fail)
        else:
            archive = tmp_path / "no" / "such" / "archive"
        with pytest.raises(OSError, match=r"No such file|does not answer"):
            await purge(store, before=LATER, archive=archive)
    assert await left(store) == {saga.id}
    # Archived once more, it goes.
    archive = tmp_path / "archive"
    assert await purge(store, before=LATER, archive=archive) == 1
    assert {read_archived(line)[0].id for line in lines_of(archive)} == {saga.id}


async def test_what_is_deleted_is_on_the_disk_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga = await lived(store, [reserved(), charged(), shipped()])
    log: list[str] = []
    fsync = os.fsync

    def watch(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(tmp_path / "archive"):
            log.append("fsync")
        fsync(descriptor)

    class Watched(Passing):
        async def delete(self, saga_id: str, *, revision: int | None = None) -> None:
            log.append("delete")
            await self.inner.delete(saga_id, revision=revision)

    monkeypatch.setattr("saga_amqp.retention.os.fsync", watch)
    await purge(Watched(store), before=LATER, archive=tmp_path / "archive")  # type: ignore[arg-type]
    assert log == ["fsync", "delete"]
    assert saga.id not in await left(store)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"nonsense", b"\xff", b'{"saga":{},"events":[]}', b"[" * 100_000]
)
def test_what_is_no_line_of_an_archive_is_an_error(line: bytes) -> None:
    with pytest.raises(CodecError):
        read_archived(line)
