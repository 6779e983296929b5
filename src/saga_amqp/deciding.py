"""An event applied and committed, whoever else commits to the same saga at the time."""

import logging
from collections.abc import Callable

from saga_amqp.contracts import Store
from saga_amqp.errors import ConflictError
from saga_amqp.patience import PatientStore
from saga_core import Event, Outcome, Saga, news, transition

logger = logging.getLogger("saga_amqp.engine")


async def decide(
    store: Store | PatientStore,
    saga: Saga,
    event: Event,
    *,
    note: Callable[[Outcome], float | None] | None = None,
    committing: Callable[[], None] | None = None,
) -> Outcome:
    """Apply an event and commit it; where somebody else was first, decide anew on what they left.

    `note` gives the note of a commit that no message causes, None for none. `committing` is called before each try.

    Raises: SagaNotFoundError, StoreError. Cancelled, the commit may have happened or not.
    """
    while True:
        answer = transition(saga, event)
        if answer.ignored is not None:
            logger.debug("Ignored: %s", answer.ignored)
            return Outcome(saga, ignored=answer.ignored)
        outcome = Outcome(answer.saga, answer.commands, news(saga, answer.saga))
        if committing is not None:
            committing()
        try:
            await store.commit(answer.saga, event, unpublished=None if note is None else note(outcome))
        except ConflictError:
            saga = await store.load(saga.id)
        else:
            return outcome
