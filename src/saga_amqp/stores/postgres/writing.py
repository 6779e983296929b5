"""What a store writes: all jobs of a batch in one transaction, those of a kind in one statement.

Compare-and-set is the WHERE of the update; the statement returns who won, and only those have written anything. Two
jobs for one saga never share a statement: the second is for the next one, and so meets what the first has done.
Within a statement sagas come in the order of their ids, so that two processes rarely wait for each other crosswise.
"""

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from functools import partial
from typing import TypeVar

import msgspec

from saga_amqp.contracts import Commit
from saga_amqp.errors import ConflictError, SagaExistsError, StoreError
from saga_amqp.stores.postgres.columns import blobs, count, floats, integers, moment, texts
from saga_amqp.stores.postgres.conversation import Prepared, Row
from saga_amqp.stores.postgres.jobs import (
    Append,
    ClaimDue,
    ClaimUnpublished,
    Create,
    Deed,
    Delete,
    Done,
    Hint,
    Mark,
)
from saga_amqp.stores.postgres.link import Answers, Connection, Link, each_alone, execute
from saga_amqp.stores.postgres.reading import Reader, encode_tags, not_found
from saga_amqp.stores.postgres.statements import (
    APPEND,
    CLAIM_DUE,
    CLAIM_UNPUBLISHED,
    CREATE,
    DELETE,
    HINT,
    HOLDERS,
    MARK,
    REVISIONS,
    SWEEP,
    compose,
)
from saga_core import Saga, wake_at


class Lost(msgspec.Struct, frozen=True):
    """The answer to a job that somebody else has forestalled, until it is known how."""


LOST = Lost()

JobT = TypeVar("JobT", bound=Deed)
Placed = list[tuple[int, JobT]]


class Part(msgspec.Struct, frozen=True):
    """A statement, the places of the jobs that it is for, and how their answers are read from its rows."""

    places: Sequence[int]
    statement: Prepared
    read: Callable[[list[Row]], Sequence[Done | Lost]]


