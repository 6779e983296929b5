"""The statements of the store. Each is composed once for a schema, and prepared once for a connection."""

from typing import Any, LiteralString, cast

from saga_amqp.stores.postgres.channels import hint_channel, rest_channel
from saga_amqp.stores.postgres.driver import sql
from saga_core.states import RESTING


def compose(text: LiteralString, schema: str, **more: "sql.Composable") -> bytes:
    """Put names and constants into a statement."""
    names = {
        "schema": sql.Identifier(schema),
        "rest": sql.Literal(rest_channel(schema)),
        "hint": sql.Literal(hint_channel(schema)),
        "resting": sql.Literal(sorted(RESTING)),
    }
    has_parameters = "%" in text
    written = {
        # Beside placeholders, a percent sign that is none of them is written twice.
        name: sql.SQL(cast("Any", value.as_string(None).replace("%", "%%" if has_parameters else "%")))
        for name, value in (names | more).items()
    }
    return sql.SQL(text).format(**written).as_bytes(None)


# Reading ----------------------------------------------------------------------------------------------------------

# What a saga is made of: the rows since it was last seen, or else those from its base on. The revision alone would not
# tell it from another of the same id, created after it was deleted.
ROWS = """LEFT JOIN LATERAL (
    SELECT log.revision, log.event, CASE WHEN log.revision = saga.base THEN log.snapshot END AS snapshot
    FROM {schema}.history AS log
    WHERE log.saga_id = saga.id AND log.revision > CASE
        WHEN ask.born = saga.created_at AND ask.seen BETWEEN saga.base AND saga.revision AND ask.at = CASE
            WHEN ask.seen = saga.revision THEN saga.updated_at
            ELSE (SELECT at FROM {schema}.history WHERE saga_id = saga.id AND revision = ask.seen)
        END THEN ask.seen
        ELSE saga.base - 1
    END
) AS log ON true"""
LOAD = f"""SELECT ask.place, saga.id, saga.revision, log.revision, log.event, log.snapshot
FROM unnest(%s::text[], %s::integer[], %s::float8[], %s::float8[])
    WITH ORDINALITY AS ask (id, seen, born, at, place)
JOIN {{schema}}.sagas AS saga ON saga.id = ask.id {ROWS}
ORDER BY ask.place, log.revision"""
FIND = f"""SELECT saga.place, saga.id, saga.revision, log.revision, log.event, log.snapshot
FROM (
    SELECT id, revision, base, created_at, updated_at, row_number() OVER (ORDER BY created_at, id) AS place
    FROM {{schema}}.sagas WHERE (created_at, id) > ({{created_at}}, {{id}}){{wanted}}
    ORDER BY created_at, id LIMIT {{limit}}
) AS saga, (VALUES (NULL::integer, NULL::float8, NULL::float8)) AS ask (seen, born, at) {ROWS}
ORDER BY saga.place, log.revision"""
RECALL = """SELECT saga_id, event, CASE WHEN revision = 0 THEN snapshot END FROM {schema}.history
WHERE saga_id = ANY(%s) ORDER BY saga_id, revision"""
COUNT = "SELECT state, count(*) FROM {schema}.sagas GROUP BY state"
ENDED = """SELECT ask.id FROM unnest(%s::text[]) AS ask (id) WHERE NOT EXISTS (
    SELECT FROM {schema}.sagas AS saga WHERE saga.id = ask.id AND saga.state = ANY(%s))"""


# Writing: for `conversation`, with values of `columns` --------------------------------------------------------------

CREATE = """WITH job AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::float8[],
        $8::float8[], $9::float8[], $10::bytea[])
    AS job (id, name, key, state, tags, created_at, updated_at, wake_at, unpublished, snapshot)
), new AS (
    INSERT INTO {schema}.sagas (id, name, key, state, tags, revision, base, created_at, updated_at, wake_at)
    SELECT id, name, key, state, tags::jsonb, 0, 0, created_at, updated_at, wake_at FROM job
    ON CONFLICT DO NOTHING RETURNING id
), kept AS (
    INSERT INTO {schema}.history (saga_id, revision, at, unpublished, snapshot)
    SELECT id, 0, created_at, unpublished, snapshot FROM job JOIN new USING (id)
)
SELECT id FROM new"""

APPEND = """WITH job AS (
    SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::float8[], $5::float8[], $6::float8[],
        $7::bytea[], $8::bytea[])
    AS job (id, revision, state, at, wake_at, unpublished, event, snapshot)
), won AS (
    UPDATE {schema}.sagas AS saga
    SET revision = job.revision, state = job.state, updated_at = job.at, wake_at = job.wake_at,
        base = CASE WHEN job.snapshot = '' THEN saga.base ELSE job.revision END
    FROM job WHERE saga.id = job.id AND saga.revision = job.revision - 1
    RETURNING job.*
), kept AS (
    INSERT INTO {schema}.history (saga_id, revision, at, unpublished, event, snapshot)
    SELECT id, revision, at, unpublished, event, nullif(snapshot, '') FROM won
)
SELECT id, CASE WHEN state = ANY({resting}) THEN pg_notify({rest}, id)::text END FROM won"""

# What others have added to a history until they let go of its head is seen by the second statement only.
DELETE = """WITH gone AS (
    DELETE FROM {schema}.sagas AS saga USING unnest($1::text[], $2::integer[]) AS job (id, revision)
    WHERE saga.id = job.id AND (job.revision IS NULL OR saga.revision = job.revision)
    RETURNING saga.id
)
SELECT id, pg_notify({rest}, id)::text FROM gone"""
SWEEP = """DELETE FROM {schema}.history WHERE saga_id = ANY($1)
    AND NOT EXISTS (SELECT FROM {schema}.sagas AS saga WHERE saga.id = saga_id) RETURNING NULL"""

MARK = """UPDATE {schema}.history AS log SET unpublished = NULL
FROM unnest($1::text[], $2::integer[]) AS job (id, revision)
WHERE log.saga_id = job.id AND log.revision = job.revision AND log.unpublished IS NOT NULL RETURNING NULL"""

CLAIM_DUE = """WITH due AS (
    SELECT id, wake_at FROM {schema}.sagas WHERE wake_at <= $1 ORDER BY wake_at, id LIMIT $2
    FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.sagas AS saga SET wake_at = $3 FROM due WHERE saga.id = due.id RETURNING due.wake_at, due.id"""

CLAIM_UNPUBLISHED = """WITH left_over AS (
    SELECT saga_id, revision, unpublished FROM {schema}.history WHERE unpublished <= $1
    ORDER BY unpublished, saga_id, revision LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE {schema}.history AS log SET unpublished = $3 FROM left_over AS one
WHERE log.saga_id = one.saga_id AND log.revision = one.revision
RETURNING one.unpublished, one.saga_id, one.revision"""

HINT = "SELECT pg_notify({hint}, '')::text"

REVISIONS = "SELECT id, revision FROM {schema}.sagas WHERE id = ANY(%s)"
HOLDERS = """SELECT saga.name, saga.key, saga.id FROM {schema}.sagas AS saga
JOIN unnest(%s::text[], %s::text[]) AS job (name, key) ON saga.name = job.name AND saga.key = job.key"""
