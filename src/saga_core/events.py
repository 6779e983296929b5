"""What happened. An event is data from outside: it carries its own time, and is kept in the saga's history.

Adding a field with a default is compatible with stored histories; renaming or removing one is not.
"""

from msgspec import Raw, Struct

from saga_core.model import Failure


class StepSucceeded(Struct, frozen=True, gc=False, tag="step_succeeded"):
    """An action returned its output."""

    step: str
    attempt: int
    output: Raw
    at: float


class StepFailed(Struct, frozen=True, gc=False, tag="step_failed"):
    """An action failed."""

    step: str
    attempt: int
    error: Failure
    at: float


class CompensationSucceeded(Struct, frozen=True, gc=False, tag="compensation_succeeded"):
    """A compensation returned: its step is undone."""

    step: str
    attempt: int
    at: float


class CompensationFailed(Struct, frozen=True, gc=False, tag="compensation_failed"):
    """A compensation failed: its step is not undone."""

    step: str
    attempt: int
    error: Failure
    at: float


class CompensationRequested(Struct, frozen=True, gc=False, tag="compensation_requested"):
    """Somebody asked for the saga to be undone, or for a failed undoing to be tried again."""

    reason: str
    at: float


Event = StepSucceeded | StepFailed | CompensationSucceeded | CompensationFailed | CompensationRequested
