"""How sagas are looked for and counted. Each function makes one job, for inside a transaction."""

import sqlite3
from collections.abc import Callable, Collection, Mapping

import msgspec

from saga_amqp.contracts import Page, Query
from saga_amqp.stores.rows import cursor_after
from saga_amqp.stores.sqlite.connection import Job
from saga_amqp.stores.sqlite.tables import HEAD, Head, read
from saga_core import Saga, SagaState
from saga_core.states import RESTING


def find(
    query: Query, limit: int, after: tuple[float, str], known: Callable[[str], Saga | None]
) -> Job[Page]:
    """Find a page of sagas, oldest first, behind a creation time and an id."""

    def job(connection: sqlite3.Connection) -> Page:
        look = _with_tags if query.tags else _in_states
        heads = look(connection, query, limit + 1, after)
        sagas = tuple(read(connection, head, known(head.saga_id)) for head in heads[:limit])
        return Page(sagas, cursor_after(sagas[-1]) if sagas and len(heads) > limit else None)

    return job


def count(connection: sqlite3.Connection) -> Mapping[SagaState, int]:
    """Count the sagas in each state. A job."""
    rows = connection.execute("SELECT state, count(*) FROM sagas GROUP BY state").fetchall()
    return dict.fromkeys(SagaState, 0) | {SagaState(state): number for state, number in rows}


def at_rest_or_gone(saga_ids: Collection[str]) -> Job[Collection[str]]:
    """Find out which of these sagas nobody has to wait for any more."""
    wanted = msgspec.json.encode(list(saga_ids)).decode()
    resting = _listed(RESTING)

    def job(connection: sqlite3.Connection) -> Collection[str]:
        rows = connection.execute(
            "SELECT wanted.value FROM json_each(?) AS wanted LEFT JOIN sagas ON sagas.id = wanted.value"
            f" WHERE sagas.id IS NULL OR sagas.state IN ({resting})",
            (wanted,),
        )
        return [saga_id for (saga_id,) in rows]

    return job


def _in_states(
    connection: sqlite3.Connection, query: Query, most: int, after: tuple[float, str]
) -> list[Head]:
    """Look along the index of states: each state apart, for within one the order is the one that is asked for."""
    conditions, values = _conditions(query)
    heads: list[Head] = []
    for state in query.states:
        rows = connection.execute(
            f"SELECT {HEAD} FROM sagas WHERE state = ? AND (created_at, id) > (?, ?){conditions}"
            " ORDER BY created_at, id LIMIT ?",
            (state, *after, *values, most),
        )
        heads += [Head(*row) for row in rows]
    heads.sort(key=lambda head: (head.created_at, head.saga_id))
    return heads[:most]


def _with_tags(
    connection: sqlite3.Connection, query: Query, most: int, after: tuple[float, str]
) -> list[Head]:
    """Look along the first tag, which is in the order that is asked for, and see whether the rest holds."""
    conditions, values = _conditions(query)
    (first, *others) = query.tags.items()
    # CROSS JOIN: SQLite is not to choose the order itself.
    columns = ", ".join(f"sagas.{column}" for column in HEAD.split(", "))
    rows = connection.execute(
        f"SELECT {columns} FROM saga_tags AS tags CROSS JOIN sagas ON sagas.id = tags.saga_id"
        " WHERE tags.tag = ? AND tags.value = ? AND (tags.created_at, tags.saga_id) > (?, ?)"
        f" AND sagas.state IN ({_listed(query.states)}){conditions}"
        + " AND EXISTS (SELECT 1 FROM saga_tags AS other WHERE other.tag = ? AND other.value = ?"
        " AND other.created_at = sagas.created_at AND other.saga_id = sagas.id)"
        * len(others)
        + " ORDER BY tags.created_at, tags.saga_id LIMIT ?",
        (*first, *after, *values, *(text for tag in others for text in tag), most),
    )
    return [Head(*row) for row in rows]


def _conditions(query: Query) -> tuple[str, list[object]]:
    given: list[tuple[str, object]] = [
        (" AND sagas.name = ?", query.name),
        (" AND sagas.created_at < ?", query.created_before),
        (" AND sagas.updated_at < ?", query.updated_before),
    ]
    kept = [(condition, value) for condition, value in given if value is not None]
    return "".join(condition for condition, _ in kept), [value for _, value in kept]


def _listed(states: Collection[SagaState]) -> str:
    return ", ".join(f"'{state.value}'" for state in states)
