"""An order saga for the suite of stores: the saga, the events of its life, and what to expect of two that are alike."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from msgspec import Raw
from ulid import ULID

from saga_amqp.contracts import Query, Store
from saga_core import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    Failure,
    Options,
    RetryPolicy,
    Saga,
    SagaState,
    Step,
    StepSucceeded,
    encode_saga,
    new_saga,
    outstanding,
    transition,
)
from saga_core.options import NO_OPTIONS

AT = 1_700_000_000.0

ONCE = RetryPolicy(max_attempts=1)


def order(
    *,
    id: str | None = None,
    at: float = AT,
    input: dict[str, object] | None = None,
    context: object = None,
    name: str = "order",
    options: Options = NO_OPTIONS,
) -> Saga:
    """Make an order of three steps, of which the last cannot be undone; its id is new unless given."""
    steps: list[Step[dict[str, object]]] = [
        Step(
            name="reserve",
            action="goods.reserve",
            compensation="goods.release",
            compensation_retry=ONCE,
            input=input or {"units": 2},
        ),
        Step(name="charge", action="card.charge", compensation="card.refund", compensation_retry=ONCE),
        Step(name="ship", action="parcel.ship"),
    ]
    return new_saga(name, steps, context or {"customer": "c-1"}, id=id or str(ULID()), at=at, options=options)


def reserved() -> Event:
    """Tell that the first step has succeeded."""
    return StepSucceeded("reserve", 1, Raw(b'{"reservation":"r-1"}'), AT + 1)


def charged() -> Event:
    """Tell that the second step has succeeded."""
    return StepSucceeded("charge", 1, Raw(b'{"transaction":"t-1"}'), AT + 2)


def shipped() -> Event:
    """Tell that the third step has succeeded."""
    return StepSucceeded("ship", 1, Raw(b"{}"), AT + 3)


def there_and_back() -> list[Event]:
    """Lead an order through every state: completed, undone in vain, and undone in the end."""
    return [
        reserved(),
        charged(),
        shipped(),
        CompensationRequested("the customer thought again", AT + 4),
        CompensationFailed("charge", 1, Failure("bank_closed", "try on Monday", True), AT + 5),
        CompensationRequested("it is Monday", AT + 6),
        CompensationSucceeded("charge", 2, AT + 7),
        CompensationSucceeded("reserve", 1, AT + 8),
    ]


async def apply(store: Store, saga: Saga, event: Event, *, unpublished: float | None = None) -> Saga:
    """Decide an event and commit it; return the saga after it."""
    answer = transition(saga, event)
    assert answer.ignored is None, f"the case itself is wrong: {answer.ignored}"
    await store.commit(answer.saga, event, unpublished=unpublished)
    return answer.saga


@contextmanager
def raises(kind: type[Exception], text: str) -> Generator[None]:
    """Expect an error that says this text."""
    try:
        yield
    except kind as error:
        assert text in str(error), f"{kind.__name__} should name {text}, and says: {error}"
    else:
        raise AssertionError(f"{kind.__name__} should have been raised")


def same(found: Saga, expected: Saga) -> None:
    """Expect two sagas to be the same, bit for bit."""
    assert found == expected
    assert encode_saga(found) == encode_saga(expected)
    assert outstanding(found) == outstanding(expected)


async def in_states(store: Store, *states: SagaState) -> Sequence[Saga]:
    """Return all sagas in the states, which must not be more than a page."""
    page = await store.find(Query(states=frozenset(states)))
    assert page.cursor is None
    return page.sagas


def same_list(found: Sequence[Saga], expected: Sequence[Saga]) -> None:
    """Expect the same sagas in the same order."""
    assert [saga.id for saga in found] == [saga.id for saga in expected]
    assert list(found) == list(expected)
