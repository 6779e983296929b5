"""What a saga is. Frozen data: whoever holds a saga holds one moment of it, and nobody can change it.

A saga is kept in two parts. Its *plan* never changes (`plan`). Its *progress* is one small record per step. An event
replaces a few of these records and leaves the plan alone, so it costs the same in a saga of 1,000 steps as in one
of 3, to decide and to write down.
"""

from collections.abc import Iterator
from math import inf
from typing import Annotated, cast

from msgspec import Meta, Raw, Struct

from saga_core.graph import CHUNK
from saga_core.ids import Origin, token_of
from saga_core.payload import EMPTY, decode_object, decode_payload
from saga_core.plan import ChildSaga, Failure, InputT, Plan, Step
from saga_core.states import ENDED_WELL, RESTING, Operation, SagaState, StepState

Count = Annotated[int, Meta(ge=0, lt=2**32)]
"""A number of attempts or of steps. What is read has to be one; what is counted is."""


class Progress(Struct, frozen=True, gc=False, omit_defaults=True):
    """What has become of one step. Each attempt of the action, and of the compensation, has a number from 1.

    * `met`: how many of the steps that it depends on have ended well; kept where there are several.
    * `standing`: how many steps that depend on it have begun and are not undone; -1 when it was passed over.
    * `waiting`: the attempt is not out yet, and goes out at `until`. Else `until` is when the attempt times out.
    * `expires`: when the step times out, all attempts together.
    * `deferred`: the handler has answered "later"; a callback will bring the result.
    * `unknown`: an attempt ended without a known outcome, so it may have had its effect.
    * `skip`: somebody asked to skip the step when its turn comes.
    * `forgiven`: how many attempts no longer count against the retry policy, for a person asked for more.
    * `cause`: with what error a step of unknown outcome was given up; `error` may have become its compensation's.
    """

    state: StepState = StepState.PENDING
    attempt: Count = 0
    compensation_attempt: Count = 0
    output: Raw = EMPTY
    error: Failure | None = None
    executed_at: float | None = None
    met: Count = 0
    standing: int = 0
    until: float | None = None
    expires: float | None = None
    waiting: bool = False
    deferred: bool = False
    unknown: bool = False
    skip: bool = False
    forgiven: Count = 0
    cause: Failure | None = None

    @property
    def is_out(self) -> bool:
        """Whether a command for it is in flight, or should be."""
        active = self.state is StepState.STARTED or self.state is StepState.COMPENSATING
        return active and not self.waiting and not self.deferred


PENDING = Progress()
FIRST_ATTEMPT = Progress(StepState.STARTED, 1)

# Neither the records here nor the chunks made of them are one object many times over: a processor counts as many
# references to one object slower than to several, because each count waits for the one before it.
_UNTOUCHED = tuple([Progress() for _ in range(CHUNK)])

Chunks = tuple[tuple[Progress, ...], ...]


