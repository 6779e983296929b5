"""How a saga is defined: the steps that users write, and the plan that never changes once the saga exists."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import isfinite
from typing import TYPE_CHECKING, Any, Generic, cast

from msgspec import Raw, Struct, field, json

from saga_core.conditions import Condition
from saga_core.errors import DefinitionError, UnknownStepError
from saga_core.graph import REMEMBERED, Graph, build_graph
from saga_core.ids import CANONICAL_ULID, Origin, child_id, step_id, token_of
from saga_core.options import NO_OPTIONS, Options, check_seconds, seconds
from saga_core.payload import EMPTY, encode_payload
from saga_core.retry import RetryPolicy
from saga_core.states import Operation, StepState

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    InputT = TypeVar("InputT", default=dict[str, object])
else:
    from typing import TypeVar

    InputT = TypeVar("InputT")

DEEPEST_CHILD = 20
"""How many child sagas may lie within each other."""

LONGEST_NAME = 128
"""Bytes. Names become parts of AMQP routing keys and message ids, which hold 255."""


class Failure(Struct, frozen=True, gc=False, omit_defaults=True):
    """Why a handler failed. The fields are those of `StepError`; no details are an empty object."""

    code: str
    message: str
    retryable: bool = False
    # Not `Raw | None`: msgspec reads that as null only.
    details: Raw = EMPTY


class ChildSaga(Struct, frozen=True):
    """A saga that a step starts, and ends with. Without a context of its own it has its parent's."""

    name: str
    steps: "Sequence[Step[Any]]"
    context: Mapping[str, object] | None = None
    options: Options = NO_OPTIONS


class Step(Struct, Generic[InputT], frozen=True, kw_only=True):
    """One local transaction of a saga, and what undoes it.

    To define a step give `name` and `action` (or `child`), and where they are wanted:

    * `compensation` and `input` (a dict, Struct or dataclass);
    * `depends_on`, names of the steps to wait for: by default the step before, `()` for none;
    * `when`, a condition on the context: where it does not hold, the step is skipped;
    * `retry` and `compensation_retry`; by default an action is tried once and a compensation for days;
    * `timeout` for each attempt, `total_timeout` for all of them, `compensation_timeout` for each attempt to undo:
      seconds, from the moment the attempt is asked for, whether or not a worker has begun;
    * `pivot`: when this step has ended well, the saga goes forward only.

    The other fields tell what has become of it, once it belongs to a saga. Times are seconds since 1970, UTC. `output`
    is what the action returned, empty until then.
    """

    name: str
    action: str = ""
    compensation: str | None = None
    input: InputT = field(default_factory=lambda: cast("InputT", {}))
    depends_on: tuple[str, ...] | None = None
    when: Condition | None = None
    retry: RetryPolicy | None = None
    compensation_retry: RetryPolicy | None = None
    timeout: float | None = None
    total_timeout: float | None = None
    compensation_timeout: float | None = None
    pivot: bool = False
    child: ChildSaga | None = None
    state: StepState = StepState.PENDING
    attempt: int = 0
    compensation_attempt: int = 0
    output: dict[str, object] = {}
    error: Failure | None = None
    executed_at: float | None = None
    origin: Origin | None = None

    @property
    def id(self) -> str:
        """The step's ULID; empty before it belongs to a saga."""
        return "" if self.origin is None else step_id(self.origin.saga, self.name)

    @property
    def token(self) -> str:
        """What brings the result of its present attempt from outside, should it be deferred; empty until then."""
        origin = self.origin
        if origin is None or origin.token:
            return "" if origin is None else origin.token
        if self.compensation_attempt:
            return token_of(origin, "compensate", self.compensation_attempt)
        return token_of(origin, "execute", self.attempt)

    def idempotency_key(self, operation: Operation = "execute") -> str:
        """Return a key to hand to outside services: the same over all attempts and redeliveries of this step."""
        return f"{self.id}.{operation}"


class ChildPlan(Struct, frozen=True, omit_defaults=True):
    """The plan of a child saga that does not exist yet; `inherits` its parent's context, or has its own."""

    name: str
    steps: "tuple[StepPlan, ...]"
    inherits: bool = True
    context: Raw = EMPTY
    options: Options = NO_OPTIONS


class StepPlan(Struct, frozen=True, gc=False, omit_defaults=True):
    """The part of a step that never changes. The fields are those of `Step`."""

    name: str
    action: str = ""
    compensation: str | None = None
    input: Raw = EMPTY
    depends_on: tuple[str, ...] | None = None
    when: Condition | None = None
    retry: RetryPolicy | None = None
    compensation_retry: RetryPolicy | None = None
    timeout: float | None = None
    total_timeout: float | None = None
    compensation_timeout: float | None = None
    pivot: bool = False
    child: ChildPlan | None = None


