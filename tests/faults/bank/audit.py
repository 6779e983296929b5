"""The auditor: when everything is at rest, the store, the ledger and the broker have to agree to the cent."""

import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable

import aiormq
import anyio
from msgspec import Struct

from saga_amqp import Config, Query, Saga
from saga_amqp.contracts import Store
from saga_amqp.stores.looking import find_all
from saga_core import encode_saga, fold
from saga_core.states import ACTIVE, RESTING
from tests.stores.hammer import open_store

from .ledger import Ledger
from .setting import Setting
from .transfers import ACCOUNTS, OPENING, number_of, transfer

POLL_INTERVAL = 0.1


class Findings(Struct):
    """What the auditor has counted, and what is wrong."""

    outcomes: Counter[str]
    entries: int = 0
    events: int = 0
    balances: int = 0
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
    names = Config()
    connection = await aiormq.connect(setting.amqp)
    try:
        channel = await connection.channel()
        counts: dict[str, int] = {}
        for queue in (names.step_queue, names.compensate_queue, names.dead_letter_queue):
            counts[queue] = (await channel.queue_declare(queue, passive=True)).message_count or 0
        return counts
    finally:
        await connection.close()


async def under_way(setting: Setting) -> int:
    """Return how many sagas are under way."""
    async with open_store(setting.store) as store:
        return await _active(store)


async def _active(store: Store) -> int:
    count = await store.count()
    return sum(count[state] for state in ACTIVE)


async def audit(setting: Setting) -> Findings:
    """Compare store, ledger and queues with each other, and with what was to become of each transfer."""
    findings = Findings(Counter())
    ledger = Ledger(setting.ledger)
    async with open_store(setting.store) as store:
        sagas = await find_all(store, Query())
        findings.outcomes.update(saga.state.value for saga in sagas)
        _count(findings, setting, sagas)
        for saga in sagas:
            await _look_into(findings, store, saga)
    by_saga: defaultdict[str, list[tuple[str, str, int | None, int]]] = defaultdict(list)
    for saga_id, *entry in ledger.entries():
        step, operation, account, cents = entry
        by_saga[saga_id].append((step, operation, account, cents))
        findings.entries += 1
    balances = [OPENING] * ACCOUNTS
    for saga in sagas:
        planned = transfer(setting.seed, number_of(saga))
        where = f"saga {saga.id} (transfer {planned.number}, {saga.state})"
        states = [step.state for step in saga.steps]
        findings.check(saga.state is planned.outcome, f"{where} should be {planned.outcome}")
        findings.check(states == planned.ends, f"{where}: its steps are {states}, not {planned.ends}")
        # This one comparison finds what ran twice, what was undone and never done, and what came in the wrong order.
        found = by_saga.pop(saga.id, [])
        findings.check(found == planned.entries, f"{where}: the ledger has {found}, not {planned.entries}")
        if saga.is_completed:
            balances[planned.source] -= planned.cents
            balances[planned.target] += planned.cents
    findings.check(not by_saga, f"the ledger knows sagas that the store does not: {list(by_saga)}")
    actual = ledger.balances()
    findings.balances = sum(actual)
    findings.check(sum(actual) == ACCOUNTS * OPENING, f"the bank has {sum(actual)} cents")
    findings.check(actual == balances, f"balances are {actual}, and the sagas' states say {balances}")
    for queue, messages in (await ready(setting)).items():
        findings.check(messages == 0, f"queue {queue} has {messages} messages in the end")
    return findings


def _count(findings: Findings, setting: Setting, sagas: list[Saga]) -> None:
    numbers = Counter(number_of(saga) for saga in sagas)
    twice = [number for number, count in numbers.items() if count > 1]
    missing = set(range(setting.sagas)) - set(numbers)
    findings.check(not twice, f"transfers that were started twice: {twice}")
    findings.check(not missing, f"transfers that were not started: {sorted(missing)}")
    findings.check(len(sagas) == setting.sagas, f"{len(sagas)} sagas for {setting.sagas} keys")


async def _look_into(findings: Findings, store: Store, saga: Saga) -> None:
    """Fold a saga's history, which has to give what is stored, bit for bit."""
    stored = await store.load(saga.id)
    origin, events = await store.history(saga.id)
    findings.events += len(events)
    findings.check(
        encode_saga(fold(origin, events)) == encode_saga(stored),
        f"saga {saga.id}: its history does not lead to what is stored",
    )
    findings.check(stored.revision == len(events), f"saga {saga.id}: {len(events)} events, {stored.revision}")