class Writer:
    """Does what changes something."""

    def __init__(self, link: Link, schema: str, reader: Reader) -> None:
        self._link = link
        self._reader = reader
        texts = CREATE, APPEND, DELETE, SWEEP, MARK, CLAIM_DUE, CLAIM_UNPUBLISHED, HINT, REVISIONS, HOLDERS
        self._text = {text: compose(text, schema) for text in texts}

    async def do(self, deeds: Sequence[Deed]) -> Answers[Done]:
        """Do what is asked for. Raises: StoreUnavailableError, SchemaError."""
        answers = list(await each_alone(self._write, deeds))
        lost = [place for place, answer in enumerate(answers) if answer is LOST]
        if lost:
            # Not in the same breath: whatever becomes of this, what is written is written.
            for place, answer in zip(
                lost, await self._explain([deeds[place] for place in lost]), strict=True
            ):
                answers[place] = (await self.do([deeds[place]]))[0] if isinstance(answer, Lost) else answer
        return [answer for answer in answers if not isinstance(answer, Lost)]

    async def _write(self, jobs: Sequence[Deed]) -> Answers[Done | Lost]:
        parts = self._parts(jobs)
        answers: list[Done | Lost] = [LOST] * len(jobs)
        for part, rows in zip(
            parts, await self._link.execute([part.statement for part in parts]), strict=True
        ):
            for place, answer in zip(part.places, part.read(rows), strict=True):
                answers[place] = answer
        return answers

    def _parts(self, jobs: Sequence[Deed]) -> list[Part]:
        try:
            return [
                *self._creates(_of(Create, jobs)),
                *self._appends(_of(Append, jobs)),
                *self._deletes(_of(Delete, jobs)),
                *self._rest(jobs),
            ]
        except struct.error as error:
            raise StoreError(f"It cannot be sent to PostgreSQL: {error}") from error

    def _creates(self, jobs: Placed[Create]) -> Iterator[Part]:
        jobs.sort(key=lambda one: (one[1].saga.name, _key(one[1].saga) or "", one[1].saga.id))
        for wave in _waves(jobs, lambda job: _names(job.saga)):
            sagas = [job.saga for _, job in wave]
            columns = (
                texts([saga.id for saga in sagas]),
                texts([saga.name for saga in sagas]),
                texts([_key(saga) for saga in sagas]),
                texts([saga.state.value for saga in sagas]),
                texts([encode_tags(saga.plan.options.tags) for saga in sagas]),
                floats([saga.created_at for saga in sagas]),
                floats([saga.updated_at for saga in sagas]),
                floats([wake_at(saga) for saga in sagas]),
                floats([job.unpublished for _, job in wave]),
                blobs([job.snapshot for _, job in wave]),
            )

            def read(rows: list[Row], sagas: list[Saga] = sagas) -> Sequence[Saga | Lost]:
                new = {saga_id for (saga_id,) in rows}
                return [saga if saga.id in new else LOST for saga in sagas]

            yield Part([place for place, _ in wave], (self._text[CREATE], columns), read)

    def _appends(self, jobs: Placed[Append]) -> Iterator[Part]:
        # Of those who make the same revision the first has the chance, the others have lost already.
        first = {(job.saga.id, job.saga.revision): (place, job) for place, job in reversed(jobs)}
        jobs = [first[commit] for commit in sorted(first)]
        for wave in _waves(jobs, lambda job: (job.saga.id,)):
            sagas = [job.saga for _, job in wave]
            columns = (
                texts([saga.id for saga in sagas]),
                integers([saga.revision for saga in sagas]),
                texts([saga.state.value for saga in sagas]),
                floats([saga.updated_at for saga in sagas]),
                floats([wake_at(saga) for saga in sagas]),
                floats([job.unpublished for _, job in wave]),
                blobs([job.event for _, job in wave]),
                blobs([job.snapshot for _, job in wave]),
            )

            def read(rows: list[Row], sagas: list[Saga] = sagas) -> Sequence[Lost | None]:
                won = {saga_id for saga_id, _ in rows}
                return [None if saga.id in won else LOST for saga in sagas]

            yield Part([place for place, _ in wave], (self._text[APPEND], columns), read)

    def _deletes(self, jobs: Placed[Delete]) -> Iterator[Part]:
        jobs.sort(key=lambda one: one[1].saga_id)
        for wave in _waves(jobs, lambda job: (job.saga_id,)):
            ids = texts([job.saga_id for _, job in wave])
            columns = (ids, integers([job.revision for _, job in wave]))

            def read(rows: list[Row], wave: Placed[Delete] = wave) -> Sequence[Lost | None]:
                gone = {saga_id for saga_id, _ in rows}
                return [None if job.revision is None or job.saga_id in gone else LOST for _, job in wave]

            yield Part([place for place, _ in wave], (self._text[DELETE], columns), read)
            yield Part((), (self._text[SWEEP], (ids,)), _nothing)

    def _rest(self, jobs: Sequence[Deed]) -> Iterator[Part]:
        marks = _of(Mark, jobs)
        if marks:
            commits = sorted({commit for _, job in marks for commit in job.commits})
            columns = (
                texts([saga_id for saga_id, _ in commits]),
                integers([revision for _, revision in commits]),
            )
            places = [place for place, _ in marks]
            yield Part(places, (self._text[MARK], columns), lambda _: [None] * len(places))
        for place, job in enumerate(jobs):
            if isinstance(job, ClaimDue):
                yield Part([place], (self._text[CLAIM_DUE], _claim(job)), _due)
            elif isinstance(job, ClaimUnpublished):
                yield Part([place], (self._text[CLAIM_UNPUBLISHED], _claim(job)), _left_over)
        hints = [place for place, _ in _of(Hint, jobs)]
        if hints:
            yield Part(hints, (self._text[HINT], ()), lambda _: [None] * len(hints))

    async def _explain(self, jobs: Sequence[Deed]) -> Sequence[Done | Lost | Exception]:
        """Tell those who have lost to whom; those who would not lose any more are still `LOST`."""
        try:
            return await self._link.run(partial(self._look, jobs=jobs), repeatable=True)
        except StoreError as error:
            return [copy(error) for _ in jobs]

    def _look(self, connection: Connection, jobs: Sequence[Deed]) -> Sequence[Done | Lost | Exception]:
        ids = sorted({_id(job) for job in jobs})
        keyed = [job.saga for job in jobs if isinstance(job, Create) and _key(job.saga) is not None]
        columns = [saga.name for saga in keyed], [_key(saga) for saga in keyed]
        found, held = execute(connection, [(self._text[REVISIONS], (ids,)), (self._text[HOLDERS], columns)])
        revisions: dict[str, int] = {saga_id: revision for saga_id, revision in found}
        holders: dict[tuple[str, str | None], str] = {(name, key): saga_id for name, key, saga_id in held}
        sagas = self._reader.load(connection, sorted(holders.values())) if holders else {}

        def look(job: Deed) -> Done | Lost | Exception:
            match job:
                case Append(saga=saga):
                    return _forestalled(saga, revisions.get(saga.id))
                case Delete(saga_id=saga_id, revision=revision):
                    return _moved_on(saga_id, revision, revisions.get(saga_id))
                case Create(saga=saga):
                    holder = sagas.get(holders.get((saga.name, _key(saga)), ""))
                    return holder or (_exists(saga) if saga.id in revisions else LOST)
                case _:
                    raise AssertionError(f"{job} cannot lose")

        return [look(job) for job in jobs]


