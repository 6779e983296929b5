"""Measure transitions of the core per second, and whether a long saga pays more for each than a short one.

A saga is driven to its rest: from its creation on, each event built from the command that it answers, as users do; or
by events that are there already, so that nothing but transitions is measured, of the core as of its rivals.
"""

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from msgspec import Raw

from benchmarks.report import Report, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, lines, ratio, take_turns
from saga_core import (
    CompensationSucceeded,
    Event,
    Execute,
    Failure,
    Saga,
    SagaState,
    Step,
    StepFailed,
    StepSucceeded,
    new_saga,
    outstanding,
    transition,
)

SIZES = (3, 10, 100, 1_000)
SAGA = "01J" + "0" * 23
OUTPUT = Raw(b'{"ok":true}')
BROKEN = Failure("broken", "as planned")
LOOK = 0.001  # seconds
WAYS = (CREATED, CREATED_UNDONE, DRIVEN) = (
    "created, completed",
    "created, the last fails, all undone",
    "completed, events ready",
)
PEERS = (PEER_CREATED, PEER_SAGA, PEER_BARE) = (
    "transitions: a model made, three triggers",
    "transitions: three triggers that check the attempt, keep the output, tell what is next",
    "transitions: three triggers and nothing else",
)


def run(options: Options) -> Iterator[Report]:
    """Measure sagas that complete and sagas that are undone, and a well-known state machine beside them."""
    seconds = 0.05 if options.quick else 0.4
    rivals = [
        Rival(_name(size, way), _repeatedly(partial(_saga, size, way), seconds))
        for way in WAYS
        for size in SIZES
    ]
    skipped: tuple[str, ...] = ()
    try:
        rivals += [Rival(name, _repeatedly(_peer(name), seconds)) for name in PEERS]
    except ModuleNotFoundError:
        skipped = ("transitions is not installed (extra: bench)",)
    gc.enable()
    rounds = take_turns(rivals, options, 9)
    yield Report(
        "core: events answered, one whole saga after the other",
        "transitions/s",
        lines(rounds),
        tuple(_ratios(rounds)),
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

    if way == DRIVEN:
        return _replay(create(), [StepSucceeded(step.name, 1, OUTPUT, 1.0) for step in steps])

    def drive() -> int:
        saga = create()
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
        if saga.state is not rest:
            raise AssertionError(saga.state)
        return saga.revision

    return drive


def _replay(created: Saga, events: Sequence[Event]) -> Callable[[], int]:
    """Return a function that folds events; a saga never changes, so the same one can be driven again and again."""

    rest, count = SagaState.COMPLETED, len(events)

    def drive() -> int:
        saga = created
        for event in events:
            saga = transition(saga, event).saga
        if saga.state is not rest:
            raise AssertionError(saga.state)
        return count

    return drive


def _peer(way: str) -> Callable[[], Callable[[], int]]:
    """Return a saga of three steps as a machine of `transitions`: started, three steps, completed.

    Raises: ModuleNotFoundError.
    """
    from transitions import Machine

    like_a_saga = {"conditions": "awaited", "after": "tell"} if way == PEER_SAGA else {}
    states = ["first", "second", "third", "completed"]
    table = [
        {"trigger": "succeeded", "source": source, "dest": dest, **like_a_saga}
        for source, dest in itertools.pairwise(states)
    ]

    class Model:
        state: str
        succeeded: Callable[..., bool]

        def __init__(self) -> None:
            self.attempt = 1
            self.outputs: dict[str, Raw] = {}
            self.commands: tuple[tuple[str, int], ...] = ()

        def awaited(self, step: str, attempt: int, output: Raw) -> bool:
            return step == self.state and attempt == self.attempt

        def tell(self, step: str, attempt: int, output: Raw) -> None:
            self.outputs[step] = output
            self.commands = () if self.state == "completed" else ((self.state, 1),)

    machine_: Any = Machine(
        model=None, states=states, transitions=table, initial="first", auto_transitions=False
    )
    kept = Model()
    machine_.add_model(kept)

    def created() -> int:
        model = Model()
        machine_.add_model(model)
        for _ in range(3):
            model.succeeded()
        machine_.remove_model(model)
        if model.state != "completed":
            raise AssertionError(model.state)
        return 3

    def bare() -> int:
        kept.state = "first"
        for _ in range(3):
            kept.succeeded()
        if kept.state != "completed":
            raise AssertionError(kept.state)
        return 3

    def saga() -> int:
        kept.state = "first"
        for step in states[:-1]:
            kept.succeeded(step, 1, OUTPUT)
        if kept.state != "completed":
            raise AssertionError(kept.state)
        return 3

    return lambda: {PEER_CREATED: created, PEER_SAGA: saga, PEER_BARE: bare}[way]


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
    """Call a function for so many seconds; return how many transitions that were, and the seconds taken.

    The clock is looked at every millisecond or so: looking each time would make a saga of three steps a tenth dearer.
    """
    began, transitions, calls, more = time.perf_counter(), 0, 0, 1
    while True:
        for _ in range(more):
            transitions += drive()
        calls += more
        taken = time.perf_counter() - began
        if taken >= seconds:
            return transitions, taken
        more = max(1, int(LOOK * calls / taken))


def _ratios(rounds: Rounds) -> Iterator[Ratio]:
    small, large = SIZES[0], SIZES[-1]
    for way in WAYS:
        name = f"flatness, {way}: {large:,} steps / {small} steps"
        yield from ratio(name, rounds, [_name(large, way)], [_name(small, way)])
    for way, rival in ((CREATED, PEER_CREATED), (DRIVEN, PEER_SAGA), (DRIVEN, PEER_BARE)):
        yield from ratio(f"{_name(small, way)} / {rival}", rounds, [_name(small, way)], [rival])


def _name(size: int, way: str) -> str:
    return f"{size:,} steps, {way}"
