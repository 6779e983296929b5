"""Handlers that are far from the store: what they are told beside the command, and what their answers become.

`Work` travels with an `Execute` or a `Compensate`, in its field `work`; a `Reply` comes back. The two, with the
commands, are the contract with participants in any language.
"""

from collections.abc import Mapping
from math import inf

from msgspec import Raw, Struct
from msgspec.structs import replace

from saga_core.commands import Carried, Compensate, CompensateChild, Execute, Reply, Report, StartChild
from saga_core.errors import PayloadError
from saga_core.events import (
    CompensationDeferred,
    CompensationFailed,
    CompensationSucceeded,
    Event,
    StepDeferred,
    StepFailed,
    StepSkipped,
    StepSucceeded,
)
from saga_core.graph import CHUNK
from saga_core.handlers import LONGEST_MESSAGE
from saga_core.ids import step_id
from saga_core.model import Progress, Saga, rebuild
from saga_core.options import Options
from saga_core.payload import EMPTY, decode_payload, encode_payload
from saga_core.plan import Failure, Plan, StepPlan
from saga_core.states import Operation, SagaState, StepState

NOTHING = Raw(b"null")


class Work(Struct, frozen=True):
    """What a handler needs to know of its saga and step.

    `name` is the saga's, `created_at` when it was started, seconds since 1970, UTC. `id` is the step's, and
    `idempotency_key` the same over all attempts and redeliveries; `token` brings the result of a deferred attempt.
    `output` is what the action returned, for its compensation. `outputs` are those of the steps that this one depends
    on, directly or not, by name; those of them that were skipped are named once more in `skipped`.
    """

    name: str
    created_at: float
    tags: dict[str, str]
    context: Raw
    action: str
    compensation: str | None
    id: str
    idempotency_key: str
    token: str
    input: Raw
    output: Raw
    outputs: Mapping[str, Raw]
    skipped: tuple[str, ...] = ()


def work_of(saga: Saga, command: Execute | Compensate) -> Work:
    """Return what a handler far from the store needs to know to do what a command says.

    Raises: UnknownStepError.
    """
    plan, position = saga.plan, saga.plan.position(command.step)
    step = plan.steps[position]
    operation: Operation = "execute" if isinstance(command, Execute) else "compensate"
    id = step_id(saga.id, step.name)
    others = {plan.steps[other].name: saga.record(other) for other in _ancestors(plan, position)}
    return Work(
        saga.name,
        saga.created_at,
        plan.options.tags,
        plan.context,
        step.action,
        step.compensation,
        id,
        f"{id}.{operation}",
        saga.token(step.name, operation),
        step.input,
        saga.record(position).output,
        {name: record.output for name, record in others.items()},
        tuple(name for name, record in others.items() if record.state is StepState.SKIPPED),
    )


def within_the_sagas_time(saga: Saga, command: Execute | Compensate) -> Execute | Compensate:
    """Return a command whose deadline is that of its saga, where that comes first: far away nobody else knows of it."""
    until = saga.plan.deadline
    if isinstance(command, Compensate) or saga.past_pivot or until >= (command.deadline or inf):
        return command
    return replace(command, deadline=until)


def saga_at_work(command: Execute | Compensate, work: Work) -> Saga:
    """Return as much of a saga as its handler was told: the step, and those that it depends on.

    It has the secret of no token: the step's own is in `Work`.

    Raises: DefinitionError when the names do not make a saga.
    """
    others = tuple(work.outputs)
    steps = (
        *(StepPlan(name, "unknown", depends_on=()) for name in others),
        StepPlan(command.step, work.action, work.compensation, work.input, depends_on=others),
    )
    records = [
        Progress(StepState.SKIPPED if name in work.skipped else StepState.COMPLETED, 1, output=output)
        for name, output in work.outputs.items()
    ]
    if isinstance(command, Execute):
        state = SagaState.STARTED
        records.append(Progress(StepState.STARTED, command.attempt, until=command.deadline))
    else:
        state = SagaState.COMPENSATING
        records.append(Progress(StepState.COMPENSATING, 1, command.attempt, work.output))
    plan = Plan(command.saga, work.name, steps, work.context, work.created_at, Options(tags=work.tags))
    chunks = tuple(tuple(records[at : at + CHUNK]) for at in range(0, len(records), CHUNK))
    return rebuild(plan, state, 0, chunks, work.created_at, None, False)


