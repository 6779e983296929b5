"""What PostgreSQL and psycopg complain of, in the words of `saga_amqp.errors`, and what to do about it."""

from saga_amqp.errors import SchemaError, StoreError, StoreUnavailableError
from saga_amqp.stores.postgres.driver import psycopg

# https://www.postgresql.org/docs/current/errcodes-appendix.html
DEADLOCK, SERIALIZATION = "40P01", "40001"
READ_ONLY = "25006"
UNAVAILABLE = {
    "53100": "its disk is full: make room, and it goes on",
    "53200": "it is out of memory",
    "55P03": "somebody holds a lock on the sagas for too long: look into pg_stat_activity for who it is",
    "57014": "it was too slow, or somebody cancelled the statement: look into pg_stat_activity for what keeps it busy",
    "57P01": "it is shutting down, or somebody ended the connection; try again",
    "57P02": "it has crashed and recovers; try again",
    "57P03": "it is starting up or shutting down; try again",
    READ_ONLY: "it takes no writes: connect to the primary (target_session_attrs=read-write in the URL)",
    SERIALIZATION: "too many transactions were in each other's way; try again",
    DEADLOCK: "too many transactions were in each other's way; try again",
}
UNAVAILABLE_CLASSES = {
    "08": "the connection was lost; try again",
    "25": "it ended the transaction; try again",
    "53": "it is short of resources",
    "57": "an operator intervened; try again",
    "58": "its disk or system fails: look into its log",
}
MISSING = {"3F000", "42P01", "42703"}
NOT_ALLOWED = "42501"


def is_collision(error: "psycopg.Error") -> bool:
    """Whether the transaction was undone only because of another one, and can simply be done again."""
    return error.sqlstate in {DEADLOCK, SERIALIZATION}


def is_lost(error: "psycopg.Error") -> bool:
    """Whether the connection went away, so that it is not known what was done."""
    return error.sqlstate is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def not_reached(error: "psycopg.Error", where: object) -> StoreUnavailableError:
    """Say that no connection could be made. libpq does not tell why but in words, of the server's own language."""
    return StoreUnavailableError(
        f"No connection to {where}: see that it runs, has a connection left (max_connections), and that host, port, "
        f"user, password and database are right ({_text(error)})"
    )


def translate(error: "psycopg.Error", where: object) -> StoreError:
    """Say what a statement failed of."""
    if is_lost(error):
        return StoreUnavailableError(
            f"The connection to {where} was lost, and what was being written may be there or not; try again "
            f"({_text(error)})"
        )
    code = error.sqlstate or ""
    if advice := UNAVAILABLE.get(code) or UNAVAILABLE_CLASSES.get(code[:2]):
        return StoreUnavailableError(f"{where} cannot do it now: {advice} ({_text(error)})")
    if code in MISSING:
        return SchemaError(f"The tables in {where} are not there: run `saga db upgrade URL` ({_text(error)})")
    if code == NOT_ALLOWED:
        return StoreError(f"The user may not do this in {where}; grant the right to ({_text(error)})")
    return StoreError(f"{where} refused: {_text(error)}")


def _text(error: "psycopg.Error") -> str:
    return " ".join(str(error).split()) or type(error).__name__
