"""The six methods by which the Go package keeps sagas, on top of any store.

They are for code that was written for them, and for tools that tell by hand how a step ended. The two updates are
events like any other: the core decides what comes of them, a commit makes them atomic, and the engines that share the
store publish what follows. So a state that does not follow from what happened cannot be written.
"""

import time
from collections.abc import Callable

from msgspec import Raw

from saga_amqp.contracts import AT_ONCE, Store
from saga_amqp.deciding import decide
from saga_amqp.errors import RefusedError
from saga_amqp.stores.looking import RUNNING, find_all
from saga_core import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Failure,
    Saga,
    SagaState,
    StepFailed,
    StepSkipped,
    StepState,
    StepSucceeded,
    encode_payload,
    outstanding,
)
from saga_core.ids import step_id


class ReferenceStore:
    """Saves, loads and updates sagas in a store. `clock` gives seconds since 1970, UTC."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def save_saga(self, saga: Saga) -> Saga:
        """Keep a new saga, which the engines then begin; return it, or the one that has its key.

        Raises: SagaExistsError, StoreError.
        """
        stored = await self._store.create(saga, unpublished=AT_ONCE if outstanding(saga) else None)
        self._store.hint()
        return stored

    async def load_saga(self, saga_id: str) -> Saga:
        """Return a saga as it stands. Raises: SagaNotFoundError, StoreError."""
        return await self._store.load(saga_id)

    async def delete_saga(self, saga_id: str) -> None:
        """Forget a saga and its history; an unknown id is no error. Raises: StoreError."""
        await self._store.delete(saga_id)

    async def list_active_sagas(self) -> list[Saga]:
        """Return the sagas that are started or compensating, oldest first. Raises: StoreError."""
        return await find_all(self._store, RUNNING)

    async def update_saga_step(
        self, saga_id: str, step: str, state: StepState, output: object = None, error: str = ""
    ) -> Saga:
        """Tell how the present attempt of a step ended, and return the saga as it is then. `step` is its name or id.

        A step can be told to be completed (with its `output`), failed (for good, with its `error`), skipped or
        compensated; the other states come by themselves. To tell what is known already changes nothing.

        Raises: RefusedError, saying why; PayloadError, UnknownStepError, SagaNotFoundError, StoreError.
        """
        saga = await self._store.load(saga_id)
        name = _name_of(saga, step)
        if saga.progress_of(name).state is state:
            return saga
        raw = encode_payload(output, f"The output of step {name!r} of saga {saga_id}")
        return await self._apply(
            saga,
            self._told(saga, name, state, raw, error),
            is_known=lambda saga: saga.progress_of(name).state is state,
        )

    async def update_saga_state(self, saga_id: str, state: SagaState) -> Saga:
        """Have a saga undone, the one state that can be asked for; return it as it is then.

        To ask for the state that it has changes nothing.

        Raises: RefusedError for any other state: it follows from the steps. SagaNotFoundError, StoreError.
        """
        saga = await self._store.load(saga_id)
        if saga.state is state:
            return saga
        if state is not SagaState.COMPENSATING:
            raise RefusedError(
                f"Saga {saga_id} ({saga.name}) is {saga.state}, and becomes {state} by what becomes of its steps; "
                f"update these, or have it compensated"
            )
        return await self._apply(
            saga,
            CompensationRequested("asked for", self._clock()),
            is_known=lambda saga: saga.state is state,
        )

    async def _apply(self, saga: Saga, event: Event, *, is_known: Callable[[Saga], bool]) -> Saga:
        answer = await decide(self._store, saga, event, note=lambda outcome: AT_ONCE)
        if answer.ignored is not None:
            if is_known(answer.saga):  # somebody else has told the same meanwhile
                return answer.saga
            raise RefusedError(answer.ignored)
        self._store.hint()
        return answer.saga

    def _told(self, saga: Saga, name: str, state: StepState, output: Raw, error: str) -> Event:
        record, at = saga.progress_of(name), self._clock()
        match state:
            case StepState.COMPLETED:
                return StepSucceeded(name, record.attempt, output, at)
            case StepState.FAILED if record.state is StepState.COMPENSATING:
                return CompensationFailed(name, record.compensation_attempt, Failure("failed", error), at)
            case StepState.FAILED:
                return StepFailed(name, record.attempt, Failure("failed", error), at)
            case StepState.SKIPPED:
                return StepSkipped(name, record.attempt, error, at)
            case StepState.COMPENSATED:
                return CompensationSucceeded(name, record.compensation_attempt, at)
            case _:
                raise RefusedError(
                    f"Step {name!r} of saga {saga.id} is {record.state}, and becomes {state} by itself in its turn"
                )


def _name_of(saga: Saga, step: str) -> str:
    """Return the name of a step that is given by its name or its id. An unknown one is returned as it is."""
    if step not in saga.plan.graph.positions:
        for plan in saga.plan.steps:
            if step_id(saga.id, plan.name) == step:
                return plan.name
    return step
