"""Engines that are broken on purpose, each in one place: a simulation that does not find them is worth nothing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from msgspec.structs import replace

import saga_core
import saga_core.machine
import saga_core.moves
import saga_core.shortcut
from saga_amqp import (
    handling,
    in_hand,
    manager,
    orchestrator,
    outgoing,
    patience,
    reconnecting,
    sweep,
)
from saga_amqp.contracts import Commit, Message
from saga_amqp.errors import (
    ConflictError,
    ConnectionLostError,
    StoreError,
    StoreUnavailableError,
    TransportError,
)
from saga_core import (
    Compensate,
    CompensationSucceeded,
    Event,
    Failure,
    Options,
    Outcome,
    Saga,
    StepState,
    StepSucceeded,
    outstanding,
)
from saga_core.draft import Draft

Patch = Callable[[pytest.MonkeyPatch], None]


def publishes_before_it_commits(patch: pytest.MonkeyPatch) -> None:
    """Commands leave before the commit that causes them."""
    decide = outgoing.decide

    async def settle(self: Any, command: Any, delivery: Any) -> Any:
        async def early(store: Any, saga: Saga, event: Event, **more: Any) -> Any:
            answer = saga_core.transition(saga, event)
            if answer.commands:
                messages = self._config.messages(Outcome(answer.saga, answer.commands))
                await self.outgoing._send(self.outgoing._broker, messages)
            return await decide(store, saga, event, **more)

        outgoing.decide = early
        try:
            return await original(self, command, delivery)
        finally:
            outgoing.decide = decide

    original = orchestrator.Orchestrator.settle
    patch.setattr(orchestrator.Orchestrator, "settle", settle)


def acknowledges_before_the_confirm(patch: pytest.MonkeyPatch) -> None:
    """A message is acknowledged as soon as what it caused was sent."""

    async def hasty(self: Any, messages: Sequence[Message]) -> None:
        if messages:
            self.acknowledge()
        await original(self, messages)

    original = in_hand.InHand.publish
    patch.setattr(in_hand.InHand, "publish", hasty)


def checks_for_no_duplicates(patch: pytest.MonkeyPatch) -> None:
    """A handler runs for every message, awaited or not."""
    patch.setattr(orchestrator, "awaits", lambda saga, command: True)


def forgets_what_a_committed_message_caused(patch: pytest.MonkeyPatch) -> None:
    """A message that comes again after its commit is acknowledged, and nothing is published."""
    patch.setattr(orchestrator, "consequences", lambda origin, events, command: Outcome(origin))


def compensates_while_steps_run(patch: pytest.MonkeyPatch) -> None:
    """Undoing does not wait for what is out."""

    def undo(draft: Draft) -> None:
        running, draft.running = draft.running, 0
        original(draft)
        draft.running = running

    original = saga_core.moves.undo
    patch.setattr(saga_core.moves, "undo", undo)


def compensates_in_any_order(patch: pytest.MonkeyPatch) -> None:
    """All that has completed is undone at once, whatever stands on it."""

    def undo(draft: Draft) -> None:
        for position in range(len(draft.plan.steps)):
            if draft.record(position).state is StepState.COMPLETED:
                draft.tips |= 1 << position
        original(draft)

    original = saga_core.moves.undo
    patch.setattr(saga_core.moves, "undo", undo)


def forgets_timers_when_it_restarts(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks in the store for what is due."""

    async def none(self: Any) -> Sequence[str]:
        return ()

    patch.setattr(sweep.Sweep, "_due", none)


