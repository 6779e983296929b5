"""Group commit: jobs that come while others are being done are done together, in one transaction, in a thread.

While one batch is being written the next one gathers; alone, a job waits for nobody. So nothing is delayed to
gather more, and the busier a store is, the more commits share the price of one.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, TypeVar

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.abc import TaskStatus

from saga_amqp.errors import StoreError

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

MOST_AT_ONCE = 500
"""Jobs in a batch: so that one transaction stays short."""


class Batches(Generic[JobT, ResultT]):
    """Hands jobs to a function that blocks, many at a time, one call after the other.

    `work` runs in a worker thread and returns an answer for each job, in order: a result, or the exception that this
    job alone ends with. What it raises ends all of them.
    """

    def __init__(self, work: Callable[[Sequence[JobT]], Sequence[ResultT | Exception]]) -> None:
        self._work = work
        self._waiting: list[_Ticket[JobT, ResultT]] = []
        self._wanted = anyio.Event()
        self._open = False
        self._in_doubt: anyio.Event | None = None

    async def do(self, job: JobT, then: Callable[[ResultT], None] | None = None) -> ResultT:
        """Have a job done and return its result. Cancelled, it may have been done or not.

        `then` is called with the result, in the event loop, whether or not somebody still waits for it.

        Raises: what `work` says; StoreError while it is not running.
        """
        if not self._open:
            raise StoreError("The store is not open; use it inside `async with`")
        ticket = _Ticket(job, then)
        self._waiting.append(ticket)
        self._wanted.set()
        try:
            await ticket.done.wait()
        except BaseException:
            ticket.abandoned = True
            if ticket.begun and not ticket.done.is_set() and self._in_doubt is None:
                self._in_doubt = anyio.Event()
            raise
        if isinstance(ticket.answer, Exception):
            raise ticket.answer
        return ticket.answer  # type: ignore[return-value]

    async def settled(self) -> None:
        """Wait while jobs are being done that nobody waits for any more: only then can be known what they have done."""
        while self._in_doubt is not None:
            await self._in_doubt.wait()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do jobs until `close`. Shielded from cancellation: whoever waits for a job can rely on an answer."""
        limiter = CapacityLimiter(1)
        with anyio.CancelScope(shield=True):
            self._open = True
            task_status.started()
            while self._open or self._waiting:
                if not self._waiting:
                    self._wanted = anyio.Event()
                    await self._wanted.wait()
                    continue
                tickets = [one for one in self._waiting[:MOST_AT_ONCE] if not one.abandoned]
                del self._waiting[:MOST_AT_ONCE]
                if tickets:
                    await self._do_all(tickets, limiter)

    def close(self) -> None:
        """Let `run` end when what is waiting is done."""
        self._open = False
        self._wanted.set()

    async def _do_all(self, tickets: "Sequence[_Ticket[JobT, ResultT]]", limiter: CapacityLimiter) -> None:
        answers: Sequence[ResultT | Exception]
        for ticket in tickets:
            ticket.begun = True
        try:
            answers = await anyio.to_thread.run_sync(
                self._work, [ticket.job for ticket in tickets], limiter=limiter
            )
        except Exception as error:
            answers = [
                copy(error) for _ in tickets
            ]  # each is raised somewhere else, with a traceback of its own
        for ticket, answer in zip(tickets, answers, strict=True):
            ticket.answer = answer
            if ticket.then is not None and not isinstance(answer, Exception):
                ticket.then(answer)
            ticket.done.set()
        if self._in_doubt is not None:
            self._in_doubt.set()
            self._in_doubt = None


class _Ticket(Generic[JobT, ResultT]):
    __slots__ = ("abandoned", "answer", "begun", "done", "job", "then")

    def __init__(self, job: JobT, then: Callable[[ResultT], None] | None) -> None:
        self.job = job
        self.then = then
        self.answer: ResultT | Exception | None = None
        self.done = anyio.Event()
        self.begun = False
        self.abandoned = False
