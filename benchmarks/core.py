"""Measure transitions of the core per second, and whether a long saga pays more for each than a short one.

A saga is driven to its rest: from its creation on, each event built from the command that it answers, as users do; or
by events that are there already, so that nothing but transitions is measured, of the core as of its rivals.
"""

import gc
import importlib
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType

from msgspec import Raw

from benchmarks.report import Report, machine
from benchmarks.runner import Options, Ratio, Rival, Rounds, Sample, lines, ratio, repeatedly, take_turns
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
WAYS = (CREATED, CREATED_UNDONE, DRIVEN) = (
    "created, completed",
    "created, the last fails, all undone",
    "completed, events ready",
)
PEERS = {"transitions": "with_transitions", "python-statemachine": "with_statemachine"}
PEER_CREATED, PEER_SAGA, PEER_BARE = (
    "made, three triggers",
    "three triggers that check the attempt, keep the output, tell what is next",
    "three triggers and nothing else",
)
PEER_WAYS = {PEER_CREATED: "created", PEER_SAGA: "like_a_saga", PEER_BARE: "bare"}
KEPT = 1_000
"""How many sagas are made, of three steps, to see what memory one takes."""


def run(options: Options) -> Iterator[Report]:
    """Measure sagas that complete and sagas that are undone, and a well-known state machine beside them."""
    seconds = 0.05 if options.quick else 0.25
    rivals = [
        Rival(_name(size, way), repeatedly(partial(_saga, size, way), seconds))
        for way in WAYS
        for size in SIZES
    ]
    peers, skipped = _peers()
    rivals += [
        Rival(f"{peer}: {way}", repeatedly(getattr(module, made), seconds))
        for peer, module in peers.items()
        for way, made in PEER_WAYS.items()
    ]
    gc.enable()
    rounds = take_turns(rivals, options, 5)
    yield Report(
        "core: events answered, one whole saga after the other",
        "transitions/s",
        lines(rounds),
        tuple(_ratios(rounds)),
        skipped,
        {**machine(), "gc": "on" if gc.isenabled() else "off"},
    )
    yield Report(
        "core: what a saga takes in memory", "bytes", lines(_memory(peers, options)), skipped=skipped
    )


def _peers() -> tuple[Mapping[str, ModuleType], tuple[str, ...]]:
    """Return the peers that are installed, and what there is to say of the others."""
    found: dict[str, ModuleType] = {}
    missing: list[str] = []
    for peer, module in PEERS.items():
        try:
            found[peer] = importlib.import_module(f"benchmarks.machines.{module}")
        except ModuleNotFoundError:
            missing.append(f"{peer} is not installed (extra: peers)")
    return found, tuple(missing)


def _memory(peers: Mapping[str, ModuleType], options: Options) -> Rounds:
    """Return how many bytes are allocated for each saga that is kept, as Python counts them."""
    made: dict[str, Callable[[int], object]] = {}
    for size in SIZES:
        for state, share in (("created", 0.0), ("completed", 1.0)):
            made[f"memory, {size:,} steps, {state}"] = partial(_kept, size, share)
    for peer, module in peers.items():
        made[f"memory, {peer}: a machine of three steps"] = module.many
    rounds: dict[str, list[Sample]] = {}
    for name, make in made.items():
        if options.wants(name):
            count = KEPT if "1,000" not in name else KEPT // 50
            make(1)  # what is made once for all is not counted
            gc.collect()
            tracemalloc.start()
            kept = make(count)
            gc.collect()
            rounds[name] = [Sample(tracemalloc.get_traced_memory()[0] / count, 0.0)]
            tracemalloc.stop()
            del kept
    return rounds


def _kept(size: int, share: float, count: int) -> list[Saga]:
    """Return so many sagas, each with this share of its steps completed."""
    sagas: list[Saga] = []
    for number in range(count):
        saga = new_saga("benchmark", _steps(size), {"order": number}, id=f"01J{number:023d}", at=0.0)
        for step in [step.name for step in saga.steps][: int(size * share)]:
            saga = transition(saga, StepSucceeded(step, 1, Raw(b'{"ok":%d}' % number), 1.0)).saga
        sagas.append(saga)
    return sagas


def _steps(size: int) -> Sequence[Step]:
    return [Step(name=f"step{i}", action="do", compensation="undo") for i in range(size)]


def _saga(size: int, way: str) -> Callable[[], int]:
    """Return a function that drives one saga to its rest and returns how many transitions that took."""
    steps = _steps(size)
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


def _ratios(rounds: Rounds) -> Iterator[Ratio]:
    small, large = SIZES[0], SIZES[-1]
    for way in WAYS:
        name = f"flatness, {way}: {large:,} steps / {small} steps"
        yield from ratio(name, rounds, [_name(large, way)], [_name(small, way)])
    for peer in PEERS:
        for way, rival in ((CREATED, PEER_CREATED), (DRIVEN, PEER_SAGA), (DRIVEN, PEER_BARE)):
            name = f"{peer}: {rival}"
            yield from ratio(f"{_name(small, way)} / {name}", rounds, [_name(small, way)], [name])


def _name(size: int, way: str) -> str:
    return f"{size:,} steps, {way}"
