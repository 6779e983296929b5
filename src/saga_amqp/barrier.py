"""Handlers that take effect once, though they may run more often: the barrier.

Messages are delivered at least once, so handlers run at least once; and a compensation may run although its action
never did, or before it does. The barrier, run inside the handler's own local transaction, keeps one row for each
operation of a step, in the same database as the work and committed together with it. So the work and the knowledge
that it was done are one.

The key is the saga, the *name* of the step and the operation, never the attempt. Attempts are tries at one effect: the
second may be made because the answer to the first was lost, after it had committed. Keyed by attempt, it would do
the work again. The name tells the steps of a saga apart, and reads well in a table; a step's id says nothing more.

After dtm's sub-transaction barrier, https://en.dtm.pub/practice/barrier.html. Nothing here commits or rolls back.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from msgspec import Raw, Struct

from saga_amqp.connections import Dialect, adapt, adapt_async
from saga_amqp.errors import RefusedByBarrierError, TransactionEndedError
from saga_amqp.work import Begin, Call, IsOpen, Work, execute, perform, perform_async
from saga_core import Defer, Saga, Skip, Step, StepState
from saga_core.payload import EMPTY, decode_object, encode_payload
from saga_core.states import Operation

Answer = dict[str, object] | Skip | Defer
"""What a handler returns: its output, or that there was nothing to do, or that the result will come later."""

TABLE = "saga_barrier"

_COLUMNS = """
    saga_id TEXT NOT NULL,
    step TEXT NOT NULL,
    operation TEXT NOT NULL,
    outcome TEXT NOT NULL,
    answer TEXT NOT NULL,
    {at} NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (saga_id, step, operation)
