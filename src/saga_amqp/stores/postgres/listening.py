"""Hears what other processes tell: which sagas came to rest, and that there may be something to claim.

LISTEN on a connection of its own, waited for in the event loop, without a thread. What is told while there is no
connection is lost, so whoever waits has to look from time to time as well.
"""

import logging
from collections.abc import Callable

import anyio

from saga_amqp.backoff import pauses
from saga_amqp.errors import StoreError
from saga_amqp.stores.postgres.address import Address
from saga_amqp.stores.postgres.channels import hint_channel, rest_channel
from saga_amqp.stores.postgres.driver import psycopg, sql
from saga_amqp.stores.postgres.failures import translate
from saga_amqp.stores.postgres.link import Connection, Link
from saga_amqp.stores.rows import Known
from saga_amqp.stores.waiting import Hints, Waiting

logger = logging.getLogger("saga_amqp.stores.postgres")


class Listener:
    """Wakes those who wait in this process for what others do.

    `own` gives the process of the server that works for this store: what that one did is known already. As long as it
    `hears`, no saga is `known` to run that others have ended.
    """

    def __init__(
        self,
        link: Link,
        address: Address,
        waiting: Waiting,
        hints: Hints,
        known: Known,
        own: Callable[[], int],
    ) -> None:
        self._link = link
        self._address = address
        self._waiting = waiting
        self._hints = hints
        self._known = known
        self._own = own
        self._rest = rest_channel(address.schema)
        self._hint = hint_channel(address.schema)
        self._is_deaf = False
        self.hears = False

    async def run(self) -> None:
        """Listen until cancelled."""
        pause = pauses()
        while True:
            try:
                connection = await self._link.run(self._listen)
                # Something may have happened before.
                self._known.clear()
                self.hears = True
                self._waiting.look_again()
                self._hints.give()
                pause = pauses()
                self._is_deaf = False
                await self._hear(connection)
            except psycopg.Error as error:
                self._complain(translate(error, self._address))
            except StoreError as error:
                self._complain(error)
            self.hears = False
            self._link.close()
            await anyio.sleep(next(pause))

    def _listen(self, connection: Connection) -> Connection:
        for channel in (self._rest, self._hint):
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        return connection

    async def _hear(self, connection: Connection) -> None:
        """Hear until the connection is lost. Raises: psycopg.Error."""
        server = connection.pgconn
        rest = self._rest.encode()
        while True:
            await anyio.wait_readable(server.socket)
            server.consume_input()
            while (told := server.notifies()) is not None:
                if told.be_pid == self._own():
                    continue
                if told.relname == rest:
                    saga_id = told.extra.decode()
                    self._known.forget(saga_id)
                    self._waiting.look_again([saga_id])
                else:
                    self._hints.give()

    def _complain(self, error: StoreError) -> None:
        level = logging.DEBUG if self._is_deaf else logging.WARNING  # once is enough
        self._is_deaf = True
        logger.log(
            level,
            "What other processes do is noticed later than usual, until they are heard again: %s",
            error,
        )
