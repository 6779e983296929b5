"""A slow and obvious model of sagas: plain dicts and lists, read off the design page and nothing else.

It keeps what has happened to each step, and after each event looks at the whole saga anew, scanning. It shares no
code and no idea of storage with `saga_core`; of that it knows the definition (`Step`, `Options`) and the events, which
are what it is told, and the delays between attempts, which are proven elsewhere.
"""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from saga_core.events import (
    CancelRequested,
    ChildRested,
    CompensationDeferred,
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    ResumeRequested,
    RetryRequested,
    SkipRequested,
    StepDeferred,
    StepFailed,
    StepResolved,
    StepSkipped,
    StepSucceeded,
    SuspendRequested,
    TimePassed,
)
from saga_core.plan import Failure, Options, Step
from saga_core.retry import PATIENT, delay_before

Record = dict[str, Any]

FORWARD = (StepSucceeded, StepFailed, StepSkipped, StepDeferred)
BACKWARD = (CompensationSucceeded, CompensationFailed, CompensationDeferred)
FOREVER = float("inf")


class Model:
    """A saga as a list of dicts. `phase` is what an active step does: `out`, `waiting` or `deferred`."""

    def __init__(
        self,
        steps: Sequence[Step[Any]],
        context: dict[str, object],
        options: Options,
        *,
        id: str,
        at: float,
        is_child: bool = False,
    ) -> None:
        self.id, self.context, self.options, self.is_child = id, context, options, is_child
        self.state = "started"
        self.suspended = False
        self.asked = 0
        self.revision = 0
        self.updated_at = self.created_at = at
        self.completed_at: float | None = None
        self.steps: list[Record] = []
        for place, step in enumerate(steps):
            before = steps[place - 1].name if place else None
            needs = step.depends_on if step.depends_on is not None else (before,) if before else ()
            self.steps.append({"is": step, "name": step.name, "needs": set(needs), **blank(), "skip": False})
        held: set[str] = set()
        if self.options.start_at is not None and at < self.options.start_at:
            held = {step["name"] for step in self.steps}
        self._go_on(at, held)

    # What can be asked.

    def commands(self) -> list[tuple[object, ...]]:
        """Return what is in flight: what to do, the step, the attempt and when it times out."""
        found: list[tuple[object, ...]] = []
        for step in self.steps:
            if step["phase"] == "out":
                child = step["is"].child is not None
                if step["state"] == "started":
                    ends = None if child else step["until"]
                    found.append(("start child" if child else "execute", step["name"], step["attempt"], ends))
                else:
                    ends = None if child else step["until"]
                    what = "compensate child" if child else "compensate"
                    found.append((what, step["name"], step["undo_attempt"], ends))
        if self.is_child and self.at_rest:
            found.append(("report", self.state))
        return found

    def wake_at(self) -> float | None:
        """Return the next moment when time alone changes something: try the moments that there are."""
        moments = {self.options.start_at, self._deadline()}
        for step in self.steps:
            moments |= {step["until"], step["expires"]}
        for moment in sorted(moment for moment in moments if moment is not None and moment < FOREVER):
            if copy.copy(self)._with_own_steps().tell(TimePassed(moment)):
                return moment
        return None

    @property
    def at_rest(self) -> bool:
        return self.state in ("completed", "compensated", "failed")

    # What can be told.

    def tell(self, event: Event) -> bool:
        """Hear of an event, and say whether it changed anything."""
        before = self.state
        held = set() if self.suspended else {step["name"] for step in self._free()}
        if not self._note(event):
            return False
        self.revision += 1
        self.updated_at = event.at
        rested = self.completed_at if before == "failed" else None
        self.completed_at = None
        if isinstance(event, TimePassed | ResumeRequested):
            held = {step["name"] for step in self._free()} if self._too_early(event.at) else set()
        self._go_on(event.at, held)
        if self.state == "failed" and rested is not None:
            self.completed_at = rested
        return True

    def _note(self, event: Event) -> bool:
        at = event.at
        match event:
            case TimePassed():
                return self._note_time(at)
            case CompensationRequested() | CancelRequested():
                return self._note_wish_to_undo(event)
            case RetryRequested():
                return self._note_wish_to_retry(at)
            case SuspendRequested():
                if self.at_rest or self.suspended:
                    return False
                self.suspended = True
                return True
            case ResumeRequested():
                if not self.suspended:
                    return False
                self.suspended = False
                self._fire(at)
                return True
        step = self._step(event.step)
        if isinstance(event, StepResolved):
            return self._note_resolution(step, event)
        if isinstance(event, SkipRequested):
            return self._note_wish_to_skip(step, at)
        if isinstance(event, ChildRested):
            return self._note_child(step, event)
        return self._note_result(step, event)

    def _note_result(self, step: Record, event: Any) -> bool:
        forward = isinstance(event, FORWARD)
        state, number = ("started", "attempt") if forward else ("compensating", "undo_attempt")
        if step["state"] != state or step[number] != event.attempt or step["phase"] == "waiting":
            return False
        match event:
            case StepDeferred() | CompensationDeferred():
                if step["phase"] != "out":
                    return False
                step["phase"] = "deferred"
            case StepSucceeded():
                self._succeed(step, json.loads(bytes(event.output)), event.at)
            case StepSkipped():
                self._skip(step, event.at)
            case StepFailed():
                self._fail(step, event.error, event.at, unknown=event.unknown)
                self._send_if_due(step, event.at)
            case CompensationSucceeded():
                self._undone(step)
            case CompensationFailed():
                self._fail_undoing(step, event.error, event.at)
                self._send_if_due(step, event.at)
        return True

    def _note_child(self, step: Record, event: ChildRested) -> bool:
        if step["is"].child is None or step["attempt"] != event.attempt:
            return False
        match step["state"], event.state:
            case "started", "completed":
                self._succeed(step, {}, event.at)
            case "started", "compensated":
                error = Failure("child_compensated", f"the child saga {event.child} was undone")
                self._fail(step, error, event.at, unknown=False)
            case "compensating", "compensated" if step["phase"] != "waiting":
                self._undone(step)
            case "compensating", ("failed" | "completed") if (
                step["phase"] != "waiting" and step["undo_attempt"] == event.asked
            ):
                error = Failure(
                    "child_failed", f"the child saga {event.child} could not be undone; see to it first"
                )
                if event.state == "completed":
                    what = f"the child saga {event.child} went past its pivot and completed"
                    error = Failure("child_past_pivot", what)
                self._fail_undoing(step, error, event.at)
            case _:
                return False
        return True

    def _note_time(self, at: float) -> bool:
        fired = False
        if at >= self._deadline():
            fired = True
            self._turn_round()
            for step in self._all("started"):
                step.update(
                    error=Failure("saga_timeout", "the saga's time is over"), executed_at=at, unknown=True
                )
                self._give_up(step)
        fired |= self._fire(at)
        if not self.suspended and not self._too_early(at):
            fired |= bool(self._free())
        return fired

    def _fire(self, at: float) -> bool:
        """Let happen what is due, from the first step to the last: what times out, and then what has waited."""
        fired = False
        for step in self.steps:
            if step["until"] is None or step["until"] > at:
                continue
            if step["state"] == "started" and step["expires"] is not None and step["expires"] <= at:
                error = Failure("total_timeout", "the step's time is over, all attempts together")
                self._fail(step, error, at, unknown=step["phase"] != "waiting")
            elif step["phase"] == "waiting":
                continue
            elif step["state"] == "started":
                self._fail(step, Failure("timeout", "no result in time", retryable=True), at, unknown=True)
            else:
                self._fail_undoing(step, Failure("timeout", "no result in time", retryable=True), at)
            fired = True
        for step in self.steps:
            fired |= self._send_if_due(step, at)
        return fired

    def _note_wish_to_undo(self, event: CompensationRequested | CancelRequested) -> bool:
        cancel = isinstance(event, CancelRequested)
        if self.state == "compensated" or (cancel and self.state != "started") or self._past_pivot():
            return False
        if not cancel and event.attempt:
            if event.attempt <= self.asked:
                return False
            self.asked = event.attempt
        elif self.state == "compensating" or (self.state == "completed" and self.is_child):
            return False
        if self.state == "failed":
            self._forgive()
        self._turn_round()
        return True

    def _note_wish_to_retry(self, at: float) -> bool:
        if self.suspended:
            return False
        given_up = [step for step in self.steps if self._given_up(step)]
        waiting = [step for step in self.steps if step["phase"] == "waiting"]
        if not given_up and not waiting:
            return False
        for step in waiting:
            self._send(step, at)
        if self._past_pivot():
            self.state = "started"
            for step in given_up:
                total = step["is"].total_timeout
                step.update(state="started", attempt=step["attempt"] + 1, forgiven=step["attempt"])
                step["expires"] = None if total is None else at + total
                self._send(step, at)
        elif given_up:
            self.state = "compensating"
            self._forgive()
        return True

    def _note_resolution(self, step: Record, event: StepResolved) -> bool:
        if self.state in ("completed", "compensated"):
            return False
        stuck_forward = self._given_up(step) and self._past_pivot()
        stuck_backward = self._given_up(step) and not self._past_pivot()
        if event.state == "completed" and (step["state"] == "started" or stuck_forward):
            self._wake_up()
            self._succeed(step, json.loads(bytes(event.output)), event.at)
        elif event.state == "failed" and step["state"] == "started":
            step.update(error=Failure("resolved", event.reason), executed_at=event.at, unknown=False)
            self._give_up(step)
        elif event.state == "compensated" and (step["state"] == "compensating" or stuck_backward):
            self._wake_up()
            self._undone(step)
        else:
            return False
        return True

    def _note_wish_to_skip(self, step: Record, at: float) -> bool:
        if self.state not in ("started", "failed"):
            return False
        if step["state"] == "pending" and self.state == "started" and not step["skip"]:
            step["skip"] = True
            return True
        waiting = step["state"] == "started" and step["phase"] == "waiting"
        if waiting or (self._given_up(step) and self._past_pivot()):
            self._wake_up()
            self._skip(step, at)
            return True
        return False

    # What that means for a step.

    def _succeed(self, step: Record, output: object, at: float) -> None:
        self._forward_again(step)
        attempt = self._attempts_made(step)
        step.update(
            {**blank(), "state": "completed", "attempt": attempt, "output": output, "executed_at": at}
        )

    def _skip(self, step: Record, at: float) -> None:
        self._forward_again(step)
        attempt, unknown = self._attempts_made(step), step["unknown"]
        step.update(
            {**blank(), "state": "skipped", "attempt": attempt, "executed_at": at, "unknown": unknown}
        )

    def _fail(self, step: Record, error: Failure, at: float, *, unknown: bool) -> None:
        step.update(error=error, executed_at=at, unknown=step["unknown"] or unknown)
        past_pivot = self._past_pivot()
        policy = step["is"].retry or (PATIENT if past_pivot else None)
        used = step["attempt"] - step["forgiven"]
        if (
            self.state == "started"
            and step["is"].child is None
            and policy is not None
            and error.retryable
            and (policy.retry_on is None or error.code in policy.retry_on)
            and (past_pivot or policy.max_attempts is None or used < policy.max_attempts)
        ):
            number = step["attempt"] + 1
            moment = at + delay_before(policy, used, self.id, step["name"], number, "execute")
            if step["expires"] is None or moment < step["expires"]:
                step["attempt"] = number
                self._wait(step, moment)
                return
        self._give_up(step)

    def _give_up(self, step: Record) -> None:
        step.update(state="failed", attempt=self._attempts_made(step), phase=None, until=None, expires=None)
        step["why"] = step["error"] if step["unknown"] else None
        if not self._past_pivot():
            self._turn_round()

    def _fail_undoing(self, step: Record, error: Failure, at: float) -> None:
        step["error"] = error
        policy = step["is"].compensation_retry or PATIENT
        used = step["undo_attempt"] - step["forgiven"]
        if (
            error.retryable
            and (policy.retry_on is None or error.code in policy.retry_on)
            and (policy.max_attempts is None or used < policy.max_attempts)
        ):
            step["undo_attempt"] += 1
            moment = at + delay_before(
                policy, used, self.id, step["name"], step["undo_attempt"], "compensate"
            )
            self._wait(step, moment)
        else:
            step.update(state="failed", phase=None, until=None)

    def _undone(self, step: Record) -> None:
        if step["phase"] == "waiting":
            step["undo_attempt"] -= 1
        step.update(state="compensated", phase=None, until=None, error=step["why"])

    def _wait(self, step: Record, moment: float) -> None:
        step.update(phase="waiting", until=moment)

    def _send_if_due(self, step: Record, at: float) -> bool:
        if step["phase"] != "waiting" or step["until"] > at or self.suspended:
            return False
        self._send(step, at)
        return True

    def _send(self, step: Record, at: float) -> None:
        timeout = step["is"].timeout if step["state"] == "started" else step["is"].compensation_timeout
        ends = [step["expires"]] if step["state"] == "started" and step["expires"] is not None else []
        if timeout is not None:
            ends.append(at + timeout)
        step.update(phase="out", until=min(ends) if ends else None)

    def _attempts_made(self, step: Record) -> int:
        return step["attempt"] - (1 if step["state"] == "started" and step["phase"] == "waiting" else 0)

    # What that means for the saga.

    def _go_on(self, at: float, held: set[str]) -> None:
        """Let the saga take its next steps: start something, undo something, or come to rest.

        `held` are the steps that could have started before this event, and may not because of it.
        """
        if self.state == "started":
            self._start_what_is_free(at, held)
            if not self._all("started") and not self._free():
                self.state = "failed" if any(map(self._given_up, self.steps)) else "completed"
        elif self.state == "compensating":
            if not self._all("started") and not self.suspended:
                self._undo_what_is_free(at)
            if not self._all("started") and not self._all("compensating") and not self._to_look_at():
                self.state = "failed" if any(map(self._given_up, self.steps)) else "compensated"
        if self.at_rest:
            self.completed_at = at
            self.suspended = False

    def _start_what_is_free(self, at: float, held: set[str]) -> None:
        while not self.suspended:
            free = [step for step in self._free() if step["name"] not in held]
            if not free:
                return
            for step in free:
                unwanted = step["skip"] or not fulfilled(step["is"].when, self.context)
                step.update({**blank(), "skip": False})
                if unwanted:
                    step.update(state="skipped", executed_at=at)
                else:
                    total = step["is"].total_timeout
                    step.update(state="started", attempt=1, expires=None if total is None else at + total)
                    self._send(step, at)

    def _undo_what_is_free(self, at: float) -> None:
        """Look at what has nothing standing on it, from the last step to the first."""
        one_by_one = self.options.compensation_order == "sequential"
        while self._to_look_at() and not (one_by_one and self._all("compensating")):
            step = self._to_look_at()[-1]
            if (step["state"] == "skipped" and not step["unknown"]) or not self._compensable(step):
                step["passed"] = True
            else:
                step.update(state="compensating", undo_attempt=step["undo_attempt"] + 1, again=False)
                self._send(step, at)

    def _turn_round(self) -> None:
        if self.state == "compensating":
            return
        self.state = "compensating"
        for step in self._all("started"):
            if step["phase"] == "waiting":
                self._give_up(step)

    def _forward_again(self, step: Record) -> None:
        if step["is"].pivot and self.state == "compensating":
            self.state = "started"

    def _wake_up(self) -> None:
        if self.state == "failed":
            self.state = "started" if self._past_pivot() else "compensating"

    def _forgive(self) -> None:
        for step in self.steps:
            if self._given_up(step):
                step.update(again=True, forgiven=step["undo_attempt"])

    # What can be seen by looking.

    def _step(self, name: str) -> Record:
        return next(step for step in self.steps if step["name"] == name)

    def _all(self, state: str) -> list[Record]:
        return [step for step in self.steps if step["state"] == state]

    def _free(self) -> list[Record]:
        """Return the steps that have not begun, although all that they need has ended well."""
        if self.state != "started":
            return []
        return [
            step
            for step in self._all("pending")
            if all(self._step(name)["state"] in ("completed", "skipped") for name in step["needs"])
        ]

    def _past_pivot(self) -> bool:
        return any(step["is"].pivot and step["state"] in ("completed", "skipped") for step in self.steps)

    def _given_up(self, step: Record) -> bool:
        """Whether only a person can help: a compensation failed for good, or a step behind the pivot did."""
        return step["state"] == "failed" and (
            self._past_pivot() or (step["undo_attempt"] > 0 and not step["again"])
        )

    def _compensable(self, step: Record) -> bool:
        return step["is"].compensation is not None or step["is"].child is not None

    def _to_look_at(self) -> list[Record]:
        """Return the steps that may have had an effect, are not undone, and have nothing standing on them."""
        return [
            step
            for step in self.steps
            if not step["passed"]
            and (
                step["state"] in ("completed", "skipped")
                or (step["state"] == "failed" and step["unknown"] and step["undo_attempt"] == 0)
                or (step["state"] == "failed" and step["again"])
            )
            and all(self._out_of_the_way(other) for other in self.steps if step["name"] in other["needs"])
        ]

    def _out_of_the_way(self, step: Record) -> bool:
        had_no_effect = step["state"] == "failed" and not step["unknown"] and step["undo_attempt"] == 0
        return step["state"] in ("pending", "compensated") or step["passed"] or had_no_effect

    def _deadline(self) -> float:
        if self.options.timeout is None or self._past_pivot():
            return FOREVER
        if self.state != "started" and not self._all("started"):
            return FOREVER
        return max(self.options.start_at or 0.0, self.created_at) + self.options.timeout

    def _too_early(self, at: float) -> bool:
        return self.options.start_at is not None and at < self.options.start_at

    def _with_own_steps(self) -> "Model":
        self.steps = [dict(step) for step in self.steps]
        return self


def blank() -> Record:
    return {
        "state": "pending",
        "attempt": 0,
        "undo_attempt": 0,
        "output": {},
        "error": None,
        "why": None,
        "executed_at": None,
        "phase": None,
        "until": None,
        "expires": None,
        "unknown": False,
        "forgiven": 0,
        "passed": False,
        "again": False,
    }


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda one, other: one == other and (type(one) is bool) == (type(other) is bool),
    "!=": lambda one, other: not COMPARE["=="](one, other),
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}


def fulfilled(condition: Any, context: dict[str, Any]) -> bool:
    if condition is None:
        return True
    return bool(plainly(condition, context)) != condition.negated


def plainly(condition: Any, context: dict[str, Any]) -> bool:
    value: Any = context
    for name in condition.path:
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    if condition.test == "exists":
        return True
    if condition.test == "is true":
        return value is True
    if condition.test == "in":
        return any(COMPARE["=="](value, one) for one in condition.value)
    if condition.test in ("==", "!="):
        return COMPARE[condition.test](value, condition.value)
    numbers = all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in (value, condition.value)
    )
    texts = all(isinstance(one, str) for one in (value, condition.value))
    return (numbers or texts) and COMPARE[condition.test](value, condition.value)
