"""The states of sagas and steps. The values are what stores, messages and users see."""

from enum import StrEnum
from typing import Literal

Operation = Literal["execute", "compensate"]


class SagaState(StrEnum):
    """Where a saga stands. It rests in `completed`, `compensated` and `failed`."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


class StepState(StrEnum):
    """Where a step stands.

    `started` and `compensating` last from the first attempt to the end of the last one, the waits between attempts
    included. `failed` is an action that failed for good, or a compensation that did.
    """

    PENDING = "pending"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


RESTING = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED, SagaState.FAILED})
ACTIVE = frozenset({SagaState.STARTED, SagaState.COMPENSATING})
ENDED_WELL = frozenset({StepState.COMPLETED, StepState.SKIPPED})
