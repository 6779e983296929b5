"""What a store reads: many jobs in one statement, so that each sees one moment. In a worker thread."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import LiteralString

import msgspec

from saga_amqp.contracts import Page
from saga_amqp.errors import SagaNotFoundError, StoreError
from saga_amqp.stores.postgres.conversation import Row
from saga_amqp.stores.postgres.driver import sql
from saga_amqp.stores.postgres.jobs import Count, Ended, Find, Load, Question, Recall, Told
from saga_amqp.stores.postgres.link import Answers, Connection, Link, Statement, each_alone, execute
from saga_amqp.stores.postgres.statements import COUNT, ENDED, FIND, LOAD, RECALL, compose
from saga_amqp.stores.rows import assemble, cursor_after, follow, read_cursor
from saga_core import CodecError, Event, Saga, SagaState, decode_event, decode_saga
from saga_core.states import ACTIVE


class Part(msgspec.Struct, frozen=True):
    """A statement, the places of the jobs that it is for, and how their answers are read from its rows."""

    places: Sequence[int]
    statement: Statement
    read: Callable[[list[Row]], Sequence[Told | Exception]]


class Reader:
    """Answers questions about sagas."""

    def __init__(self, link: Link, schema: str) -> None:
        self._link = link
        self._schema = schema
        self._load, self._recall, self._count, self._ended = (
            compose(text, schema) for text in (LOAD, RECALL, COUNT, ENDED)
        )

    async def answer(self, questions: Sequence[Question]) -> Answers[Told]:
        """Answer questions. Raises: StoreUnavailableError, SchemaError."""
        return await each_alone(
            lambda some: self._link.run(lambda connection: self._answer(connection, some), repeatable=True),
            questions,
        )

    def load(self, connection: Connection, saga_ids: Sequence[str]) -> dict[str, Saga | Exception]:
        """Load sagas through a connection of somebody else's. Raises: psycopg.Error."""
        (rows,) = execute(connection, [self._ask(dict.fromkeys(saga_ids))])
        return _sagas(dict.fromkeys(saga_ids), rows)

    def _answer(self, connection: Connection, jobs: Sequence[Question]) -> Answers[Told]:
        parts = [*self._loads(jobs), *self._recalls(jobs), *self._others(jobs)]
        answers: list[Told | Exception] = [[]] * len(jobs)
        for part, rows in zip(parts, execute(connection, [one.statement for one in parts]), strict=True):
            for place, answer in zip(part.places, part.read(rows), strict=True):
                answers[place] = answer
        return answers

    def _loads(self, jobs: Sequence[Question]) -> Iterator[Part]:
        loads = [(place, job) for place, job in enumerate(jobs) if isinstance(job, Load)]
        if loads:
            known = {job.saga_id: job.known for _, job in loads}
            ids = [job.saga_id for _, job in loads]

            def read(rows: list[Row]) -> Sequence[Saga | Exception]:
                sagas = _sagas(known, rows)
                return [sagas.get(saga_id) or not_found(saga_id) for saga_id in ids]

            yield Part([place for place, _ in loads], self._ask(known), read)

    def _recalls(self, jobs: Sequence[Question]) -> Iterator[Part]:
        recalls = [(place, job.saga_id) for place, job in enumerate(jobs) if isinstance(job, Recall)]
        if recalls:
            ids = [saga_id for _, saga_id in recalls]

            def read(rows: list[Row]) -> Sequence[tuple[Saga, Sequence[Event]] | Exception]:
                histories = {saga_id: list(these) for saga_id, these in groupby(rows, itemgetter(0))}
                return [
                    _history(histories[saga_id]) if saga_id in histories else not_found(saga_id)
                    for saga_id in ids
                ]

            yield Part([place for place, _ in recalls], (self._recall, [sorted(set(ids))]), read)

    def _others(self, jobs: Sequence[Question]) -> Iterator[Part]:
        for place, job in enumerate(jobs):
            if isinstance(job, Find):
                yield Part([place], self._find(job), partial(_page, job.limit))
            elif isinstance(job, Count):
                yield Part([place], (self._count, None), _counted)
            elif isinstance(job, Ended):
                yield Part([place], (self._ended, (job.saga_ids, sorted(ACTIVE))), _ids)

    def _ask(self, known: Mapping[str, Saga | None]) -> Statement:
        sagas = known.values()
        seen = [None if saga is None else saga.revision for saga in sagas]
        born = [None if saga is None else saga.created_at for saga in sagas]
        at = [None if saga is None else saga.updated_at for saga in sagas]
        return self._load, (list(known), seen, born, at)

    def _find(self, job: Find) -> Statement:
        query = job.query
        wanted: list[tuple[LiteralString, object]] = []
        if query.states != frozenset(SagaState):
            wanted.append((" AND state = ANY({})", sorted(state.value for state in query.states)))
        if query.name is not None:
            wanted.append((" AND name = {}", query.name))
        if query.tags:
            wanted.append((" AND tags @> {}::jsonb", encode_tags(query.tags)))
        if query.created_before is not None:
            wanted.append((" AND created_at < {}", query.created_before))
        if query.updated_before is not None:
            wanted.append((" AND updated_at < {}", query.updated_before))
        created_at, saga_id = read_cursor(job.cursor)
        # As literals, so that it is planned for what is looked for.
        text = compose(
            FIND,
            self._schema,
            created_at=sql.Literal(created_at),
            id=sql.Literal(saga_id),
            wanted=sql.SQL("").join(sql.SQL(text).format(sql.Literal(value)) for text, value in wanted),
            limit=sql.Literal(job.limit + 1),
        )
        return text, None