class Saga(Struct, frozen=True, gc=False):
    """A saga at one moment. `revision` counts the events applied; times are seconds since 1970, UTC.

    `context`, and the inputs and outputs of `steps`, are read anew from the kept bytes each time they are asked
    for: changing what they return changes nothing in the saga. `completed_at` is when it came to rest; what
    people do to a failed saga that leaves it failed does not count. `asked` is the latest attempt of its parent to undo
    it, should it be a child.

    The last six fields follow from the others, and save looking at every step. Five are masks with a bit per step:
    `running` has been started, `undoing` is being compensated, `ready` could start and may not yet, `tips` has ended
    with nothing standing on it, `stuck` has failed in a way that only a person can mend. `wakes` is the earliest
    `until` in each chunk of progress.
    """

    plan: Plan
    state: SagaState
    revision: int
    progress: Chunks
    updated_at: float
    completed_at: float | None = None
    suspended: bool = False
    asked: int = 0
    running: int = 0
    undoing: int = 0
    ready: int = 0
    tips: int = 0
    stuck: int = 0
    wakes: tuple[float, ...] = ()

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
    def tags(self) -> dict[str, str]:
        """The business keys that it was given."""
        return dict(self.plan.options.tags)

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
        position = self.plan.position(name)
        raw = self.plan.steps[position].input
        if input_type is None:
            return self._view(position, cast("InputT", decode_object(raw)))
        input_ = decode_payload(raw, input_type, "The input of step %r of saga %s", name, self.plan.id)
        return self._view(position, input_)

    def progress_of(self, name: str) -> Progress:
        """Return what has become of one step.

        Raises: UnknownStepError.
        """
        return self.record(self.plan.position(name))

    def record(self, position: int) -> Progress:
        """Return what has become of the step at a position."""
        return self.progress[position // CHUNK][position % CHUNK]

    def records(self) -> Iterator[Progress]:
        """Go through what has become of every step, in order."""
        return (record for chunk in self.progress for record in chunk)

    @property
    def is_completed(self) -> bool:
        """Whether every step has ended well."""
        return self.state is SagaState.COMPLETED

    @property
    def is_failed(self) -> bool:
        """Whether the saga rests half way, and needs a person."""
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

    @property
    def past_pivot(self) -> bool:
        """Whether the pivot has ended well: from then on the saga goes forward only."""
        pivot = self.plan.pivot
        return pivot is not None and self.record(pivot).state in ENDED_WELL

    def token(self, name: str, operation: Operation) -> str:
        """Return the token that brings the result of the present attempt from outside, should it be deferred.

        Raises: UnknownStepError.
        """
        position = self.plan.position(name)
        record = self.record(position)
        attempt = record.attempt if operation == "execute" else record.compensation_attempt
        return token_of(Origin(self.plan.id, position, self.plan.secret), operation, attempt)

    def _view(self, position: int, input_: InputT) -> "Step[InputT]":
        plan = self.plan.steps[position]
        record = self.record(position)
        return Step(
            name=plan.name,
            action=plan.action,
            compensation=plan.compensation,
            input=input_,
            depends_on=plan.depends_on,
            when=plan.when,
            retry=plan.retry,
            compensation_retry=plan.compensation_retry,
            timeout=plan.timeout,
            total_timeout=plan.total_timeout,
            compensation_timeout=plan.compensation_timeout,
            pivot=plan.pivot,
            child=None if plan.child is None else ChildSaga(plan.child.name, ()),
            state=record.state,
            attempt=record.attempt,
            compensation_attempt=record.compensation_attempt,
            output=decode_object(record.output),
            error=record.error,
            executed_at=record.executed_at,
            origin=Origin(self.plan.id, position, self.plan.secret),
        )


def untouched(steps: int) -> Chunks:
    """Return the progress of so many steps none of which has begun."""
    starts = range(0, steps, CHUNK)
    return tuple([tuple([*_UNTOUCHED[: steps - start]]) for start in starts])


def rebuild(
    plan: Plan,
    state: SagaState,
    revision: int,
    progress: Chunks,
    updated_at: float,
    completed_at: float | None,
    suspended: bool,
    asked: int = 0,
) -> Saga:
    """Return the saga of which this is kept, with everything that follows from it worked out."""
    saga = Saga(plan, state, revision, progress, updated_at, completed_at, suspended, asked)
    running = undoing = ready = tips = stuck = 0
    past_pivot, dependencies = saga.past_pivot, plan.graph.dependencies
    for position, record in enumerate(saga.records()):
        bit, of = 1 << position, record.state
        if of is StepState.STARTED:
            running |= bit
        elif of is StepState.COMPENSATING:
            undoing |= bit
        elif of is StepState.FAILED and (past_pivot or record.compensation_attempt > record.forgiven):
            stuck |= bit
        elif of is StepState.FAILED and record.compensation_attempt:
            tips |= bit  # asked for again, and waiting for its turn
        elif (of in ENDED_WELL or (of is StepState.FAILED and record.unknown)) and record.standing == 0:
            tips |= bit
        elif (
            of is StepState.PENDING
            and state is SagaState.STARTED
            and all(saga.record(other).state in ENDED_WELL for other in dependencies[position])
        ):
            ready |= bit
    wakes = tuple(earliest(chunk) for chunk in progress)
    return Saga(
        plan,
        state,
        revision,
        progress,
        updated_at,
        completed_at,
        suspended,
        asked,
        running,
        undoing,
        ready,
        tips,
        stuck,
        wakes,
    )


def earliest(chunk: tuple[Progress, ...]) -> float:
    """Return the earliest `until` in a chunk of progress, infinity where there is none."""
    return min((record.until for record in chunk if record.until is not None), default=inf)
