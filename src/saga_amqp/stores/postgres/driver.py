"""The way to psycopg, which only those have who asked for it: every module here imports it from this one."""

try:
    import psycopg
    from psycopg import adapt, capabilities, conninfo, errors, sql
    from psycopg.pq.abc import PGresult
except ImportError as missing:
    raise ImportError(
        "PostgresStore needs psycopg 3: install the extra, `pip install 'saga-amqp[postgres]'`"
    ) from missing

__all__ = ["PGresult", "adapt", "capabilities", "conninfo", "errors", "psycopg", "sql"]
