"""Tokens of deferred steps: what an outside system hands back to say how a step ended.

A token names the saga, the step, the operation and the attempt, and proves with a digest over the saga's secret that
it was made here. It is the same whenever it is asked for, so a handler that runs twice hands out the same one.
"""

from hmac import compare_digest

from msgspec import Raw, Struct

from saga_core.errors import TokenError
from saga_core.events import CompensationFailed, CompensationSucceeded, StepFailed, StepSucceeded
from saga_core.ids import CANONICAL_ULID, Origin, token_of
from saga_core.model import Saga
from saga_core.payload import EMPTY
from saga_core.plan import Failure
from saga_core.states import Operation

_OPERATIONS: dict[str, Operation] = {"execute": "execute", "compensate": "compensate"}


class Callback(Struct, frozen=True):
    """What a token stands for."""

    saga: str
    step: str
    operation: Operation
    attempt: int


def saga_of(token: str) -> str:
    """Return the id of the saga that a token belongs to, without checking the token.

    Raises: TokenError.
    """
    saga_id, dot, _ = token.partition(".")
    if not dot or CANONICAL_ULID.fullmatch(saga_id) is None:
        raise TokenError("This is no token of a deferred step")
    return saga_id


def redeem(saga: Saga, token: str) -> Callback:
    """Check a token against its saga. An old one is good too: what it brings is then late, and changes nothing.

    Raises: TokenError.
    """
    error = TokenError(f"This token does not belong to a step of saga {saga.id}")
    try:
        saga_id, position_text, what, attempt_text, _ = token.split(".")
        position, attempt, proof = int(position_text), int(attempt_text), token.encode()
    except ValueError:
        raise error from None
    operation = _OPERATIONS.get(what)
    if saga_id != saga.id or not 0 <= position < len(saga.plan.steps) or operation is None:
        raise error
    wanted = token_of(Origin(saga_id, position, saga.plan.secret), operation, attempt)
    if not compare_digest(wanted.encode(), proof):
        raise error
    return Callback(saga_id, saga.plan.steps[position].name, operation, attempt)


def succeeded(callback: Callback, at: float, output: Raw = EMPTY) -> StepSucceeded | CompensationSucceeded:
    """Return the event that says a deferred step, or its compensation, has ended well."""
    if callback.operation == "execute":
        return StepSucceeded(callback.step, callback.attempt, output, at)
    return CompensationSucceeded(callback.step, callback.attempt, at)


def failed(callback: Callback, at: float, error: Failure) -> StepFailed | CompensationFailed:
    """Return the event that says a deferred step, or its compensation, has failed."""
    if callback.operation == "execute":
        return StepFailed(callback.step, callback.attempt, error, at)
    return CompensationFailed(callback.step, callback.attempt, error, at)
