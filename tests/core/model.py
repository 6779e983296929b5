"""A slow and obvious model of linear sagas: plain dicts, read off the design page and nothing else.

After each event it looks at the whole saga anew. It shares no code and no idea of storage with `saga_core`;
of that it knows the events only, which are what it is told.
"""

import json
from typing import Any

from saga_core import (
    CompensationFailed,
    CompensationRequested,
    CompensationSucceeded,
    Event,
    StepFailed,
    StepSucceeded,
)

Record = dict[str, Any]


class LinearSaga:
    """Steps run one after the other and are compensated in reverse, one after the other."""

    def __init__(self, steps: list[tuple[str, bool]], at: float) -> None:
        """Start with `steps`, each a name and whether it has a compensation."""
        self.state = "started"
        self.revision = 0
        self.updated_at = at
        self.completed_at: float | None = None
        self.steps: list[Record] = [
            {
                "name": name,
                "compensable": compensable,
                "state": "pending",
                "attempt": 0,
                "compensation_attempt": 0,
                "output": {},
                "error": None,
                "executed_at": None,
            }
            for name, compensable in steps
        ]
        self._go_on(at)

    def tell(self, event: Event) -> bool:
        """Hear of an event, and say whether it changed anything."""
        changed = self._note(event)
        if changed:
            self.revision += 1
            self.updated_at = event.at
            self._go_on(event.at)
        return changed

    def in_flight(self) -> list[tuple[str, str, int]]:
        """Return what runs: the operation, the step's name and the attempt."""
        running = [("execute", s["name"], s["attempt"]) for s in self.steps if s["state"] == "started"]
        undoing = [
            ("compensate", s["name"], s["compensation_attempt"])
            for s in self.steps
            if s["state"] == "compensating"
        ]
        return running + undoing

    def _note(self, event: Event) -> bool:
        if isinstance(event, CompensationRequested):
            if self.state in ("compensating", "compensated"):
                return False
            # Compensations that failed are to be done again.
            for step in self.steps:
                if self._given_up(step):
                    step.update(state="completed", error=None)
            self.state = "compensating"
            return True
        (step,) = [step for step in self.steps if step["name"] == event.step]
        operation = "execute" if isinstance(event, StepSucceeded | StepFailed) else "compensate"
        if (operation, event.step, event.attempt) not in self.in_flight():
            return False
        match event:
            case StepSucceeded():
                step.update(state="completed", output=json.loads(bytes(event.output)), executed_at=event.at)
            case StepFailed():
                step.update(state="failed", error=event.error, executed_at=event.at)
            case CompensationSucceeded():
                step.update(state="compensated")
            case CompensationFailed():
                step.update(state="failed", error=event.error)
        return True

    def _go_on(self, at: float) -> None:
        """Let the saga take its next step: start something, turn round, or come to rest."""
        if self.in_flight():
            self.completed_at = None
            return
        if self.state == "started" and any(step["state"] == "failed" for step in self.steps):
            self.state = "compensating"
        if self.state == "started":
            waiting = [step for step in self.steps if step["state"] == "pending"]
            if waiting:
                waiting[0].update(state="started", attempt=1)
            else:
                self.state, self.completed_at = "completed", at
            return
        if any(self._given_up(step) for step in self.steps):
            self.state, self.completed_at = "failed", at
            return
        to_undo = [step for step in self.steps if step["state"] == "completed" and step["compensable"]]
        if to_undo:
            last = to_undo[-1]
            last.update(state="compensating", compensation_attempt=last["compensation_attempt"] + 1)
            self.completed_at = None
        else:
            self.state, self.completed_at = "compensated", at

    @staticmethod
    def _given_up(step: Record) -> bool:
        """Whether the step's compensation, not its action, is what failed."""
        return step["state"] == "failed" and step["compensation_attempt"] != 0
