"""The tables, and how those of an older release become those of this one.

Each migration is a script, applied in a transaction of its own, once, in order; `migrations` in the schema itself
notes which have been. A migration that was released is never changed: add another.
"""

from typing import LiteralString
from zlib import crc32

from saga_amqp.errors import SchemaError
from saga_amqp.stores.postgres.address import Address, parse
from saga_amqp.stores.postgres.channels import DEFAULT_SCHEMA
from saga_amqp.stores.postgres.driver import psycopg, sql
from saga_amqp.stores.postgres.failures import not_reached, translate
from saga_amqp.stores.postgres.link import Connection
from saga_amqp.stores.postgres.statements import compose

# Scripts run with the schema as the only place that names are looked up in.
#
# A commit changes revision, state, updated_at and base of a head, and wake_at where the saga has a timeout. As long as
# none of the columns that have changed is in an index, PostgreSQL writes the new row beside the old one and touches no
# index: so updated_at is in none, state changes once or twice in a saga's life, and pages are left a third empty.
# There is no foreign key: checking it would cost each commit a look-up and a lock of the row that it has just changed.
MIGRATIONS: tuple[LiteralString, ...] = (
    """
    CREATE TABLE sagas (
        created_at double precision NOT NULL,
        updated_at double precision NOT NULL,
        wake_at double precision,
        revision integer NOT NULL,
        base integer NOT NULL,
        id text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        key text COLLATE "C",
        tags jsonb,
        PRIMARY KEY (id) WITH (fillfactor = 90)
    ) WITH (fillfactor = 70);
    CREATE UNIQUE INDEX sagas_key ON sagas (name, key) WHERE key IS NOT NULL;
    CREATE INDEX sagas_age ON sagas (created_at, id);
    CREATE INDEX sagas_state ON sagas (state, created_at, id);
    CREATE INDEX sagas_due ON sagas (wake_at, id) WHERE wake_at IS NOT NULL;
    CREATE INDEX sagas_tags ON sagas USING gin (tags jsonb_path_ops) WHERE tags IS NOT NULL;
    COMMENT ON TABLE sagas IS 'The head of each saga: what is looked for. base is the row of history to begin from.';

    CREATE TABLE history (
        at double precision NOT NULL,
        unpublished double precision,
        revision integer NOT NULL,
        saga_id text COLLATE "C" NOT NULL,
        event bytea,
        snapshot bytea,
        PRIMARY KEY (saga_id, revision)
    );
    CREATE INDEX history_unpublished ON history (unpublished, saga_id, revision) WHERE unpublished IS NOT NULL;
    COMMENT ON TABLE history IS 'A row per commit. Read an event as convert_from(event, ''UTF8'')::json.';
    """,
)
VERSION = len(MIGRATIONS)

MISSING, NOTHING = -1, 0
FIND = "SELECT to_regclass(%s) IS NOT NULL"
READ = "SELECT coalesce(max(version), 0) FROM {schema}.migrations"
NOTE = "INSERT INTO {schema}.migrations (version) VALUES (%s)"
CREATE_SCHEMA = "CREATE SCHEMA {schema}"
CREATE_NOTES = """CREATE TABLE {schema}.migrations (
    version integer PRIMARY KEY, applied_at timestamp with time zone NOT NULL DEFAULT now()
)"""


def upgrade(url: str, *, schema: str = DEFAULT_SCHEMA) -> bool:
    """Create the tables, or bring them up to this release. Return whether there was anything to do.

    It can be repeated. Any number of processes may do it at once. It blocks: from an event loop,
    call it in a thread.

    Raises: StoreUnavailableError; SchemaError where the tables are of a newer release; StoreError, for example where
    the user may not create tables.
    """
    return upgrade_at(parse(url, schema))


def upgrade_at(address: Address) -> bool:
    """Bring the tables at an address up to this release; see `upgrade`."""
    try:
        connection = psycopg.connect("", **address.secret)
    except psycopg.Error as error:
        raise not_reached(error, address) from error
    try:
        # Each statement is to see what others have done while it waited for the lock, whatever the default is.
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        steps = 0
        while _step(connection, address):
            steps += 1
    except psycopg.Error as error:
        raise translate(error, address) from error
    finally:
        connection.close()
    return steps > 0


def check(connection: Connection, address: Address) -> None:
    """See that the tables are those of this release.

    Raises: SchemaError; psycopg.Error.
    """
    version = _version(connection, address)
    how = "run `saga db upgrade URL`, with the URL that the store has"
    if address.schema != DEFAULT_SCHEMA:
        how += f", and `--schema {address.schema}`"
    if version <= NOTHING:
        raise SchemaError(f"There are no tables for sagas in {address!r}: {how}")
    if version < VERSION:
        raise SchemaError(
            f"The tables in {address!r} are of version {version}, and this release needs {VERSION}: {how}"
        )
    if version > VERSION:
        raise _too_new(version, address)


def _step(connection: Connection, address: Address) -> bool:
    """Apply the next migration in a transaction; return whether there was one."""
    schema = sql.Identifier(address.schema)
    with connection.transaction():
        connection.execute("SET LOCAL statement_timeout = 0")  # building an index may take its time
        connection.execute(
            "SELECT pg_advisory_xact_lock(%s)", (crc32(f"saga-amqp {address.schema}".encode()),)
        )
        version = _version(connection, address)
        if version > VERSION:
            raise _too_new(version, address)
        if version == VERSION:
            return False
        if version == MISSING:
            # Not IF NOT EXISTS: that asks for the right to create schemas even where there is nothing to create.
            if (
                connection.execute(
                    "SELECT 1 FROM pg_namespace WHERE nspname = %s", (address.schema,)
                ).rowcount
                == 0
            ):
                connection.execute(sql.SQL(CREATE_SCHEMA).format(schema=schema))
            connection.execute(sql.SQL(CREATE_NOTES).format(schema=schema))
            version = NOTHING
        connection.execute(sql.SQL("SET LOCAL search_path = {schema}").format(schema=schema))
        connection.execute(MIGRATIONS[version])
        connection.execute(compose(NOTE, address.schema), (version + 1,))
    return True


def _version(connection: Connection, address: Address) -> int:
    notes = sql.Identifier(address.schema, "migrations").as_string(None)
    for (is_there,) in connection.execute(FIND, (notes,)):
        if is_there:
            rows = connection.execute(sql.SQL(READ).format(schema=sql.Identifier(address.schema)))
            return int(rows.fetchall()[0][0])
    return MISSING


def _too_new(version: int, address: Address) -> SchemaError:
    return SchemaError(
        f"The tables in {address!r} are of version {version}, and this release knows them up to {VERSION}: "
        f"use the release that made them, or a later one"
    )