def forgets_what_was_not_published(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks in the store for commits that are noted as unpublished."""

    async def none(self: Any) -> Sequence[Commit]:
        return ()

    patch.setattr(sweep.Sweep, "_unpublished", none)


def sweeps_up_slow_steps(patch: pytest.MonkeyPatch) -> None:
    """A sweep takes what has run for a second for lost, and publishes it again."""
    run = sweep.Sweep.run

    async def sweeping(self: Any) -> None:
        it: orchestrator.Orchestrator = self._fire.__self__

        async def due() -> Sequence[str]:
            now = self._clock()
            with suppress(StoreError, TransportError):
                for saga in (await it._store._store.find()).sagas:
                    if not saga.at_rest and saga.updated_at < now - 1 and outstanding(saga):
                        messages = it._config.messages(Outcome(saga, outstanding(saga)))
                        await it.outgoing._send(it.outgoing._broker, messages)
            return await original(self)

        original = sweep.Sweep._due
        self._due = due
        await run(self)

    patch.setattr(sweep.Sweep, "run", sweeping)


def takes_a_lost_confirm_for_success(patch: pytest.MonkeyPatch) -> None:
    """A publish on a connection that is lost counts as done."""

    async def publish(self: Any, message: Any, settled: Any) -> None:
        def hopeful(error: TransportError | None) -> None:
            settled(None if isinstance(error, ConnectionLostError) else error)

        await original(self, message, hopeful)

    original = reconnecting.Reconnecting.publish
    patch.setattr(reconnecting.Reconnecting, "publish", publish)


def takes_a_failed_compensation_for_done(patch: pytest.MonkeyPatch) -> None:
    """What a compensation raises is ignored."""

    def event(command: Any, error: Failure, at: float) -> Event:
        if isinstance(command, Compensate):
            return CompensationSucceeded(command.step, command.attempt, at)
        return original(command, error, at)

    original = handling.failure_event
    patch.setattr(handling, "failure_event", event)


def takes_a_conflict_for_success(patch: pytest.MonkeyPatch) -> None:
    """Who commits second believes that he was first."""

    async def commit(self: Any, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        try:
            await original(self, saga, event, unpublished=unpublished)
        except ConflictError:
            return

    original = patience.PatientStore.commit
    patch.setattr(patience.PatientStore, "commit", commit)


def takes_a_refused_commit_for_success(patch: pytest.MonkeyPatch) -> None:
    """A store that is away is believed to have committed."""

    async def commit(self: Any, saga: Saga, event: Event, *, unpublished: float | None = None) -> None:
        try:
            await self._store.commit(saga, event, unpublished=unpublished)
        except StoreUnavailableError:
            return

    patch.setattr(patience.PatientStore, "commit", commit)


def notes_as_published_before_it_publishes(patch: pytest.MonkeyPatch) -> None:
    """Notes are taken off at once."""

    async def publish(self: Any, commit: Commit, messages: Sequence[Message]) -> None:
        await self._store.mark_published([commit])
        await original(self, commit, messages)

    original = outgoing.Outgoing.publish
    patch.setattr(outgoing.Outgoing, "publish", publish)


def believes_that_a_timeout_had_no_effect(patch: pytest.MonkeyPatch) -> None:
    """An attempt that timed out is not undone."""

    def fail_attempt(draft: Draft, position: int, error: Failure, *, unknown: bool) -> None:
        original(draft, position, error, unknown=False)

    original = saga_core.moves.fail_attempt
    patch.setattr(saga_core.moves, "fail_attempt", fail_attempt)


def stops_without_giving_back(patch: pytest.MonkeyPatch) -> None:
    """What waits when an engine stops is acknowledged instead of given back."""
    patch.setattr(in_hand.InHand, "give_back", in_hand.InHand.acknowledge)


def starts_children_without_publishing(patch: pytest.MonkeyPatch) -> None:
    """A child that is there already is taken for one that runs already."""

    async def start(self: Any, parent: Saga, command: Any) -> Outcome:
        there = True
        try:
            await self._store.load(command.child)
        except saga_core.SagaError:
            there = False
        outcome: Outcome = await original(self, parent, command)
        return replace(outcome, commands=()) if there else outcome

    original = orchestrator.Orchestrator._start_child
    patch.setattr(orchestrator.Orchestrator, "_start_child", start)


def forgets_orders_to_undo_a_child(patch: pytest.MonkeyPatch) -> None:
    """A child that is there is left alone by the order to undo it."""

    async def undo(self: Any, parent: Saga, command: Any) -> Outcome:
        try:
            await self._store.load(command.child)
        except saga_core.SagaError:
            return await original(self, parent, command)
        return Outcome(parent)

    original = orchestrator.Orchestrator._compensate_child
    patch.setattr(orchestrator.Orchestrator, "_compensate_child", undo)


def undoes_children_without_publishing(patch: pytest.MonkeyPatch) -> None:
    """A child is told that it is to be undone, and what comes of it is not published."""

    async def undo(self: Any, parent: Saga, command: Any) -> Outcome:
        await original(self, parent, command)
        return Outcome(parent)

    original = orchestrator.Orchestrator._compensate_child
    patch.setattr(orchestrator.Orchestrator, "_compensate_child", undo)


def ignores_keys(patch: pytest.MonkeyPatch) -> None:
    """A saga with a key is started as often as somebody asks."""

    def new(self: Any, name: str, steps: Any, context: object, options: Options) -> Saga:
        return original(self, name, steps, context, replace(options, key=f"{options.key}/{self._new_id()}"))

    original = manager.Manager._new
    patch.setattr(manager.Manager, "_new", new)


def takes_any_token(patch: pytest.MonkeyPatch) -> None:
    """Tokens are not checked."""

    def redeem(saga: Saga, token: str) -> Any:
        _, position, operation, attempt, _ = token.split(".")
        return saga_core.Callback(saga.id, saga.plan.steps[int(position)].name, operation, int(attempt))  # type: ignore[arg-type]

    patch.setattr(manager, "redeem", redeem)


def never_connects_again(patch: pytest.MonkeyPatch) -> None:
    """A lost connection stays lost."""

    async def declare(self: Any, topology: Any) -> None:
        await patience.anyio.sleep_forever()

    def renewed(self: Any) -> Any:
        again = original(self)
        again.declare = declare.__get__(again)
        return again

    from saga_amqp.testing.world.client import WorldTransport

    original = WorldTransport.renewed
    patch.setattr(WorldTransport, "renewed", renewed)


def goes_back_past_the_pivot(patch: pytest.MonkeyPatch) -> None:
    """The pivot is a step as any other."""
    patch.setattr(saga_core.moves, "past_pivot", lambda draft: False)


def calls_a_cancelled_handler_failed(patch: pytest.MonkeyPatch) -> None:
    """A handler that is cancelled because its engine stops has failed for good."""

    whose: ContextVar[Any] = ContextVar("whose")

    async def settle(self: Any, command: Any, delivery: Any) -> Any:
        whose.set(self)
        return await settles(self, command, delivery)

    async def run(config: Any, clock: Any, saga: Saga, command: Any) -> Event:
        try:
            return await original(config, clock, saga, command)
        except handling.anyio.get_cancelled_exc_class():
            event = handling.failure_event(command, Failure("cancelled", "the engine ends"), clock())
            with handling.anyio.CancelScope(shield=True):
                await whose.get()._commit(saga, event, command)
            raise

    original, settles = orchestrator.run_handler, orchestrator.Orchestrator.settle
    patch.setattr(orchestrator, "run_handler", run)
    patch.setattr(orchestrator.Orchestrator, "settle", settle)


def takes_results_of_any_attempt(patch: pytest.MonkeyPatch) -> None:
    """Whatever attempt a result is of, it counts for the one that is out."""
    row = saga_core.machine.TABLE[StepSucceeded]

    def rule(draft: Draft, event: StepSucceeded) -> str | None:
        record = draft.record(draft.plan.position(event.step))
        return row.rule(draft, replace(event, attempt=record.attempt))

    patch.setitem(saga_core.machine.TABLE, StepSucceeded, replace(row, rule=rule))


BROKEN: dict[Patch, int] = {
    publishes_before_it_commits: 0,
    acknowledges_before_the_confirm: 0,
    checks_for_no_duplicates: 1,
    forgets_what_a_committed_message_caused: 15,
    compensates_while_steps_run: 1,
    compensates_in_any_order: 0,
    forgets_timers_when_it_restarts: 1,
    forgets_what_was_not_published: 1,
    sweeps_up_slow_steps: 14,
    takes_a_lost_confirm_for_success: 1,
    takes_a_failed_compensation_for_done: 4,
    takes_a_conflict_for_success: 0,
    takes_a_refused_commit_for_success: 16,
    notes_as_published_before_it_publishes: 0,
    believes_that_a_timeout_had_no_effect: 0,
    stops_without_giving_back: 17,
    starts_children_without_publishing: 1,
    forgets_orders_to_undo_a_child: 0,
    undoes_children_without_publishing: 1,
    ignores_keys: 1,
    takes_any_token: 1,
    never_connects_again: 1,
    goes_back_past_the_pivot: 11,
    calls_a_cancelled_handler_failed: 20,
    takes_results_of_any_attempt: 4,
}
"""The first seed that finds each; see `within`."""
