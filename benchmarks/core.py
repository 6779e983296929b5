"""Measure transitions of the core per second, and whether a long saga pays more for each than a short one.

A saga is driven to its rest, with its creation or without. Building the events is part of the measured time,
as it is for users.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from msgspec import Raw

from benchmarks.runner import Ratio, Report, Rival, Rounds, Sample, lines, machine, ratio, say, take_turns
from saga_core.commands import Execute
from saga_core.events import CompensationSucceeded, Event, StepFailed, StepSucceeded
from saga_core.machine import new_saga, outstanding, transition
from saga_core.model import Failure, Saga, SagaState, Step

SIZES = (3, 10, 100, 1_000)
SAGA = "01J" + "0" * 23
OUTPUT = Raw(b'{"ok":true}')
BROKEN = Failure("broken", "as planned")
WAYS = (CREATED, CREATED_UNDONE, DRIVEN) = (
    "created, completed",
    "created, the last fails, all undone",
    "completed",
)
PEER = "transitions: the same three steps"


def run(*, quick: bool) -> Report:
    """Measure sagas that complete and sagas that are undone, and a well-known state machine beside them."""
    seconds = 0.05 if quick else 0.4
    rivals = [
        Rival(_name(size, way), _repeatedly(partial(_saga, size, way), seconds))
        for way in WAYS
        for size in SIZES
    ]
    skipped: tuple[str, ...] = ()
    try:
        rivals.append(Rival(PEER, _repeatedly(_peer(), seconds)))
    except ModuleNotFoundError:
        skipped = ("transitions is not installed (extra: bench)",)
    gc.enable()
    rounds = take_turns(rivals, repeats=3 if quick else 9, say=say)
    return Report(
        "core: events answered, one whole saga after the other",
        "transitions/s",
        lines(rounds),
        tuple(_ratios(rounds, peer=not skipped)),
        skipped,
        {**machine(), "gc": "on" if gc.isenabled() else "off"},
    )


def _saga(size: int, way: str) -> Callable[[], int]:
    """Return a function that drives one saga to its rest and returns how many transitions that took."""
    steps: Sequence[Step] = [Step(name=f"step{i}", action="do", compensation="undo") for i in range(size)]
    rest = SagaState.COMPENSATED if way == CREATED_UNDONE else SagaState.COMPLETED
    failing = steps[-1].name if way == CREATED_UNDONE else None

    def create() -> Saga:
        return new_saga("benchmark", steps, {"order": 1}, id=SAGA, at=0.0)

    created = create()  # a saga never changes: the same one can be driven again and again

    def drive() -> int:
        saga = created if way == DRIVEN else create()
        commands, at = outstanding(saga), 0.0
        while commands:
            (command,) = commands
            at += 1.0
            event: Event
            if isinstance(command, Execute):
                if command.step == failing:
                    event = StepFailed(command.step, command.attempt, BROKEN, at)
                else:
                    event = StepSucceeded(command.step, command.attempt, OUTPUT, at)
            else:
                event = CompensationSucceeded(command.step, command.attempt, at)
            answer = transition(saga, event)
            saga, commands = answer.saga, answer.commands
        _check(saga, rest)
        return saga.revision

    return drive


def _check(saga: Saga, rest: SagaState) -> None:
    if saga.state is not rest:
        raise AssertionError(f"the saga rests in {saga.state}, not in {rest}")


def _peer() -> Callable[[], Callable[[], int]]:
    """Return a saga of three steps as a machine of `transitions`: started, three steps, completed.

    Raises: ModuleNotFoundError.
    """
    from transitions import Machine

    states = ["first", "second", "third", "completed"]
    table = [
        {"trigger": "succeeded", "source": source, "dest": dest}
        for source, dest in itertools.pairwise(states)
    ]

    class Model:
        state: str
        succeeded: Callable[[], bool]

    machine_: Any = Machine(
        model=None, states=states, transitions=table, initial="first", auto_transitions=False
    )

    def prepare() -> Callable[[], int]:
        def drive() -> int:
            model = Model()
            machine_.add_model(model)
            for _ in range(3):
                model.succeeded()
            machine_.remove_model(model)
            if model.state != "completed":
                raise AssertionError(model.state)
            return 3

        return drive

    return prepare


def _repeatedly(prepare: Callable[[], Callable[[], int]], seconds: float) -> Callable[[], Sample]:
    """Return a measurement: call a prepared function for so many seconds, after half of that as warm-up."""

    def measure() -> Sample:
        drive = prepare()
        _until(seconds / 2, drive)
        cpu = time.process_time()
        transitions, taken = _until(seconds, drive)
        return Sample(transitions / taken, (time.process_time() - cpu) / transitions * 1e6)

    return measure


def _until(seconds: float, drive: Callable[[], int]) -> tuple[int, float]:
    began, transitions = time.perf_counter(), 0
    while True:
        transitions += drive()
        taken = time.perf_counter() - began
        if taken >= seconds:
            return transitions, taken


def _ratios(rounds: Rounds, *, peer: bool) -> Iterable[Ratio]:
    small, large = SIZES[0], SIZES[-1]
    for way in WAYS:
        name = f"flatness, {way}: {large:,} steps / {small} steps"
        yield ratio(name, rounds, [_name(large, way)], [_name(small, way)])
    if peer:
        ours = _name(small, CREATED)
        yield ratio(f"{ours} / transitions", rounds, [ours], [PEER])


def _name(size: int, way: str) -> str:
    return f"{size:,} steps, {way}"
