"""The channels of NOTIFY on which stores of one database, and one schema in it, tell each other what is new."""

DEFAULT_SCHEMA = "saga"


def hint_channel(schema: str = DEFAULT_SCHEMA) -> str:
    """Return the channel of hints. A transaction of your own can hint as well: `SELECT pg_notify('saga.hint', '')`."""
    return f"{schema}.hint"


def rest_channel(schema: str) -> str:
    """Return the channel that tells the id of each saga that came to rest, or was deleted."""
    return f"{schema}.rest"
