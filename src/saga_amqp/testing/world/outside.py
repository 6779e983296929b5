"""The world outside that calls back: with the result of what handlers have deferred, in time or late, once or twice."""

from typing import TYPE_CHECKING

import trio

from saga_amqp.errors import SagaNotFoundError, StoreError, TransportError
from saga_amqp.testing.world.services import Call
from saga_core import SagaError, StepError, TokenError, saga_of

if TYPE_CHECKING:
    from saga_amqp.testing.world.process import Life
    from saga_amqp.testing.world.world import World

PAUSE = 1.0
"""Seconds before the outside world tries again to get rid of a result."""


class Outside:
    """Keeps calling until somebody has taken the result: a webhook that is tried again."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._tasks: trio.Nursery | None = None
        self.pending = 0

    async def run(self) -> None:
        """Make the calls. Cancel it at any time."""
        async with trio.open_nursery() as self._tasks:
            await trio.sleep_forever()

    def ask(self, token: str, call: Call) -> None:
        """Have a result brought back with a token."""
        assert self._tasks is not None
        self.pending += 1
        self._tasks.start_soon(self._answer, token, call)

    async def _answer(self, token: str, call: Call) -> None:
        try:
            await trio.sleep(call.after)
            if call.forged:
                await self._bring(token[:-1] + ("0" if token[-1] != "0" else "1"), call, forged=True)
            for _ in range(call.times):
                await self._bring(token, call, forged=False)
        finally:
            self.pending -= 1

    async def _bring(self, token: str, call: Call, *, forged: bool) -> None:
        self._world.checker.touched(saga_of(token))
        while True:
            life = await self._world.somebody()
            taken: list[object] = []

            async def bring(life: "Life" = life, taken: list[object] = taken) -> None:
                try:
                    if call.outcome == "well":
                        taken.append(await life.manager.complete(token, {"from": "outside"}))
                    else:
                        error = StepError(call.outcome, "says the outside", retryable=call.outcome == "busy")
                        taken.append(await life.manager.fail(token, error))
                except TokenError as error:
                    taken.append(error)
                except (StoreError, TransportError) as error:
                    if isinstance(error, SagaNotFoundError):
                        taken.append(error)

            await life.perform(bring)
            if taken:
                if isinstance(taken[0], SagaError) is not forged:
                    self._world.fail(f"a {'forged' if forged else 'good'} token was {_said(taken[0])}")
                return
            await trio.sleep(PAUSE)


def _said(answer: object) -> str:
    return f"refused: {answer}" if isinstance(answer, SagaError) else "taken"