def reply_of(command: Execute | Compensate, event: Event) -> Reply:
    """Return the reply that brings a handler's answer, given as an event, to the orchestrator."""
    of: Operation = "execute" if isinstance(command, Execute) else "compensate"
    about = (command.saga, command.step, command.attempt, of)
    match event:
        case StepSucceeded(output=output):
            return Reply(*about, "succeeded", output)
        case StepSkipped(reason=reason):
            return Reply(*about, "skipped", reason=reason)
        case StepFailed(error=error, unknown=unknown):
            return Reply(*about, "failed", error=error, unknown=unknown)
        case CompensationFailed(error=error):
            return Reply(*about, "failed", error=error)
        case StepDeferred() | CompensationDeferred():
            return Reply(*about, "deferred")
        case _:
            return Reply(*about, "succeeded")


def asked_by(reply: Reply) -> Execute | Compensate:
    """Return the command that a reply answers, but for its action and deadline."""
    kind = Execute if reply.of == "execute" else Compensate
    return kind(reply.saga, reply.step, "", reply.attempt)


def answered_by(report: Report) -> StartChild | CompensateChild | None:
    """Return the order that a report answers; None where its parent waits on, for the child needs a person first."""
    if report.asked:
        return CompensateChild(report.saga, report.step, report.asked, report.child)
    if report.state is SagaState.FAILED:
        return None
    return StartChild(report.saga, report.step, report.attempt, report.child)


def event_of(reply: Reply, at: float) -> Event:
    """Return what a reply says as an event. What cannot be kept, such as an output that is no object, is a failure."""
    about = (reply.step, reply.attempt)
    error = _failure(reply)
    if reply.of == "compensate":
        if error is not None:
            return CompensationFailed(*about, error, at)
        kind = CompensationDeferred if reply.outcome == "deferred" else CompensationSucceeded
        return kind(*about, at)
    if error is not None:
        return StepFailed(*about, error, at, reply.unknown)
    if reply.outcome == "skipped":
        return StepSkipped(*about, _short(reply.reason), at)
    if reply.outcome == "deferred":
        return StepDeferred(*about, at)
    try:
        return StepSucceeded(*about, _kept(reply.output, f"The output of step {reply.step!r}"), at)
    except PayloadError as unusable:
        return StepFailed(*about, Failure("invalid_payload", _short(str(unusable))), at, reply.unknown)


def undeliverable(command: Carried, error: Failure, at: float, *, unknown: bool) -> Event | None:
    """Return the event that a command comes to nothing, for its message cannot be handled; None where none is needed.

    `unknown`: nobody can say whether it had its effect.
    """
    about: Carried | None = command
    if isinstance(about, Reply):
        about = asked_by(about)
    elif isinstance(about, Report):
        about = answered_by(about)
    if isinstance(about, Execute | StartChild):
        return StepFailed(about.step, about.attempt, error, at, unknown)
    if isinstance(about, Compensate | CompensateChild):
        return CompensationFailed(about.step, about.attempt, error, at)
    return None


def _failure(reply: Reply) -> Failure | None:
    if reply.outcome != "failed":
        return None
    error = reply.error or Failure("failed", "The reply says no more")
    message, details = error.message, EMPTY
    try:
        details = _kept(error.details, "The details of the error")
    except PayloadError as unusable:
        message = f"{message} ({unusable})"
    return Failure(_short(error.code), _short(message), error.retryable, details)


def _kept(raw: Raw, what: str) -> Raw:
    """Return a payload from outside as `encode_payload` would have written it. Raises: PayloadError."""
    if raw in (EMPTY, NOTHING):
        return EMPTY
    return encode_payload(decode_payload(raw, dict[str, object], what), what)


def _short(text: str) -> str:
    return text[:LONGEST_MESSAGE]


def _ancestors(plan: Plan, position: int) -> list[int]:
    """Return the steps that one depends on, directly or not, in order."""
    found: set[int] = set()
    ahead = [position]
    while ahead:
        for other in plan.graph.dependencies[ahead.pop()]:
            if other not in found:
                found.add(other)
                ahead.append(other)
    return sorted(found)
