"""The part of the suite of stores that is about what waits for a sweep: due timers, and unpublished commits."""

import anyio
import anyio.lowlevel

from saga_amqp.contracts import Commit, Store
from saga_amqp.testing.orders import AT, apply, charged, order, reserved, same
from saga_core import (
    Failure,
    Options,
    ResumeRequested,
    RetryPolicy,
    Saga,
    Step,
    StepFailed,
    SuspendRequested,
    TimePassed,
    fold,
    new_saga,
    wake_at,
)


def timed(at: float = AT, *, timeout: float = 10.0) -> Saga:
    """Make a saga that is due when its first step times out."""
    retry = RetryPolicy(initial_delay=5.0, jitter=0.0)
    step: Step[dict[str, object]] = Step(name="call", action="call", timeout=timeout, retry=retry)
    return new_saga("timed", [step], id=order().id, at=at)


async def due_sagas_are_claimed_longest_overdue_first(store: Store) -> None:
    """A saga is due at its `wake_at`, not before; one without is never due."""
    late, later = timed(AT), timed(AT + 1)
    for saga in (later, late, order()):
        await store.create(saga)
    assert list(await store.claim_due(AT + 9.99, AT + 60, 10)) == []
    assert list(await store.claim_due(AT + 10, AT + 60, 10)) == [late.id]
    assert list(await store.claim_due(AT + 10, AT + 60, 10)) == []
    assert list(await store.claim_due(AT + 50, AT + 100, 10)) == [later.id]
    assert list(await store.claim_due(AT + 200, AT + 300, 10)) == [late.id, later.id], (
        "they are due again when nobody has done anything"
    )


async def claims_are_limited_and_the_rest_stays(store: Store) -> None:
    """Of many that are due each claim takes so many."""
    sagas = [timed(AT + number) for number in range(5)]
    for saga in sagas:
        await store.create(saga)
    claimed = [list(await store.claim_due(AT + 100, AT + 200, 2)) for _ in range(4)]
    assert claimed == [
        [sagas[0].id, sagas[1].id],
        [sagas[2].id, sagas[3].id],
        [sagas[4].id],
        [],
    ]


async def a_commit_says_anew_when_a_saga_is_due(store: Store) -> None:
    """Also where somebody had claimed it; and a saga that waits for nothing any more is not due."""
    saga = timed()
    await store.create(saga)
    assert list(await store.claim_due(AT + 10, AT + 1000, 10)) == [saga.id]
    saga = await apply(store, saga, StepFailed("call", 1, Failure("busy", "later", True), AT + 11))
    assert wake_at(saga) == AT + 16
    assert list(await store.claim_due(AT + 15, AT + 1000, 10)) == []
    assert list(await store.claim_due(AT + 16, AT + 1000, 10)) == [saga.id]
    saga = await apply(store, saga, TimePassed(AT + 17))
    assert list(await store.claim_due(AT + 27, AT + 1000, 10)) == [saga.id]
    saga = await apply(store, saga, StepFailed("call", 2, Failure("broken", "for good"), AT + 28))
    assert saga.at_rest
    assert list(await store.claim_due(AT + 9999, AT + 99999, 10)) == []


async def a_delayed_start_is_due_at_its_time(store: Store) -> None:
    """A saga that starts later is found by its start."""
    saga = order(options=Options(start_at=AT + 3600))
    await store.create(saga)
    assert list(await store.claim_due(AT + 3599, AT + 4000, 10)) == []
    assert list(await store.claim_due(AT + 3600, AT + 4000, 10)) == [saga.id]


async def deleted_sagas_are_not_claimed(store: Store) -> None:
    """Neither their time nor their commits."""
    saga = timed()
    await store.create(saga, unpublished=AT)
    await store.delete(saga.id)
    assert list(await store.claim_due(AT + 100, AT + 200, 10)) == []
    assert list(await store.claim_unpublished(AT + 100, AT + 200, 10)) == []
    await store.mark_published([(saga.id, 0)])


