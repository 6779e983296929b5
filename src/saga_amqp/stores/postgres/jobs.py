"""What a store can be asked for, as data: jobs wait in batches for a worker thread."""

from collections.abc import Collection, Sequence

import msgspec

from saga_amqp.contracts import Commit, Page, Query
from saga_core import Event, Saga, SagaState

# Reading ----------------------------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True):
    """A saga as it stands; `known` is as it was when it was last seen."""

    saga_id: str
    known: Saga | None = None


class Recall(msgspec.Struct, frozen=True):
    """A saga as created, and what has happened to it."""

    saga_id: str


class Find(msgspec.Struct, frozen=True):
    """A page of sagas."""

    query: Query
    limit: int
    cursor: str | None


class Count(msgspec.Struct, frozen=True):
    """How many sagas are in each state."""


class Ended(msgspec.Struct, frozen=True):
    """Which of these sagas rest, or are gone."""

    saga_ids: list[str]


Question = Load | Recall | Find | Count | Ended
Told = Saga | tuple[Saga, Sequence[Event]] | Page | dict[SagaState, int] | list[str]


# Writing ----------------------------------------------------------------------------------------------------------


class Create(msgspec.Struct, frozen=True):
    """Keep a new saga."""

    saga: Saga
    snapshot: bytes
    unpublished: float | None


class Append(msgspec.Struct, frozen=True):
    """Commit an event; `snapshot` is empty where the history can do without."""

    saga: Saga
    event: bytes
    snapshot: bytes
    unpublished: float | None


class Delete(msgspec.Struct, frozen=True):
    """Forget a saga."""

    saga_id: str
    revision: int | None


class Mark(msgspec.Struct, frozen=True):
    """Take the notes off commits."""

    commits: Collection[Commit]


class ClaimDue(msgspec.Struct, frozen=True):
    """Claim sagas whose time has come."""

    before: float
    until: float
    limit: int


class ClaimUnpublished(msgspec.Struct, frozen=True):
    """Claim commits that are unpublished."""

    before: float
    until: float
    limit: int


class Hint(msgspec.Struct, frozen=True):
    """Tell other processes that there may be something to claim."""


Deed = Create | Append | Delete | Mark | ClaimDue | ClaimUnpublished | Hint
Done = Saga | Sequence[str] | Sequence[Commit] | None
