"""What a store has kept of every saga leads, event by event, to what it says that the saga is now."""

from saga_amqp import Query, SagaState
from saga_amqp.contracts import Store
from saga_amqp.stores.looking import find_all
from saga_amqp.testing.orders import same
from saga_core import Saga, fold
from saga_core.testing import replay


async def check_histories(store: Store) -> list[Saga]:
    """See that every history folds to the saga that is stored, bit for bit; return the sagas, oldest first."""
    sagas = await find_all(store, Query(states=frozenset(SagaState)))
    for saga in sagas:
        origin, events = await store.history(saga.id)
        told = replay(origin, events, saga)
        assert told, f"saga {saga.id}: {told.why}"
        same(fold(origin, events), saga)
        assert len(events) == saga.revision
    return sagas