def _of(kind: type[JobT], jobs: Sequence[Deed]) -> Placed[JobT]:
    return [(place, job) for place, job in enumerate(jobs) if isinstance(job, kind)]


def _waves(jobs: Placed[JobT], names: Callable[[JobT], Collection[object]]) -> Iterator[Placed[JobT]]:
    """Part jobs so that no name comes twice in a part; usually it is one."""
    while jobs:
        taken: set[object] = set()
        now: Placed[JobT] = []
        later: Placed[JobT] = []
        for place, job in jobs:
            its = names(job)
            if taken.isdisjoint(its):
                taken.update(its)
                now.append((place, job))
            else:
                later.append((place, job))
        yield now
        jobs = later


def _id(job: Deed) -> str:
    match job:
        case Create(saga=saga) | Append(saga=saga):
            return saga.id
        case Delete(saga_id=saga_id):
            return saga_id
        case _:
            raise AssertionError(f"{job} cannot lose")


def _key(saga: Saga) -> str | None:
    return saga.plan.options.key


def _names(saga: Saga) -> Collection[object]:
    key = _key(saga)
    return (saga.id,) if key is None else (saga.id, (saga.name, key))


def _claim(job: ClaimDue | ClaimUnpublished) -> Sequence[bytes]:
    return moment(job.before), count(job.limit), moment(job.until)


def _nothing(rows: list[Row]) -> Sequence[None]:
    return ()


def _due(rows: list[Row]) -> Sequence[Sequence[str]]:
    return [[saga_id for _, saga_id in sorted(rows)]]


def _left_over(rows: list[Row]) -> Sequence[Sequence[Commit]]:
    return [[(saga_id, revision) for _, saga_id, revision in sorted(rows)]]


def _exists(saga: Saga) -> Exception:
    return SagaExistsError(f"Saga {saga.id} is in the store already; every start needs an id of its own")


def _forestalled(saga: Saga, revision: int | None) -> Exception:
    if revision is None:
        return not_found(saga.id)
    return ConflictError(
        f"Saga {saga.id} is at revision {revision}, and this commit expects {saga.revision - 1}"
    )


def _moved_on(saga_id: str, expected: int | None, revision: int | None) -> Exception | None:
    if revision is None:
        return None
    return ConflictError(f"Saga {saga_id} is at revision {revision} and not {expected}: it is not deleted")
