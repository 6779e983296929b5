"""The auditor: when everything is at rest, the store, the ledger and the broker have to agree to the cent."""

import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiormq
import aiormq.abc
import anyio
import msgspec
from msgspec import Struct

from saga_amqp import Saga
from saga_amqp.contracts import EVERYTHING, Store
from saga_amqp.stores.looking import RUNNING, find_all
from saga_core import encode_saga, fold
from saga_core.states import ACTIVE, RESTING
from tests.stores.hammer import open_store

from .ledger import Entry, Ledger
from .setting import Setting, config
from .transfers import ACCOUNTS, OPENING, number_of, transfer

POLL_INTERVAL = 0.1
MOST_SHOWN = 20


class Findings(Struct):
    """What the auditor has counted, and what is wrong."""

    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    entries: int = 0
    events: int = 0
    cents: int = 0
    checked: int = 0
    wrong: list[str] = []

    def check(self, holds: bool, what: str) -> None:
        """Note one more thing that was looked at, and what is wrong with it if it does not hold."""
        self.checked += 1
        if not holds:
            self.wrong.append(what)


class Restless(Exception):
    """Not everything has come to rest in time."""


async def come_to_rest(setting: Setting, seconds: float) -> None:
    """Wait until every saga rests and every message is gone. Raises: Restless."""
    async with open_store(setting.store) as store:

        async def resting() -> str:
            count = await store.count()
            resting = sum(count[state] for state in RESTING)
            return "" if resting >= setting.sagas else f"sagas by state: {dict(count)}"

        async def called_back() -> str:
            active = await _active(store)
            return f"{active} sagas are active" if active else ""

        async def gone() -> str:
            waiting = await ready(setting)
            return f"messages by queue: {waiting}" if any(waiting.values()) else ""

        deadline = time.monotonic() + seconds
        for still in (resting, called_back, gone):
            await _until_nothing(still, deadline)


async def _until_nothing(still: Callable[[], Awaitable[str]], deadline: float) -> None:
    while what := await still():
        if time.monotonic() > deadline:
            raise Restless(what)
        await anyio.sleep(POLL_INTERVAL)


async def ready(setting: Setting) -> dict[str, int]:
    """Ask the broker how many messages are ready in each queue."""
    async with _channel(setting) as channel:
        return {
            queue: (await channel.queue_declare(queue, passive=True)).message_count or 0
            for queue in _queues(setting)
        }


async def remove_queues(setting: Setting) -> None:
    """Remove what the trial has left on the broker."""
    async with _channel(setting) as channel:
        for queue in _queues(setting):
            await channel.queue_delete(queue)
        for exchange in config(setting).topology().exchanges:
            await channel.exchange_delete(exchange.name)


def _queues(setting: Setting) -> list[str]:
    return [queue.name for queue in config(setting).topology().queues]


@asynccontextmanager
async def _channel(setting: Setting) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    connection = await aiormq.connect(setting.amqp)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def under_way(setting: Setting) -> int:
    """Return how many sagas are under way."""
    async with open_store(setting.store) as store:
        return await _active(store)


async def unfinished(setting: Setting) -> str:
    """Describe what has not come to rest."""
    lines: list[str] = []
    async with open_store(setting.store) as store:
        for saga in (await find_all(store, RUNNING))[:MOST_SHOWN]:
            _, events = await store.history(saga.id)
            progress = [saga.progress_of(step.name) for step in saga.steps]
            lines += [f"{saga.id} {saga.state}, revision {saga.revision}: {progress}", f"    {events}"]
    return "\n".join([*lines, f"ready: {await ready(setting)}"])


async def _active(store: Store) -> int:
    count = await store.count()
    return sum(count[state] for state in ACTIVE)


async def audit(setting: Setting) -> Findings:
    """Compare store, ledger and queues with each other, and with what was to become of each transfer."""
    findings = await compare(setting)
    for queue, messages in (await ready(setting)).items():
        findings.check(messages == 0, f"queue {queue} has {messages} messages in the end")
    return findings


async def compare(setting: Setting) -> Findings:
    """Compare store and ledger with each other, and with what was to become of each transfer."""
    findings = Findings()
    async with open_store(setting.store) as store:
        sagas = await find_all(store, EVERYTHING)
        for saga in sagas:
            await _compare_history(findings, store, saga)
    _compare_numbers(findings, setting, sagas)
    _compare_ledger(findings, setting, sagas)
    return findings


def _compare_numbers(findings: Findings, setting: Setting, sagas: list[Saga]) -> None:
    findings.outcomes.update(saga.state.value for saga in sagas)
    numbers = Counter(number_of(saga) for saga in sagas)
    twice = [number for number, count in numbers.items() if count > 1]
    missing = set(range(setting.sagas)) - set(numbers)
    findings.check(not twice, f"transfers that were started twice: {twice}")
    findings.check(not missing, f"transfers that were not started: {sorted(missing)}")
    findings.check(len(sagas) == setting.sagas, f"{len(sagas)} sagas for {setting.sagas} keys")


async def _compare_history(findings: Findings, store: Store, saga: Saga) -> None:
    """Fold a saga's history, which has to give what is stored, bit for bit."""
    stored = await store.load(saga.id)
    origin, events = await store.history(saga.id)
    findings.events += len(events)
    same = encode_saga(fold(origin, events)) == encode_saga(stored)
    findings.check(same, f"saga {saga.id}: its history does not lead to what is stored")
    findings.check(stored.revision == len(events), f"saga {saga.id}: {len(events)} events, {stored.revision}")


def _compare_ledger(findings: Findings, setting: Setting, sagas: list[Saga]) -> None:
    ledger = Ledger(setting.ledger)
    entries: defaultdict[str, list[Entry]] = defaultdict(list)
    for saga_id, entry in ledger.entries():
        entries[saga_id].append(entry)
        findings.entries += 1
    expected = [OPENING] * ACCOUNTS
    for saga in sagas:
        planned = transfer(setting.seed, number_of(saga))
        where = f"saga {saga.id} (transfer {planned.number}, {saga.state})"
        findings.check(saga.state is planned.outcome, f"{where} should be {planned.outcome}")
        states = [step.state for step in saga.steps]
        findings.check(states == planned.ends, f"{where}: its steps are {states}, not {planned.ends}")
        # This finds what took effect twice, what was undone and never done, and what came in the wrong order.
        found = entries.pop(saga.id, [])
        findings.check(found == planned.entries, f"{where}: the ledger has {found}, not {planned.entries}")
        if saga.is_completed:
            expected[planned.source] -= planned.cents
            expected[planned.target] += planned.cents
    findings.check(not entries, f"the ledger has entries of sagas that there are not: {dict(entries)}")
    balances = ledger.balances()
    findings.cents = sum(balances)
    findings.check(findings.cents == ACCOUNTS * OPENING, f"the bank has {findings.cents} cents")
    findings.check(balances == expected, f"the balances are {balances}; by the sagas' states {expected}")
