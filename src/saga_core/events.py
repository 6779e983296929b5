"""What happened. An event is data from outside: it carries its own time, and is kept in the saga's history.

Adding a field with a default is compatible with stored histories; renaming or removing one is not.
"""

from typing import Literal

from msgspec import Raw, Struct

from saga_core.payload import EMPTY
from saga_core.plan import Failure
from saga_core.states import SagaState


class StepSucceeded(Struct, frozen=True, gc=False, tag="step_succeeded"):
    """An action returned its output."""

    step: str
    attempt: int
    output: Raw
    at: float


class StepFailed(Struct, frozen=True, gc=False, tag="step_failed", omit_defaults=True):
    """An action failed. `unknown`: nobody can say whether it had its effect, for example because its worker is lost."""

    step: str
    attempt: int
    error: Failure
    at: float
    unknown: bool = False


class StepSkipped(Struct, frozen=True, gc=False, tag="step_skipped"):
    """An action found nothing to do."""

    step: str
    attempt: int
    reason: str
    at: float


class StepDeferred(Struct, frozen=True, gc=False, tag="step_deferred"):
    """An action answered "later": its result will come from outside, with the step's token."""

    step: str
    attempt: int
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


class CompensationDeferred(Struct, frozen=True, gc=False, tag="compensation_deferred"):
    """A compensation answered "later"."""

    step: str
    attempt: int
    at: float


class ChildRested(Struct, frozen=True, gc=False, tag="child_rested"):
    """The child saga that an attempt of a step had started came to rest. `asked` is that of `Report`."""

    step: str
    attempt: int
    child: str
    state: SagaState
    at: float
    asked: int = 0


class TimePassed(Struct, frozen=True, gc=False, tag="time_passed"):
    """It is `at` now: whatever was due until then is due."""

    at: float


class CompensationRequested(Struct, frozen=True, gc=False, tag="compensation_requested", omit_defaults=True):
    """Somebody asked for the saga to be undone, or for a failed undoing to be tried again.

    `attempt` numbers the orders of its parent to undo a child; 0 is a person's.
    """

    reason: str
    at: float
    by: str = ""
    attempt: int = 0


class CancelRequested(Struct, frozen=True, gc=False, tag="cancel_requested", omit_defaults=True):
    """Somebody asked for a saga that has not ended yet to be given up and undone."""

    reason: str
    at: float
    by: str = ""


class RetryRequested(Struct, frozen=True, gc=False, tag="retry_requested", omit_defaults=True):
    """Somebody asked for what failed for good, or waits for its next attempt, to be tried now."""

    reason: str
    at: float
    by: str = ""


class StepResolved(Struct, frozen=True, gc=False, tag="step_resolved", omit_defaults=True):
    """Somebody knows how a step ended, and says so in its worker's place."""

    step: str
    state: Literal["completed", "failed", "compensated"]
    reason: str
    at: float
    by: str = ""
    output: Raw = EMPTY


class SkipRequested(Struct, frozen=True, gc=False, tag="skip_requested", omit_defaults=True):
    """Somebody asked to do without a step."""

    step: str
    reason: str
    at: float
    by: str = ""


class SuspendRequested(Struct, frozen=True, gc=False, tag="suspend_requested", omit_defaults=True):
    """Somebody asked that nothing new starts."""

    reason: str
    at: float
    by: str = ""


class ResumeRequested(Struct, frozen=True, gc=False, tag="resume_requested", omit_defaults=True):
    """Somebody asked a suspended saga to go on."""

    reason: str
    at: float
    by: str = ""


Event = (
    StepSucceeded
    | StepFailed
    | StepSkipped
    | StepDeferred
    | CompensationSucceeded
    | CompensationFailed
    | CompensationDeferred
    | ChildRested
    | TimePassed
    | CompensationRequested
    | CancelRequested
    | RetryRequested
    | StepResolved
    | SkipRequested
    | SuspendRequested
    | ResumeRequested
)
