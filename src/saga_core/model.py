"""What a saga is. Frozen data: whoever holds a saga holds one moment of it, and nobody can change it.

A saga is kept in two parts. Its *plan* never changes: name, context, the steps and their inputs. Its *progress*
is one small record per step. An event replaces one or two of these records and leaves the plan alone, so it costs
the same in a saga of 1,000 steps as in one of 3, to decide and to write down.

`Step` is what users see: written to define a step, read in handlers and reports with all that has become of it.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Generic, Literal, cast

from msgspec import Raw, Struct, field
from ulid import ULID

from saga_core.errors import DefinitionError, UnknownStepError
from saga_core.payload import EMPTY, decode_object, decode_payload, encode_payload

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    InputT = TypeVar("InputT", default=dict[str, object])
else:
    from typing import TypeVar

    InputT = TypeVar("InputT")

Operation = Literal["execute", "compensate"]


class SagaState(StrEnum):
    """Where a saga stands. It rests in `completed`, `compensated` and `failed`."""

    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


class StepState(StrEnum):
    """Where a step stands. `failed` is a failed action, or a compensation that failed for good."""

    PENDING = "pending"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"


RESTING = frozenset({SagaState.COMPLETED, SagaState.COMPENSATED, SagaState.FAILED})
ACTIVE = frozenset({SagaState.STARTED, SagaState.COMPENSATING})


class Failure(Struct, frozen=True, gc=False, omit_defaults=True):
    """Why a handler failed. The fields are those of `StepError`; `details` is a JSON object."""

    code: str
    message: str
    retryable: bool = False
    details: Raw = EMPTY  # not `Raw | None`: msgspec reads that as null only


class Step(Struct, Generic[InputT], frozen=True, kw_only=True):
    """One local transaction of a saga, and what undoes it.

    To define a step give `name`, `action`, `compensation` and `input` (a dict, Struct or dataclass). The other
    fields tell what has become of it. Times are seconds since 1970, UTC. `output` is what the action returned,
    empty until then.
    """

    name: str
    action: str
    compensation: str | None = None
    input: InputT = field(default_factory=lambda: cast("InputT", {}))
    id: str = ""
    state: StepState = StepState.PENDING
    attempt: int = 0
    compensation_attempt: int = 0
    output: dict[str, object] = {}
    error: Failure | None = None
    executed_at: float | None = None

    def idempotency_key(self, operation: Operation = "execute") -> str:
        """Return a key to hand to outside services: the same over all attempts and redeliveries of this step."""
        return f"{self.id}.{operation}"


class StepPlan(Struct, frozen=True, gc=False, omit_defaults=True):
    """The part of a step that never changes."""

    name: str
    action: str
    compensation: str | None = None
    input: Raw = EMPTY


class Plan(Struct, frozen=True, dict=True):
    """The part of a saga that never changes. `id` is a ULID, `created_at` seconds since 1970, UTC."""

    id: str
    name: str
    steps: tuple[StepPlan, ...]
    context: Raw
    created_at: float

    @cached_property
    def positions(self) -> dict[str, int]:
        """Each step's place in `steps`, by its name."""
        return {step.name: position for position, step in enumerate(self.steps)}


class Progress(Struct, frozen=True, gc=False, omit_defaults=True):
    """What has become of one step. Each attempt of the action, and of the compensation, has a number from 1."""

    state: StepState = StepState.PENDING
    attempt: int = 0
    compensation_attempt: int = 0
    output: Raw = EMPTY
    error: Failure | None = None
    executed_at: float | None = None


PENDING = Progress()

# Progress is a tuple of tuples of this length: replacing one record copies two short tuples, not one long one.
CHUNK = 32