class Parent(Struct, frozen=True, gc=False):
    """The step that started a child saga."""

    saga: str
    step: str
    attempt: int


class Plan(Struct, frozen=True, dict=True, omit_defaults=True):
    """The part of a saga that never changes.

    `id` is a ULID, `created_at` seconds since 1970, UTC. `secret` goes into the tokens of deferred steps.
    """

    id: str
    name: str
    steps: tuple[StepPlan, ...]
    context: Raw
    created_at: float
    options: Options = NO_OPTIONS
    parent: Parent | None = None
    secret: str = ""

    def position(self, name: str) -> int:
        """Return a step's place in `steps`.

        Raises: UnknownStepError.
        """
        try:
            return self.graph.positions[name]
        except KeyError:
            known = ", ".join(step.name for step in self.steps[:20])
            raise UnknownStepError(
                f"Saga {self.id} ({self.name}) has no step {name!r}; it has: {known}"
            ) from None

    @cached_property
    def graph(self) -> Graph:
        """Who waits for whom."""
        return _graph(self.name, tuple([_form(self.name, step) for step in self.steps]))

    @cached_property
    def pivot(self) -> int | None:
        """The pivot's place in `steps`, if there is one."""
        return next((position for position, step in enumerate(self.steps) if step.pivot), None)

    @cached_property
    def deadline(self) -> float:
        """When the saga times out, in seconds since 1970, UTC; infinity for never."""
        if self.options.timeout is None:
            return float("inf")
        return max(self.options.start_at or 0.0, self.created_at) + self.options.timeout


def plan_saga(
    name: str,
    steps: "Sequence[Step[Any]]",
    context: object,
    *,
    id: str,
    at: float,
    options: Options = NO_OPTIONS,
    secret: str = "",
) -> Plan:
    """Check a definition and write its payloads down.

    Raises: DefinitionError, PayloadError; both name the saga and the step.
    """
    planned, graph = _plan_steps(name, steps, 0)
    if not isinstance(cast("object", id), str) or CANONICAL_ULID.fullmatch(id) is None:
        raise DefinitionError(f"Saga {name!r}: the id {id!r} is not a ULID, in capitals")
    if not isfinite(at):
        raise DefinitionError(f"Saga {name!r} cannot begin at {at}; give seconds since 1970")
    raw = encode_payload(context, "Saga %r: the context", name)
    plan = Plan(id, name, planned, raw, float(at), options, None, secret)
    vars(plan)["graph"] = graph
    try:
        json.encode(plan)
    except UnicodeEncodeError as error:
        raise DefinitionError(f"Saga {name!r} holds text that cannot be kept: {error}") from error
    return plan


def plan_child(parent: Plan, step: StepPlan, attempt: int, at: float) -> Plan:
    """Make the plan of the child saga that an attempt of a parent's step starts: the same every time."""
    child = step.child
    if child is None:
        raise DefinitionError(f"Saga {parent.id} ({parent.name}): step {step.name!r} starts no child saga")
    return Plan(
        child_id(parent.id, parent.graph.positions[step.name], attempt),
        child.name,
        child.steps,
        parent.context if child.inherits else child.context,
        at,
        child.options,
        Parent(parent.id, step.name, attempt),
        blake2b(f"{parent.secret}/{step.name}/{attempt}".encode(), digest_size=16).hexdigest(),
    )


def _plan_steps(name: str, steps: "Sequence[Step[Any]]", depth: int) -> tuple[tuple[StepPlan, ...], Graph]:
    if depth > DEEPEST_CHILD:
        raise DefinitionError(f"Saga {name!r} is a child saga {depth} deep; does one start itself?")
    forms = tuple([_form(name, step) for step in steps])
    try:
        graph = _check(name, forms)
    except TypeError:  # a name that cannot be hashed: it is none
        graph = _check.__wrapped__(name, forms)
    return tuple([_plan_step(name, step, depth) for step in steps]), graph


def _plan_step(saga: str, step: "Step[Any]", depth: int) -> StepPlan:
    return StepPlan(
        step.name,
        step.action,
        step.compensation,
        encode_payload(step.input, "Saga %r: the input of step %r", saga, step.name),
        None if step.depends_on is None else tuple(step.depends_on),
        step.when,
        step.retry,
        step.compensation_retry,
        seconds(step.timeout),
        seconds(step.total_timeout),
        seconds(step.compensation_timeout),
        step.pivot,
        None if step.child is None else _plan_child(step.child, depth + 1),
    )


