"""Starting a saga inside a transaction of the user's own: both come to be, what it wrote and the saga, or neither.

State is the outbox: what is written is what every saga has, its head and the first row of its history, noted as
unpublished. When the transaction has committed, the engines find the note.
"""

from typing import Protocol, runtime_checkable

import msgspec

from saga_amqp.connections import Dialect
from saga_amqp.contracts import AT_ONCE
from saga_amqp.errors import SagaExistsError
from saga_amqp.stores.rows import assemble
from saga_amqp.work import Begin, Work, execute
from saga_core import Saga, encode_saga, wake_at


class Tables(msgspec.Struct, frozen=True):
    """Where a store has its tables; without a table of `tags` they are a column. Who commits tells `hint_channel`."""

    dialect: Dialect
    sagas: str
    history: str
    tags: str | None = None
    hint_channel: str | None = None


@runtime_checkable
class InDatabase(Protocol):
    """A store whose tables a user's connection can reach."""

    @property
    def tables(self) -> Tables:
        """Where they are."""
        ...


def enlist(saga: Saga, tables: Tables, *, publishes: bool) -> Work[Saga]:
    """Keep a new saga, in the transaction that is open; return it, or the one that has its key.

    `publishes` is whether anything comes of it that has to be published.

    Raises: SagaExistsError, NoTransactionError; whatever the driver raises.
    """
    yield Begin()
    options = saga.plan.options
    columns = 'id, name, "key", state, revision, base, created_at, updated_at, wake_at'
    values: list[object] = [saga.id, saga.name, options.key, saga.state.value, 0, 0]
    values += [saga.created_at, saga.updated_at, wake_at(saga)]
    places = ", ".join("?" * len(values))
    if tables.tags is None:
        columns, places = f"{columns}, tags", f"{places}, CAST(? AS jsonb)"
        values.append(msgspec.json.encode(options.tags).decode() if options.tags else None)
    created = yield from execute(
        f"INSERT INTO {tables.sagas} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING id",
        *values,
    )
    if not created:
        return (yield from _holder(saga, tables))
    yield from execute(
        f"INSERT INTO {tables.history} (saga_id, revision, at, unpublished, snapshot) VALUES (?, 0, ?, ?, ?)",
        saga.id,
        saga.updated_at,
        AT_ONCE if publishes else None,
        encode_saga(saga),
    )
    for tag, value in options.tags.items() if tables.tags is not None else ():
        yield from execute(
            f"INSERT INTO {tables.tags} (tag, value, created_at, saga_id) VALUES (?, ?, ?, ?)",
            tag,
            value,
            saga.created_at,
            saga.id,
        )
    if tables.hint_channel is not None:
        yield from execute("SELECT pg_notify(?, '')", tables.hint_channel)
    return saga


def _holder(saga: Saga, tables: Tables) -> Work[Saga]:
    """Return the saga that has the key already."""
    heads = yield from execute(
        f'SELECT id, base FROM {tables.sagas} WHERE name = ? AND "key" = ?',
        saga.name,
        saga.plan.options.key,
    )
    if not heads:
        raise SagaExistsError(f"Saga {saga.id} is in the store already; every start needs an id of its own")
    rows = yield from execute(
        f"SELECT event, snapshot FROM {tables.history} WHERE saga_id = ? AND revision >= ? ORDER BY revision",
        *heads[0],
    )
    return assemble(bytes(rows[0][1]), (bytes(event) for event, _ in rows[1:]))