async def unpublished_commits_are_claimed_until_they_are_marked(store: Store) -> None:
    """The creation and every commit has a note of its own; those that were not noted are never claimed."""
    saga = order()
    await store.create(saga, unpublished=AT)
    await store.create(order())
    saga = await apply(store, saga, reserved())
    saga = await apply(store, saga, charged(), unpublished=AT + 9)
    assert list(await store.claim_unpublished(AT + 8.9, AT, 1)) == [(saga.id, 0)]
    assert list(await store.claim_unpublished(AT - 1, AT, 10)) == []
    assert list(await store.claim_unpublished(AT, AT + 50, 10)) == [(saga.id, 0)]
    assert list(await store.claim_unpublished(AT + 10, AT + 60, 10)) == [(saga.id, 2)]
    assert list(await store.claim_unpublished(AT + 10, AT + 60, 10)) == []
    assert list(await store.claim_unpublished(AT + 60, AT + 100, 1)) == [(saga.id, 0)]
    await store.mark_published([(saga.id, 2), (saga.id, 1), (order().id, 0)])
    await store.mark_published([])
    assert list(await store.claim_unpublished(AT + 200, AT + 300, 10)) == [(saga.id, 0)]
    await store.mark_published([(saga.id, 0)])
    assert list(await store.claim_unpublished(AT + 999, AT + 1000, 10)) == []
    same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    same(fold(origin, events), saga)


async def creating_once_more_with_a_key_notes_nothing(store: Store) -> None:
    """The saga that is there is not unpublished for somebody else's sake."""
    options = Options(key="k")
    saga = order(options=options)
    await store.create(saga)
    await store.create(order(options=options), unpublished=AT)
    assert list(await store.claim_unpublished(AT + 100, AT + 200, 10)) == []


async def many_who_claim_share_the_work(store: Store) -> None:
    """Whatever is claimed at once, by how many, each gets others, and together they get all."""
    sagas = [timed(AT + number / 100) for number in range(40)]
    for saga in sagas:
        await store.create(saga, unpublished=AT)
    due: list[str] = []
    left: list[Commit] = []

    async def sweep() -> None:
        while claimed := await store.claim_due(AT + 100, AT + 200, 7):
            due.extend(claimed)
            await anyio.lowlevel.checkpoint()
        while commits := await store.claim_unpublished(AT + 100, AT + 200, 7):
            left.extend(commits)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(sweep)
    assert sorted(due) == sorted(saga.id for saga in sagas)
    assert sorted(left) == sorted((saga.id, 0) for saga in sagas)


async def a_long_history_is_kept_whole(store: Store) -> None:
    """Hundreds of commits to a saga of few steps: the saga, its history and its next commit are as they should be."""
    saga = order()
    await store.create(saga)
    saga = await apply(store, saga, reserved())
    for number in range(150):
        saga = await apply(store, saga, SuspendRequested("a break", AT + number))
        saga = await apply(store, saga, ResumeRequested("over", AT + number + 0.5))
        if number % 25 == 0:
            same(await store.load(saga.id), saga)
    same(await store.load(saga.id), saga)
    origin, events = await store.history(saga.id)
    assert len(events) == saga.revision == 301
    same(fold(origin, events), saga)
    await apply(store, saga, charged())


async def a_hint_wakes_who_waits_for_one(store: Store) -> None:
    """All of them; and waiting can be cancelled."""
    woken: list[int] = []

    async def wait(number: int) -> None:
        await store.hinted()
        woken.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        store.hint()
    assert sorted(woken) == [0, 1, 2]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.hinted()
    assert scope.cancelled_caught


CLAIMS = (
    due_sagas_are_claimed_longest_overdue_first,
    claims_are_limited_and_the_rest_stays,
    a_commit_says_anew_when_a_saga_is_due,
    a_delayed_start_is_due_at_its_time,
    deleted_sagas_are_not_claimed,
    unpublished_commits_are_claimed_until_they_are_marked,
    creating_once_more_with_a_key_notes_nothing,
    many_who_claim_share_the_work,
    a_long_history_is_kept_whole,
    a_hint_wakes_who_waits_for_one,
)