class Saga(Struct, frozen=True):
    """A saga at one moment. `revision` counts the events applied; times are seconds since 1970, UTC.

    `context`, and the inputs and outputs of `steps`, are read anew from the kept bytes each time they are asked
    for: changing what they return changes nothing in the saga.
    """

    plan: Plan
    state: SagaState
    revision: int
    progress: tuple[tuple[Progress, ...], ...]
    updated_at: float
    completed_at: float | None = None

    @property
    def id(self) -> str:
        """The saga's ULID."""
        return self.plan.id

    @property
    def name(self) -> str:
        """What kind of saga it is, as given to `start`."""
        return self.plan.name

    @property
    def created_at(self) -> float:
        """When it was started."""
        return self.plan.created_at

    @property
    def context(self) -> dict[str, object]:
        """The data that all steps share, as a fresh copy."""
        return decode_object(self.plan.context)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps as they stand, in order."""
        return tuple(
            self._view(position, decode_object(plan.input)) for position, plan in enumerate(self.plan.steps)
        )

    def step(self, name: str, input_type: type[InputT] | None = None) -> "Step[InputT]":
        """Return one step as it stands, its input read into `input_type` (by default a dict).

        Raises: UnknownStepError; PayloadError when the input does not fit the type.
        """
        position = self.position(name)
        raw = self.plan.steps[position].input
        if input_type is None:
            return self._view(position, cast("InputT", decode_object(raw)))
        what = f"The input of step {name!r} of saga {self.id}"
        return self._view(position, decode_payload(raw, input_type, what))

    def position(self, name: str) -> int:
        """Return a step's place in the plan.

        Raises: UnknownStepError.
        """
        try:
            return self.plan.positions[name]
        except KeyError:
            known = ", ".join(step.name for step in self.plan.steps[:20])
            raise UnknownStepError(
                f"Saga {self.id} ({self.name}) has no step {name!r}; it has: {known}"
            ) from None

    def progress_of(self, name: str) -> Progress:
        """Return what has become of one step.

        Raises: UnknownStepError.
        """
        position = self.position(name)
        return self.progress[position // CHUNK][position % CHUNK]

    @property
    def is_completed(self) -> bool:
        """Whether every step has completed."""
        return self.state is SagaState.COMPLETED

    @property
    def is_failed(self) -> bool:
        """Whether the saga rests half undone, because a compensation failed for good."""
        return self.state is SagaState.FAILED

    @property
    def is_compensating(self) -> bool:
        """Whether completed steps are being undone."""
        return self.state is SagaState.COMPENSATING

    @property
    def is_compensated(self) -> bool:
        """Whether everything that could be undone is undone."""
        return self.state is SagaState.COMPENSATED

    @property
    def at_rest(self) -> bool:
        """Whether nothing further happens by itself."""
        return self.state in RESTING

    def _view(self, position: int, input_: InputT) -> "Step[InputT]":
        plan = self.plan.steps[position]
        progress = self.progress[position // CHUNK][position % CHUNK]
        return Step(
            name=plan.name,
            action=plan.action,
            compensation=plan.compensation,
            input=input_,
            id=_step_id(self.id, position),
            state=progress.state,
            attempt=progress.attempt,
            compensation_attempt=progress.compensation_attempt,
            output=decode_object(progress.output),
            error=progress.error,
            executed_at=progress.executed_at,
        )


def plan_saga(name: str, steps: "Sequence[Step[object]]", context: object, *, id: str, at: float) -> Plan:
    """Check a definition and write its payloads down.

    Raises: DefinitionError, PayloadError; both name the saga and the step.
    """
    where = f"Saga {name!r}"
    if not _usable(name):
        raise DefinitionError(f"A saga needs a name, not {name!r}")
    try:
        ULID.from_str(id)
    except (TypeError, ValueError) as error:
        raise DefinitionError(f"{where}: the id {id!r} is not a ULID") from error
    if not steps:
        raise DefinitionError(f"{where} has no steps; give at least one")
    seen: set[str] = set()
    for place, step in enumerate(steps, 1):
        if not _usable(step.name) or not _usable(step.action):
            raise DefinitionError(
                f"{where}: step {place} needs both a name and an action, not {step.name!r} and {step.action!r}"
            )
        if step.compensation is not None and not _usable(step.compensation):
            raise DefinitionError(
                f"{where}: step {step.name!r} cannot have the compensation {step.compensation!r}; "
                "give a name, or leave it out"
            )
        if step.name in seen:
            raise DefinitionError(f"{where} has two steps named {step.name!r}; names must differ")
        seen.add(step.name)
    return Plan(
        id=id,
        name=name,
        steps=tuple(
            StepPlan(
                step.name,
                step.action,
                step.compensation,
                encode_payload(step.input, f"{where}: the input of step {step.name!r}"),
            )
            for step in steps
        ),
        context=encode_payload(context, f"{where}: the context"),
        created_at=at,
    )


def _usable(name: object) -> bool:
    """Whether a name can be kept and sent: text that is not empty and that UTF-8 can hold."""
    try:
        return isinstance(name, str) and name.encode() != b""
    except UnicodeEncodeError:
        return False


def _step_id(saga_id: str, position: int) -> str:
    """Derive a step's ULID from its saga's: nothing to store, and the same on every machine.

    Counting up from the saga's id would not do: ULIDs made within one millisecond count up too, and the steps of
    two sagas would share their ids, and so their idempotency keys.
    """
    saga = ULID.from_str(saga_id).bytes
    return str(
        ULID.from_bytes(saga[:6] + blake2b(saga + position.to_bytes(4, "big"), digest_size=10).digest())
    )
