"""What must hold in a world: at every commit, every acknowledgement, every call of a handler, and at rest."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

import trio

from saga_amqp.contracts import Commit
from saga_amqp.poison import REASON, Reason
from saga_amqp.testing.world.broker import Broker, Held
from saga_amqp.testing.world.faults import Faults
from saga_amqp.testing.world.trace import Trace
from saga_amqp.testing.world.vault import Vault, at_once
from saga_core import (
    ChildRested,
    Command,
    CompensateChild,
    CompensationRequested,
    Event,
    Reply,
    Report,
    Saga,
    SkipRequested,
    StartChild,
    StepResolved,
    StepState,
    awaits,
    caused_by,
    consequences,
    decode_command,
    encode_command,
    fold,
    outstanding,
    transition,
)
from saga_core.testing.invariants import (
    Shape,
    check_children,
    check_state,
    check_stored,
    check_transition,
    shape_of,
)

DEAD_LETTERS = "saga.dead-letter"

LATE = 20.0
"""Seconds for which a process may act on what it has read. More than any store is slow, and than a wait for a turn."""


class Checker:
    """Looks at everything, and reports the first thing that is wrong."""

    def __init__(
        self,
        vault: Vault,
        broker: Broker,
        faults: Faults,
        trace: Trace,
        fail: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._vault = vault
        self._broker = broker
        self._faults = faults
        self._trace = trace
        self._fail = fail
        self._clock = clock
        self._shapes: dict[str, Shape] = {}
        self._versions: dict[str, list[tuple[float, Saga]]] = {}
        self._runs: Counter[Command] = Counter()
        self._touched: set[str] = set()
        self.resolved: set[tuple[str, str]] = set()
        self.unrest: dict[str, None] = {}
        self.last_commit = 0.0
        vault.watchers.append(self._committed)
        vault.publishing.append(self._noted)

    def _committed(self, before: Saga | None, event: Event | None, after: Saga) -> None:
        self.last_commit = trio.current_time()
        self._versions.setdefault(after.id, []).append((self.last_commit, after))
        if after.at_rest:
            self.unrest.pop(after.id, None)
        else:
            self.unrest[after.id] = None
        if before is None or event is None:
            self._trace.baptise(after)
            self._shapes[after.id] = shape_of(after.plan)
            self._trace.note("store", f"created {self._trace.name(after.id)}, a {after.name}", after.id)
            self._say(after, check_state(after, self._shapes[after.id], after.created_at))
            return
        name = self._trace.name(after.id)
        what = f"{name} at {after.revision}: {self._trace.event(event)} → {after.state}"
        self._trace.note("store", f"{what}{', suspended' if after.suspended else ''}", after.id)
        if isinstance(event, StepResolved | SkipRequested):
            self.resolved.add((after.id, event.step))
        if (
            isinstance(event, ChildRested)
            and event.asked < before.progress_of(event.step).compensation_attempt
        ):
            self.touched(after.id)  # its report and the order to undo it were on their way at once
        shape = self._shapes[after.id]
        answer = transition(before, event)
        if answer.saga != after:
            self._say(after, f"{type(event).__name__} leads elsewhere than to what was committed (I8)")
        elif answer.ignored is not None:
            self._say(after, f"an event was committed that changes nothing (I2): {answer.ignored}")
        else:
            self._say(after, check_transition(before, event, answer, shape))
            self._say(after, check_state(after, shape, event.at))

    def touched(self, saga_id: str) -> None:
        """Note that two may answer at once: the outside and a handler, a child and the order to undo it.

        Both publish what comes of it then, and messages are there twice.
        """
        self._touched.add(self._root(saga_id))

    def _root(self, saga_id: str) -> str:
        while (saga := self._vault.sagas.get(saga_id)) is not None and saga.plan.parent is not None:
            saga_id = saga.plan.parent.saga
        return saga_id

    def handler_begins(self, who: str, command: Command) -> None:
        """Check that a command whose handler begins was awaited a moment ago (I3)."""
        self._runs[command] += 1
        words = self._trace.command(command)
        if self._faults.calm and self._runs[command] > 1 and self._root(command.saga) not in self._touched:
            self._fail(f"I3: {who} runs {words} once more, in a world without faults")
        since = trio.current_time() - LATE
        versions = self._versions.get(command.saga, [])
        latest = [saga for at, saga in versions if at >= since]
        latest += [saga for at, saga in versions if at < since][-1:]
        if not any(awaits(saga, command) for saga in latest):
            self._fail(f"I3: {who} runs the handler of {words}, whose result is not awaited")

    def acknowledging(self, held: Held) -> None:
        """Check that what a message asked for is done, and what came of it is on its way (I6)."""
        command = decode_command(held.message.body)
        saga = self._vault.sagas.get(command.saga)
        if saga is None or isinstance(command, Reply):
            return
        words = f"{self._trace.command(command)} is acknowledged"
        if self._is_open(command):
            self._fail(f"I6: {words} while its result is awaited")
        elif not isinstance(command, StartChild | CompensateChild):
            origin, events = at_once(self._vault.inner.history(saga.id))
            self._all_on_their_way(saga.id, consequences(origin, events, command).commands, words)
        elif awaits(saga, command):
            origin, events = at_once(self._vault.inner.history(command.child))
            caused = (
                outstanding(origin) if isinstance(command, StartChild) else _ordered(origin, events, command)
            )
            self._all_on_their_way(command.child, caused, words)

    def _noted(self, commits: Collection[Commit]) -> None:
        for saga_id, revision in commits:
            if (saga_id, revision) in self._vault.notes and saga_id in self._vault.sagas:
                origin, events = at_once(self._vault.inner.history(saga_id))
                where = f"{self._trace.name(saga_id)} at {revision} is noted as published"
                self._all_on_their_way(
                    saga_id, caused_by(origin, events, revision).commands, where, noted=False
                )

    def _all_on_their_way(
        self, saga_id: str, commands: Collection[Command], when: str, *, noted: bool = True
    ) -> None:
        for command in commands:
            if noted and any(commit[0] == saga_id for commit in self._vault.notes):
                continue
            if self._is_open(command) and not self._broker.has_kept_body(encode_command(command)):
                self._fail(f"I6: {when}, and {self._trace.command(command)} is in no queue")

    def _is_open(self, command: Command) -> bool:
        """Whether what a command brings would change something."""
        saga = self._vault.sagas.get(command.saga)
        if saga is None:
            return False
        if isinstance(command, Report):
            record, report, at = saga.progress_of(command.step), command, self._clock()
            if record.state is StepState.COMPENSATING and report.asked < record.compensation_attempt:
                return False  # whoever takes the order to undo the child finds out as well
            event = ChildRested(report.step, report.attempt, report.child, report.state, at, report.asked)
            return transition(saga, event).ignored is None
        if isinstance(command, StartChild | CompensateChild):
            child = self._vault.sagas.get(command.child)
            if child is None:
                return awaits(saga, command)
            told = isinstance(command, StartChild) or child.asked >= command.attempt
            return awaits(saga, command) and not told
        return awaits(saga, command)

    def at_rest(self) -> Iterator[str]:
        """Go through what is wrong when everything has come to rest."""
        for queue in self._broker.queues:
            if queue != DEAD_LETTERS and (depth := self._broker.held(queue)):
                yield f"I6: {depth} messages are left in {queue}"
        dead = self._broker.queues[DEAD_LETTERS].held() if DEAD_LETTERS in self._broker.queues else []
        for held in dead:
            if (
                reason := held.message.headers and held.message.headers.get(REASON)
            ) != Reason.DELIVERED_TOO_OFTEN:
                yield f"I6: {held.message.id} is a dead letter: {reason}"
        count = self._broker.count
        gone = count["acknowledged"] + count["dead-lettered"] + count["lost before the confirm"] + len(dead)
        if count["accepted"] != gone:
            yield f"I6: {count['accepted']} messages were accepted, and {gone} are accounted for"
        if self._vault.notes:
            yield f"{len(self._vault.notes)} commits are still noted as unpublished"
        for saga in self._vault.sagas.values():
            name = self._trace.name(saga.id)
            if not saga.at_rest:
                yield f"I1: {name} has not come to rest"
            origin, events = at_once(self._vault.inner.history(saga.id))
            if fold(origin, events) != saga:
                yield f"I8: the history of {name} does not lead to {name} as it is stored"
            if problem := check_stored(saga):
                yield f"{name}: {problem}"
        for saga in self._vault.sagas.values():
            family = [saga, *(each for each in self._vault.sagas.values() if _is_child(each, saga))]
            decided = any(
                (each.id, step.name) in self.resolved for each in family for step in each.plan.steps
            )
            if problem := check_children(family, decided):
                yield problem

    def _say(self, saga: Saga, problem: str | None) -> None:
        if problem is not None:
            self._fail(f"{self._trace.name(saga.id)} at revision {saga.revision}: {problem}")


def _ordered(origin: Saga, events: Sequence[Event], command: CompensateChild) -> tuple[Command, ...]:
    """Return what an order to undo a child has caused in it."""
    for revision, event in enumerate(events, 1):
        if isinstance(event, CompensationRequested) and event.attempt == command.attempt:
            return caused_by(origin, events, revision).commands
    return ()


def _is_child(saga: Saga, parent: Saga) -> bool:
    return saga.plan.parent is not None and saga.plan.parent.saga == parent.id
