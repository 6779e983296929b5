"""Talks to the server in the event loop: prepared statements, in one transaction and, where libpq can, one round trip.

No thread takes part, so nothing is handed over: what a batch costs beside the server's work is one write to a socket,
and one read when the answer is there. `psycopg.pq` is libpq itself, and what may be done when is said there:
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio

from saga_amqp.stores.postgres.driver import PGresult, adapt, capabilities, errors, psycopg

Row = tuple[Any, ...]
Prepared = tuple[bytes, Sequence[bytes]]
"""A statement with its placeholders as $1, $2 …, and their values in binary: see `columns`."""

BINARY = psycopg.pq.Format.BINARY
Status = psycopg.pq.ExecStatus


class Conversation:
    """What is said over one connection, which nobody else uses meanwhile. It knows what has been prepared there.

    Whatever else goes wrong while `execute` waits, and when it is cancelled: close the connection.
    """

    def __init__(self, connection: "psycopg.Connection[Row]") -> None:
        self._server = connection.pgconn
        self._reader = adapt.Transformer(connection)
        self._names: dict[bytes, bytes] = {}

    async def execute(self, statements: Sequence[Prepared]) -> list[list[Row]]:
        """Execute statements in one transaction, each prepared once; return the rows of each. Raises: psycopg.Error."""
        if capabilities.has_pipeline():
            return await self._together(statements)
        if len(statements) == 1:
            return [await self._alone(*statements[0])]
        await self._alone(b"BEGIN")
        rows = [await self._alone(*statement) for statement in statements]
        await self._alone(b"COMMIT")
        return rows

    async def _together(self, statements: Sequence[Prepared]) -> list[list[Row]]:
        # All that comes before a sync is one transaction, without being told so.
        server, new = self._server, dict[bytes, bytes]()
        server.enter_pipeline_mode()
        for text, values in statements:
            name = self._names.get(text) or new.get(text)
            if name is None:
                name = new[text] = b"saga_%d" % (len(self._names) + len(new))
                server.send_prepare(name, text)
            server.send_query_prepared(name, values, [BINARY] * len(values), BINARY)
        server.pipeline_sync()
        results = await self._results(Status.PIPELINE_SYNC)
        server.exit_pipeline_mode()
        if new:  # and stays prepared, whatever has become of the transaction
            done = sum(result.status == Status.COMMAND_OK for result in results)
            self._names |= dict(list(new.items())[:done])
        return [self._rows(result) for result in _checked(results) if result.status == Status.TUPLES_OK]

    async def _alone(self, text: bytes, values: Sequence[bytes] = ()) -> list[Row]:
        self._server.send_query_params(text, values, None, [BINARY] * len(values), BINARY)
        return [row for result in _checked(await self._results(None)) for row in self._rows(result)]

    async def _results(self, last: "Status | None") -> "list[PGresult]":
        """Send what there is to send, and return what comes before the last result: one of this status, or none."""
        server, results = self._server, list[PGresult]()
        try:
            while server.flush():
                # The server may wait for its answers to be read before it reads on.
                await _readable_or_writable(server.socket)
                server.consume_input()
            while True:
                while server.is_busy():
                    await anyio.wait_readable(server.socket)
                    server.consume_input()
                result = server.get_result()
                if (result and result.status) == last:
                    return results
                if result is not None:
                    results.append(result)
                elif server.status != psycopg.pq.ConnStatus.OK:
                    raise psycopg.OperationalError("the connection is closed")
        except psycopg.OperationalError:
            _checked(results)  # what the server has said before it hung up tells more
            raise

    def _rows(self, result: "PGresult") -> list[Row]:
        self._reader.set_pgresult(result)
        return self._reader.load_rows(0, result.ntuples, tuple)


def _checked(results: "list[PGresult]") -> "list[PGresult]":
    for result in results:
        if result.status == Status.FATAL_ERROR:
            raise errors.error_from_result(result)
    return results


async def _readable_or_writable(descriptor: int) -> None:
    async with anyio.create_task_group() as tasks:

        async def either(wait: Callable[[int], Awaitable[None]]) -> None:
            await wait(descriptor)
            tasks.cancel_scope.cancel()

        tasks.start_soon(either, anyio.wait_readable)
        tasks.start_soon(either, anyio.wait_writable)
