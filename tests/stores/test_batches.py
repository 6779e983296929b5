"""Group commit: what is done together, what is not done at all, and who learns of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from threading import Event

import anyio
import anyio.lowlevel
import pytest

from saga_amqp import StoreError
from saga_amqp.stores.batches import MOST_AT_ONCE, Batches, in_a_thread


class Work:
    """Doubles numbers while the gate is open, notes which came together, refuses 13; 666 spoils its whole batch."""

    def __init__(self) -> None:
        self.gate = Event()
        self.gate.set()
        self.begun = Event()
        self.done: list[list[int]] = []

    def __call__(self, jobs: Sequence[int]) -> Sequence[int | Exception]:
        self.begun.set()
        assert self.gate.wait(20)
        self.done.append(list(jobs))
        if 666 in jobs:
            raise StoreError("spoilt") from ZeroDivisionError()
        return [StoreError("unlucky") if job == 13 else 2 * job for job in jobs]

    async def until_begun(self) -> None:
        while not self.begun.is_set():
            await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def running(batches: Batches[int, int]) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        batches.open()
        tasks.start_soon(batches.run)
        try:
            yield
        finally:
            batches.close()  # until then nothing, not even cancellation, ends it


async def test_jobs_that_come_meanwhile_are_done_together() -> None:
    work, results = Work(), dict[int, int]()
    batches = Batches(in_a_thread(work))

    async def do(job: int) -> None:
        results[job] = await batches.do(job)

    expected = range(1000, 1000 + 1 + MOST_AT_ONCE + 10)
    async with running(batches), anyio.create_task_group() as jobs:
        work.gate.clear()
        jobs.start_soon(do, expected[0])
        await work.until_begun()
        for job in expected[1:]:
            jobs.start_soon(do, job)
        await anyio.wait_all_tasks_blocked()
        work.gate.set()
    assert [len(batch) for batch in work.done] == [1, MOST_AT_ONCE, 10]
    assert results == {job: 2 * job for job in expected}


async def test_a_job_that_fails_alone_fails_alone_and_work_that_fails_fails_all() -> None:
    work, told = Work(), dict[int, StoreError]()
    batches = Batches(in_a_thread(work))

    async def fail(job: int) -> None:
        with pytest.raises(StoreError) as caught:
            await batches.do(job)
        told[job] = caught.value

    async def gather(*failing: int) -> None:
        work.begun.clear()
        work.gate.clear()
        async with anyio.create_task_group() as jobs:
            jobs.start_soon(batches.do, 0)
            await work.until_begun()
            for job in failing:
                jobs.start_soon(fail, job)
            if 666 not in failing:
                jobs.start_soon(batches.do, 1)
            await anyio.wait_all_tasks_blocked()
            work.gate.set()

    async with running(batches):
        await gather(13)
        assert str(told[13]) == "unlucky"
        await gather(666, 2, 3)
        assert {str(told[job]) for job in (666, 2, 3)} == {"spoilt"}
        assert len({id(told[job]) for job in (666, 2, 3)}) == 3
        assert all(isinstance(told[job].__cause__, ZeroDivisionError) for job in (666, 2, 3))
        assert await batches.do(4) == 8


async def test_a_cancelled_job_is_not_begun_but_one_that_is_begun_is_ended() -> None:
    work, handed_on = Work(), list[int]()
    batches = Batches(in_a_thread(work))
    settled = False

    async def settle() -> None:
        nonlocal settled
        await batches.settled()
        settled = True

    async with anyio.create_task_group() as tasks, running(batches):
        await batches.settled()
        work.gate.clear()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as jobs:
                jobs.start_soon(batches.do, 1, handed_on.append)
                await work.until_begun()
                jobs.start_soon(batches.do, 2, handed_on.append)
                await anyio.wait_all_tasks_blocked()
                await batches.settled()  # whoever asked still waits for the answer
                scope.cancel()
        assert scope.cancelled_caught
        tasks.start_soon(settle)
        await anyio.wait_all_tasks_blocked()
        assert not settled
        work.gate.set()
        assert await batches.do(3) == 6
        assert settled
    assert work.done == [[1], [3]]
    assert handed_on == [2]


async def test_what_waits_is_done_before_the_end_and_nothing_is_taken_after_it() -> None:
    work, results = Work(), list[int]()
    batches = Batches(in_a_thread(work))

    async def do(job: int) -> None:
        results.append(await batches.do(job))

    with pytest.raises(StoreError, match="not open"):
        await batches.do(1)
    async with anyio.create_task_group() as jobs:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                batches.open()
                tasks.start_soon(batches.run)
                work.gate.clear()
                jobs.start_soon(do, 1)
                await work.until_begun()
                jobs.start_soon(do, 2)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                batches.close()
                with pytest.raises(StoreError, match="not open"):
                    await batches.do(3)
                work.gate.set()
    assert results == [2, 4]
