"""Group commit: jobs that come while others are being done are done together, in one transaction.

While one batch is being written the next one gathers; alone, a job waits for nobody. So nothing is delayed to gather
more, but for a few turns of the event loop, and the busier a store is, the more commits share the price of one.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio import CapacityLimiter

from saga_amqp.errors import StoreError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

Work = Callable[[Sequence[JobT]], Awaitable[Sequence[ResultT | Exception]]]

MOST_AT_ONCE = 500
"""Jobs in a batch: so that one transaction stays short."""


class Batches(Generic[JobT, ResultT]):
    """Hands jobs on, many at a time, one call after the other.

    `work` returns an answer for each job, in order: a result, or the exception that this job alone ends with. What it
    raises ends all of them. One that blocks is given as `in_a_thread(work)`. A batch waits for more jobs for so many
    `turns` of the event loop, as long as each turn brings some: what the broker has just delivered makes jobs a turn or
    two later.
    """

    def __init__(self, work: Work[JobT, ResultT], turns: int = 0) -> None:
        self._work = work
        self._turns = turns
        self._gathering: deque[_Batch[JobT, ResultT]] = deque()
        self._under_way: _Batch[JobT, ResultT] | None = None
        self._wanted = anyio.Event()
        self._open = False

    async def do(self, job: JobT, then: Callable[[ResultT], None] | None = None) -> ResultT:
        """Have a job done and return its result. Cancelled, it may have been done or not.

        `then` is called with the result, in the event loop, whether or not somebody still waits for it.

        Raises: what `work` says; StoreError while it is not running.
        """
        batch, ticket = self._add(job, then)
        try:
            await batch.done.wait()
        except BaseException:
            ticket.abandoned = batch.abandoned = True
            raise
        answer = ticket.answer
        if isinstance(answer, Exception):
            try:
                raise answer
            finally:
                del answer, ticket, batch  # they lead to the exception, which leads here
        return answer  # type: ignore[return-value]

    def post(self, job: JobT) -> None:
        """Have a job done without waiting for it. Nobody learns what becomes of it; if it is closed, nothing."""
        if self._open:
            self._add(job, None)

    async def settled(self) -> None:
        """Wait while jobs are being done that nobody waits for any more: only then can be known what they have done."""
        while self._under_way is not None and self._under_way.abandoned:
            await self._under_way.done.wait()

    def open(self) -> None:
        """Take jobs from now on; `run` is to be started soon. Whoever waited for that could not be cancelled."""
        self._open = True

    async def run(self) -> None:
        """Do jobs until `close`. Shielded from cancellation: whoever waits for a job can rely on an answer."""
        with anyio.CancelScope(shield=True):
            while self._open or self._gathering:
                if not self._gathering:
                    self._wanted = anyio.Event()
                    await self._wanted.wait()
                    continue
                await self._all_aboard(self._gathering[0])
                self._under_way = batch = self._gathering.popleft()
                batch.tickets = [ticket for ticket in batch.tickets if not ticket.abandoned]
                batch.abandoned = False
                if batch.tickets:
                    await self._do_all(batch)
                self._under_way = None

    async def _all_aboard(self, batch: "_Batch[JobT, ResultT]") -> None:
        before = 0
        for _ in range(self._turns):
            if len(batch.tickets) == before:
                break
            before = len(batch.tickets)
            await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let `run` end when what is waiting is done."""
        self._open = False
        self._wanted.set()

    def _add(
        self, job: JobT, then: Callable[[ResultT], None] | None
    ) -> "tuple[_Batch[JobT, ResultT], _Ticket[JobT, ResultT]]":
        if not self._open:
            raise StoreError("The store is not open; use it inside `async with`")
        if not self._gathering or len(self._gathering[-1].tickets) == MOST_AT_ONCE:
            self._gathering.append(_Batch())
        batch, ticket = self._gathering[-1], _Ticket(job, then)
        batch.tickets.append(ticket)
        self._wanted.set()
        return batch, ticket

    async def _do_all(self, batch: "_Batch[JobT, ResultT]") -> None:
        answers: Sequence[ResultT | Exception]
        try:
            answers = await self._work([ticket.job for ticket in batch.tickets])
        except Exception as error:
            # Each is raised somewhere else, with a traceback of its own.
            answers = [_copy(error) for _ in batch.tickets]
        for ticket, answer in zip(batch.tickets, answers, strict=True):
            ticket.answer = answer
            if ticket.then is not None and not isinstance(answer, Exception):
                ticket.then(answer)
        batch.done.set()


def in_a_thread(work: Callable[[Sequence[JobT]], Sequence[ResultT | Exception]]) -> Work[JobT, ResultT]:
    """Have work that blocks done in a worker thread, whoever else uses them."""
    limiter: CapacityLimiter | None = None  # made inside, where there is an event loop

    async def do(jobs: Sequence[JobT]) -> Sequence[ResultT | Exception]:
        nonlocal limiter
        limiter = limiter or CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, jobs, limiter=limiter)

    return do


class _Batch(Generic[JobT, ResultT]):
    """Jobs that are done together, and so are all done at the same moment."""

    __slots__ = ("abandoned", "done", "tickets")

    def __init__(self) -> None:
        self.tickets: list[_Ticket[JobT, ResultT]] = []
        self.done = anyio.Event()
        self.abandoned = False


class _Ticket(Generic[JobT, ResultT]):
    __slots__ = ("abandoned", "answer", "job", "then")

    def __init__(self, job: JobT, then: Callable[[ResultT], None] | None) -> None:
        self.job = job
        self.then = then
        self.answer: ResultT | Exception | None = None
        self.abandoned = False


def _copy(error: Exception) -> Exception:
    one = copy(error)
    one.__cause__ = error.__cause__
    return one