def encode_tags(tags: Mapping[str, str]) -> str | None:
    """Return tags as they are kept, and looked for."""
    return msgspec.json.encode(tags).decode() if tags else None


def not_found(saga_id: str) -> SagaNotFoundError:
    """Say that there is no such saga."""
    return SagaNotFoundError(f"No saga {saga_id!r} is in the store")


def _sagas(known: Mapping[str, Saga | None], rows: Iterable[Row]) -> dict[str, Saga | Exception]:
    """Make sagas of rows of `LOAD` or `FIND`; the error instead, where one cannot be made."""
    sagas: dict[str, Saga | Exception] = {}
    for saga_id, these in groupby(rows, itemgetter(1)):
        try:
            sagas[saga_id] = _saga(known.get(saga_id), list(these))
        except CodecError as error:
            sagas[saga_id] = CodecError(f"Saga {saga_id} cannot be read: {error}")
        except StoreError as error:
            sagas[saga_id] = error
    return sagas


def _saga(known: Saga | None, rows: list[Row]) -> Saga:
    _, saga_id, revision, first, _, snapshot = rows[0]
    events = [event for *_, event, _ in rows]
    if snapshot is not None:
        saga = assemble(snapshot, events[1:])
    elif known is not None:
        saga = known if first is None else follow(known, events)
    else:
        raise _damaged(saga_id, revision)
    if saga.revision != revision:
        raise _damaged(saga_id, revision)
    return saga


def _damaged(saga_id: str, revision: int) -> StoreError:
    return StoreError(
        f"The history of saga {saga_id} does not lead to revision {revision}, where its head is: the store is "
        "damaged; restore it from a backup"
    )


def _history(rows: list[Row]) -> tuple[Saga, Sequence[Event]] | Exception:
    (saga_id, _, origin), *rest = rows
    try:
        return decode_saga(origin or b""), tuple(decode_event(event) for _, event, _ in rest)
    except CodecError as error:
        return CodecError(f"The history of saga {saga_id} cannot be read: {error}")


def _page(limit: int, rows: list[Row]) -> Sequence[Page | Exception]:
    sagas: list[Saga] = []
    for saga in _sagas({}, rows).values():
        if isinstance(saga, Exception):
            return [saga]
        sagas.append(saga)
    page = tuple(sagas[:limit])
    return [Page(page, cursor_after(page[-1]) if page and len(sagas) > limit else None)]


def _counted(rows: list[Row]) -> Sequence[dict[SagaState, int]]:
    return [dict.fromkeys(SagaState, 0) | {SagaState(state): count for state, count in rows}]


def _ids(rows: list[Row]) -> Sequence[list[str]]:
    return [[saga_id for (saga_id,) in rows]]
