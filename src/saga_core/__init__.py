"""Decides what a saga does next: a pure state machine, free of I/O, clocks and chance."""

from saga_core.codec import (
    decode_command,
    decode_event,
    decode_saga,
    encode_command,
    encode_event,
    encode_saga,
)
from saga_core.commands import Command, Compensate, Execute
from saga_core.errors import CodecError, DefinitionError, PayloadError, SagaError, StepError, UnknownStepError
from saga_core.events import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    StepFailed,
    StepSucceeded,
)
from saga_core.history import consequences, fold
from saga_core.machine import awaits, child_saga, new_saga, outstanding, transition, wake_at
from saga_core.moves import Transition
from saga_core.model import Progress, Saga
from saga_core.plan import ChildSaga, Failure, Options, Plan, Step, StepPlan
from saga_core.states import Operation, SagaState, StepState
from saga_core.payload import decode_payload, encode_payload

__all__ = [
    "CodecError",
    "Command",
    "Compensate",
    "CompensationFailed",
    "CompensationRequested",
    "CompensationSucceeded",
    "DefinitionError",
    "Event",
    "Execute",
    "Failure",
    "Operation",
    "PayloadError",
    "Plan",
    "Progress",
    "Saga",
    "SagaError",
    "SagaState",
    "Step",
    "StepError",
    "StepFailed",
    "StepPlan",
    "StepState",
    "StepSucceeded",
    "Transition",
    "UnknownStepError",
    "awaits",
    "consequences",
    "decode_command",
    "decode_event",
    "decode_payload",
    "decode_saga",
    "encode_command",
    "encode_event",
    "encode_payload",
    "encode_saga",
    "fold",
    "new_saga",
    "outstanding",
    "transition",
]