"""

DDL: dict[Dialect, str] = {
    "sqlite": f"CREATE TABLE IF NOT EXISTS {TABLE} ({_COLUMNS.format(at='recorded_at TEXT')}) WITHOUT ROWID",
    "postgresql": f"CREATE TABLE IF NOT EXISTS {TABLE} ({_COLUMNS.format(at='recorded_at TIMESTAMPTZ')})",
}
"""The statement that creates the table, for those who keep their schema in migrations."""

# Two sessions that create a table at once fail in PostgreSQL, IF NOT EXISTS or not. The number is arbitrary.
_CREATE: dict[Dialect, str] = {
    "sqlite": DDL["sqlite"],
    "postgresql": f"DO $$ BEGIN PERFORM pg_advisory_xact_lock(7242201); {DDL['postgresql']}; END $$",
}

_CLAIM = f"""
INSERT INTO {TABLE} (saga_id, step, operation, outcome, answer) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (saga_id, step, operation) DO NOTHING RETURNING outcome
"""
_READ = f"SELECT outcome, answer FROM {TABLE} WHERE saga_id = ? AND step = ? AND operation = ?"
_FINISH = f"""
UPDATE {TABLE} SET outcome = ?, answer = ?
WHERE saga_id = ? AND step = ? AND operation = ? AND outcome = ? RETURNING outcome
"""
_FORGET = f"DELETE FROM {TABLE} WHERE saga_id = ? AND step = ? AND operation = ? AND outcome = ?"

# Outcomes. What is begun is seen by nobody else: when it is committed, it is finished.
_BEGUN = "begun"
_DONE = "done"
_SKIPPED = "skipped"
_DEFERRED = "deferred"
_REFUSED = "refused"
"""Of an action: its compensation came first, so it is not to run any more."""


class _Key(Struct, frozen=True):
    saga: str
    step: str
    operation: Operation

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.saga, self.step, self.operation


class _Record(Struct, frozen=True):
    outcome: str
    answer: Raw = EMPTY


def run(connection: object, saga: Saga, step: Step[Any], body: Callable[[], object]) -> Answer:
    """Do a handler's work once, in the transaction that is open on its connection; call it before any other work.

    `connection` is one of sqlite3, psycopg or SQLAlchemy (Connection or Session), on SQLite or PostgreSQL. `body` does
    the work on the same connection, and returns what the handler would. It must neither commit nor roll back. What is
    returned is what was recorded: run again, it is the same, and `body` is not called. If `body` raises, nothing is
    recorded. Whether the action runs or its compensation follows from `step.state`. Call this once in a handler: a
    second call for the same step would find the record of the first.

    A compensation whose action never ran calls no `body`, and answers an empty output.

    Raises:
        RefusedByBarrierError: The compensation of this action has come first. Let it pass: it fails the step.
        NoTransactionError: The connection commits every statement by itself.
        TransactionEndedError: `body`, now or when it ran before, has ended the transaction.
        UnsupportedConnectionError: The connection is of no kind that can be used.
        PayloadError: What `body` returned cannot be written as JSON.
        Exception: Whatever `body` or the driver raises.
    """
    return perform(adapt(connection), _guard(_key(saga, step), body))


async def run_async(
    connection: object, saga: Saga, step: Step[Any], body: Callable[[], Awaitable[object]]
) -> Answer:
    """Do a handler's work once, as `run` does, on an asynchronous connection.

    `connection` is one of psycopg, aiosqlite or SQLAlchemy (AsyncConnection or AsyncSession). Cancelled, it leaves the
    transaction to its owner, who rolls it back.

    Raises:
        RefusedByBarrierError: The compensation of this action has come first. Let it pass: it fails the step.
        NoTransactionError: The connection commits every statement by itself.
        TransactionEndedError: `body`, now or when it ran before, has ended the transaction.
        UnsupportedConnectionError: The connection is of no kind that can be used.
        PayloadError: What `body` returned cannot be written as JSON.
        Exception: Whatever `body` or the driver raises.
    """
    return await perform_async(adapt_async(connection), _guard(_key(saga, step), body))


def action_output(connection: object, saga: Saga, step: Step[Any]) -> dict[str, object]:
    """Return the output that a step's action has recorded, for `body` of its compensation; empty if it never ran.

    `step.output` is what the saga knows. It is empty where the action's result was lost, because its attempt timed
    out or its worker died, and such a step is compensated too.

    Raises:
        UnsupportedConnectionError: The connection is of no kind that can be used.
        Exception: Whatever the driver raises.
    """
    return perform(adapt(connection), _action_output(saga, step))


async def action_output_async(connection: object, saga: Saga, step: Step[Any]) -> dict[str, object]:
    """Return what `action_output` does, on an asynchronous connection. Cancelled, it has changed nothing.

    Raises:
        UnsupportedConnectionError: The connection is of no kind that can be used.
        Exception: Whatever the driver raises.
    """
    return await perform_async(adapt_async(connection), _action_output(saga, step))


def create_table(connection: object) -> None:
    """Create the barrier's table where it is missing. Committing is the caller's.

    Raises:
        UnsupportedConnectionError: The connection is of no kind that can be used.
        Exception: Whatever the driver raises.
    """
    adapted = adapt(connection)
    perform(adapted, execute(_CREATE[adapted.dialect]))


async def create_table_async(connection: object) -> None:
    """Create the barrier's table where it is missing. Committing is the caller's; so it is after cancellation.

    Raises:
        UnsupportedConnectionError: The connection is of no kind that can be used.
        Exception: Whatever the driver raises.
    """
    adapted = adapt_async(connection)
    await perform_async(adapted, execute(_CREATE[adapted.dialect]))


def _key(saga: Saga, step: Step[Any]) -> _Key:
    return _Key(saga.id, step.name, "compensate" if step.state is StepState.COMPENSATING else "execute")


def _guard(key: _Key, body: Callable[[], object]) -> Work[Answer]:
    yield Begin()
    if key.operation == "compensate" and not (yield from _has_effect(key)):
        yield from _claim(key, _DONE)
        return {}
    found = yield from _claim(key, _BEGUN)
    if found is None:
        return (yield from _first(key, body))
    if found.outcome == _REFUSED:
        raise RefusedByBarrierError(
            "refused_by_barrier",
            f"Step {key.step!r} of saga {key.saga} was compensated before its action arrived, so it does nothing",
        )
    return _repeated(key, found)


def _has_effect(key: _Key) -> Work[bool]:
    """Return whether there is something to undo. If the action never ran, leave the mark that refuses it."""
    action = _Key(key.saga, key.step, "execute")
    # Waits for an action that is at work in another transaction.
    found = yield from _claim(action, _REFUSED)
    if found is not None and found.outcome == _BEGUN:
        raise _ended(action)
    return found is not None and found.outcome not in {_REFUSED, _SKIPPED}


def _first(key: _Key, body: Callable[[], object]) -> Work[Answer]:
    try:
        record = _recorded(key, (yield Call(body)))
    except Exception:
        # Should its owner commit nevertheless, the next attempt is to run.
        with suppress(Exception):  # PostgreSQL does nothing more in a transaction in which something failed
            if (yield IsOpen()):
                yield from execute(_FORGET, *key.columns, _BEGUN)
        raise
    if not (yield IsOpen()):
        raise _ended(key)
    answer = bytes(record.answer).decode()
    if not (yield from execute(_FINISH, record.outcome, answer, *key.columns, _BEGUN)):
        raise _ended(key)
    return _repeated(key, record)


def _claim(key: _Key, outcome: str) -> Work[_Record | None]:
    """Record an outcome, and return None; or return what was recorded before.

    Whoever else is about to record the same is waited for: PostgreSQL does so at the primary key, SQLite lets only one
    write at all. A record that is gone when it is read was withdrawn meanwhile.
    """
    while not (yield from execute(_CLAIM, *key.columns, outcome, "{}")):
        if found := (yield from _read(key)):
            return found
    return None


def _read(key: _Key) -> Work[_Record | None]:
    rows = yield from execute(_READ, *key.columns)
    if not rows:
        return None
    # A sqlite3 connection of the user's may return text as bytes.
    outcome, answer = (value.encode() if isinstance(value, str) else bytes(value) for value in rows[0])
    return _Record(outcome.decode(), Raw(answer))


def _action_output(saga: Saga, step: Step[Any]) -> Work[dict[str, object]]:
    found = yield from _read(_Key(saga.id, step.name, "execute"))
    return decode_object(found.answer) if found is not None and found.outcome == _DONE else {}


def _recorded(key: _Key, answer: object) -> _Record:
    if isinstance(answer, Defer):
        return _Record(_DEFERRED)
    if key.operation == "compensate":
        return _Record(_DONE)  # as the engine does, which keeps no output of a compensation
    what = f"The output of step {key.step!r} of saga {key.saga}"
    return _Record(_SKIPPED if isinstance(answer, Skip) else _DONE, encode_payload(answer, what))


def _repeated(key: _Key, record: _Record) -> Answer:
    if record.outcome == _BEGUN:
        raise _ended(key)
    if record.outcome == _DEFERRED:
        return Defer()
    output = decode_object(record.answer)
    return Skip(str(output["reason"])) if record.outcome == _SKIPPED else output


def _ended(key: _Key) -> TransactionEndedError:
    return TransactionEndedError(
        f"Step {key.step!r} of saga {key.saga}: what was run to {key.operation} it has committed or rolled back, so "
        f"nobody knows what it did. Leave that to the owner of the transaction; then see what was done, and delete the "
        f"row of {TABLE}, or set its outcome to {_DONE!r}"
    )
