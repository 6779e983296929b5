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

Answers = Sequence["ResultT | Exception"]


class Batches(Generic[JobT, ResultT]):
    """Hands jobs to a function that blocks, many at a time, one call after the other.

    `work` runs in a worker thread and returns an answer for each job, in order: a result, or the exception that this
    job alone ends with. What it raises ends all of them.
    """

    def __init__(self, work: Callable[[Sequence[JobT]], Answers[ResultT]]) -> None:
        self._work = work
        self._waiting: list[_Ticket[JobT, ResultT]] = []
        self._wanted = anyio.Event()
        self._closing = False

    async def do(self, job: JobT) -> ResultT:
        """Have a job done and return its result. Cancelled, it may have been done or not.

        Raises: what `work` says; StoreError when it is closed.
        """
        if self._closing:
            raise StoreError("The store is closed; use it inside `async with`")
        ticket = _Ticket[JobT, ResultT](job)
        self._waiting.append(ticket)
        self._wanted.set()
        try:
            await ticket.done.wait()
        except BaseException:
            ticket.abandoned = True
            raise
        if isinstance(ticket.answer, Exception):
            raise ticket.answer
        return ticket.answer  # type: ignore[return-value]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do jobs until `close`. Shielded from cancellation: whoever waits for a job can rely on an answer."""
        limiter = CapacityLimiter(1)
        with anyio.CancelScope(shield=True):
            task_status.started()
            while not self._closing or self._waiting:
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
        self._closing = True
        self._wanted.set()

    async def _do_all(self, tickets: "Sequence[_Ticket[JobT, ResultT]]", limiter: CapacityLimiter) -> None:
        answers: Answers[ResultT]
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
            ticket.done.set()


class _Ticket(Generic[JobT, ResultT]):
    __slots__ = ("abandoned", "answer", "done", "job")

    def __init__(self, job: JobT) -> None:
        self.job = job
        self.answer: ResultT | Exception | None = None
        self.done = anyio.Event()
        self.abandoned = False