def _plan_child(child: ChildSaga, depth: int) -> ChildPlan:
    if child.options.key is not None:
        raise DefinitionError(
            f"Saga {child.name!r} is a child saga, and has no key: its parent starts it once"
        )
    return ChildPlan(
        child.name,
        _plan_steps(child.name, child.steps, depth)[0],
        child.context is None,
        encode_payload(child.context, f"Saga {child.name!r}: the context"),
        child.options,
    )


class _Form(Struct, frozen=True, gc=False):
    """What is to be checked of a step. It repeats from saga to saga, and can be hashed."""

    name: str
    action: str
    compensation: str | None
    depends_on: tuple[str, ...] | None
    timeouts: tuple[float | None, float | None, float | None]
    pivot: bool
    conditional: bool
    retried: bool
    child: bool

    @property
    def plain(self) -> bool:
        """Whether the step begins without a condition, a clock or a child."""
        return not (self.conditional or self.child) and self.timeouts[:2] == (None, None)


def _form(saga: str, step: "Step[Any] | StepPlan") -> _Form:
    if isinstance(step.depends_on, str):
        raise DefinitionError(
            f"Saga {saga!r}: step {step.name!r}: depends_on takes a tuple of names, not the text {step.depends_on!r}"
        )
    return _Form(
        step.name,
        step.action,
        step.compensation,
        None if step.depends_on is None else tuple(step.depends_on),
        (step.timeout, step.total_timeout, step.compensation_timeout),
        bool(step.pivot),
        step.when is not None,
        step.retry is not None,
        step.child is not None,
    )


@lru_cache(REMEMBERED)
def _check(name: str, steps: tuple[_Form, ...]) -> Graph:
    """Check a definition, and return its graph. That it was checked is remembered, too."""
    where = f"Saga {name!r}"
    if not _usable(name):
        raise DefinitionError(f"A saga needs a name, not {name!r}")
    _check_length(name, f"The name of saga {name[:40]!r}")
    if not steps:
        raise DefinitionError(f"{where} has no steps; give at least one")
    seen: set[str] = set()
    for place, step in enumerate(steps, 1):
        _check_step(where, place, step)
        if step.name in seen:
            raise DefinitionError(f"{where} has two steps named {step.name!r}; names must differ")
        seen.add(step.name)
    return _graph(name, steps)


def _check_step(where: str, place: int, step: _Form) -> None:
    if not _usable(step.name) or not (_usable(step.action) or (step.action == "" and step.child)):
        raise DefinitionError(
            f"{where}: step {place} needs a name and an action (or a child saga), "
            f"not {step.name!r} and {step.action!r}"
        )
    for what, name in (("name", step.name), ("action", step.action), ("compensation", step.compensation)):
        if isinstance(name, str):
            _check_length(name, f"{where}: the {what} of step {step.name[:40]!r}")
    where = f"{where}: step {step.name!r}"
    if step.compensation is not None and not _usable(step.compensation):
        raise DefinitionError(
            f"{where} cannot have the compensation {step.compensation!r}; give a name, or leave it out"
        )
    if step.child and (step.action or step.compensation or step.retried):
        raise DefinitionError(
            f"{where} starts a child saga, so it has no action, compensation or retry policy: the child has its own"
        )
    timeout, total, compensation = step.timeouts
    check_seconds(where, timeout=timeout, total_timeout=total, compensation_timeout=compensation)


def _graph(name: str, steps: tuple[_Form, ...]) -> Graph:
    where = f"Saga {name!r}"
    pivots = [position for position, step in enumerate(steps) if step.pivot]
    if len(pivots) > 1:
        names = " and ".join(repr(steps[position].name) for position in pivots[:2])
        raise DefinitionError(f"{where} has two pivots, {names}; a saga has one point of no return")
    return build_graph(
        tuple([step.name for step in steps]),
        tuple([step.depends_on for step in steps]),
        tuple([step.plain for step in steps]),
        pivots[0] if pivots else None,
        where,
    )


def _usable(name: object) -> bool:
    """Whether a name can be kept and sent: text that is not empty, and that UTF-8 and databases can hold."""
    try:
        return (
            isinstance(name, str)
            and name != ""
            and "\0" not in name
            and (name.isascii() or name.encode() != b"")
        )
    except UnicodeEncodeError:
        return False


def _check_length(name: str, what: str) -> None:
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise DefinitionError(f"{what} is longer than {LONGEST_NAME} bytes")
