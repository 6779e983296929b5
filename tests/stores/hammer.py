"""Many processes at one store: they commit to the same few sagas, claim from the same pile, and say what they did.

    python -m tests.stores.hammer URL BACKEND NUMBER

is one of them. `hammer` starts them all on an empty store and then looks whether what they say and what is kept
agree. It knows of no kind of store: `open_store` makes one of a URL.
"""

import json
import sys
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from ulid import ULID

from saga_amqp import ConflictError, SQLiteStore
from saga_amqp.contracts import Commit, Store
from saga_amqp.stores.postgres import PostgresStore
from saga_amqp.testing.claims import timed
from saga_amqp.testing.orders import AT, order, same
from saga_core import Options, ResumeRequested, Saga, SuspendRequested, fold, transition

PROCESSES = 8
TASKS = 3
COMMITS = 40
"""By each task."""
SHARED = 4
TIMED = 25
"""Sagas that are due, created by each process, claimed by all."""
DEADLINE = 120.0


def open_store(url: str) -> AbstractAsyncContextManager[Store]:
    """Open the store that a URL names."""
    scheme, _, rest = url.partition("://")
    match scheme:
        case "sqlite":
            return SQLiteStore(Path(rest), busy_timeout=30.0)
        case "postgresql":
            return PostgresStore(url, upgrade=True)
        case _:
            raise ValueError(f"No store for {url}")


async def hammer(url: str, backend: str) -> None:
    """Let all processes loose on an empty store, and see that nothing was lost, doubled or torn."""
    workers: list[Process] = []
    said: list[dict[str, Any]] = []
    with anyio.fail_after(DEADLINE):
        try:
            for number in range(PROCESSES):
                command = [sys.executable, "-m", __name__, url, backend, str(number)]
                workers.append(await anyio.open_process(command, stdin=PIPE, stdout=PIPE, stderr=None))
            outputs = [_output(worker) for worker in workers]
            for output in outputs:
                assert await _line(output) == b"ready"
            for worker in workers:
                assert worker.stdin is not None
                await worker.stdin.send(b"go\n")
            for worker, output in zip(workers, outputs, strict=True):
                said.append(json.loads(await _line(output)))
                assert await worker.wait() == 0
        finally:
            with anyio.CancelScope(shield=True):
                for worker in workers:
                    if worker.returncode is None:
                        worker.kill()
                    await worker.aclose()
    async with open_store(url) as store:
        await _compare(store, said)


async def _compare(store: Store, said: list[dict[str, Any]]) -> None:
    shared = said[0]["shared"]
    assert all(one["shared"] == shared for one in said), "a key did not lead everybody to the same saga"
    committed = Counter(reason for one in said for reason in one["committed"])
    assert len(committed) == committed.total() == PROCESSES * TASKS * COMMITS
    assert any(one["conflicts"] for one in said), "nobody got in the way of anybody: this has tested nothing"
    kept: Counter[str] = Counter()
    for saga_id in shared:
        saga = await store.load(saga_id)
        origin, events = await store.history(saga_id)
        assert saga.revision == len(events)
        same(fold(origin, events), saga)
        kept.update(event.reason for event in events if isinstance(event, SuspendRequested | ResumeRequested))
    assert kept == committed

    due = Counter(saga_id for one in said for saga_id in one["due"])
    unpublished = Counter(tuple(commit) for one in said for commit in one["unpublished"])
    created = [saga_id for one in said for saga_id in one["timed"]]
    due.update(await store.claim_due(AT + 1000, AT + 9000, 10_000))
    unpublished.update(await store.claim_unpublished(AT + 1000, AT + 9000, 10_000))
    assert due == Counter(created)
    assert unpublished == Counter((saga_id, 0) for saga_id in created)


def _output(process: Process) -> BufferedByteReceiveStream:
    assert process.stdout is not None
    return BufferedByteReceiveStream(process.stdout)


async def _line(output: BufferedByteReceiveStream) -> bytes:
    return await output.receive_until(b"\n", 1_000_000)


# One of the processes ---------------------------------------------------------------------------------------------


async def work(url: str, number: int) -> dict[str, Any]:
    """Be one of the processes, and return what it did."""
    timers = [timed(AT + number + one / 100) for one in range(TIMED)]
    committed: list[str] = []
    conflicts = 0
    due: list[str] = []
    unpublished: list[Commit] = []
    async with open_store(url) as store:
        shared = [
            (await store.create(order(id=str(ULID()), options=Options(key=f"shared {one}")))).id
            for one in range(SHARED)
        ]

        async def commit(task: int) -> None:
            nonlocal conflicts
            done = 0
            while done < COMMITS:
                saga = await store.load(shared[(number + task + done) % SHARED])
                reason = f"{number}/{task}/{done}"
                after, event = _turned(saga, reason)
                try:
                    await store.commit(after, event)
                except ConflictError:
                    conflicts += 1
                    continue
                committed.append(reason)
                done += 1

        async def claim() -> None:
            for saga in timers:
                await store.create(saga, unpublished=AT)
            while claimed := await store.claim_due(AT + 1000, AT + 9000, 3):
                due.extend(claimed)
            while commits := await store.claim_unpublished(AT + 1000, AT + 9000, 3):
                unpublished.extend(commits)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(claim)
            for task in range(TASKS):
                tasks.start_soon(commit, task)
    return {
        "shared": shared,
        "committed": committed,
        "conflicts": conflicts,
        "timed": [saga.id for saga in timers],
        "due": due,
        "unpublished": unpublished,
    }


def _turned(saga: Saga, reason: str) -> tuple[Saga, SuspendRequested | ResumeRequested]:
    event = ResumeRequested(reason, AT) if saga.suspended else SuspendRequested(reason, AT)
    answer = transition(saga, event)
    assert answer.ignored is None
    return answer.saga, event


def main() -> None:
    url, backend, number = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(anyio.run(work, url, int(number), backend=backend)), flush=True)


if __name__ == "__main__":
    main()
