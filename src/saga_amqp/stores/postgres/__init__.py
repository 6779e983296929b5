"""Sagas in PostgreSQL, through psycopg 3: the extra `postgres`."""

from saga_amqp.stores.postgres.channels import hint_channel
from saga_amqp.stores.postgres.schema import upgrade
from saga_amqp.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore", "hint_channel", "upgrade"]
