"""Go through every state that a saga can reach, and check in each what has to hold."""

from collections import Counter
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from msgspec import Struct

from saga_core.errors import SagaError
from saga_core.machine import new_saga
from saga_core.model import Saga
from saga_core.options import NO_OPTIONS, Options
from saga_core.plan import Plan, Step, plan_saga
from saga_core.shortcut import transition
from saga_core.states import SagaState
from saga_core.testing import invariants as rules
from saga_core.testing.definitions import write_definition
from saga_core.testing.inputs import write_happening
from saga_core.testing.likeness import Key, Twins, twins_of, world_key
from saga_core.testing.transcript import play
from saga_core.testing.world import (
    SAGA_ID,
    Happening,
    ManualOperation,
    Result,
    World,
    happen,
    happenings,
    stale,
    without_jitter,
)

Invariant = Callable[..., str | None]


class Violation(SagaError, AssertionError):
    """Something does not hold. `problem` says what; `trace` is the shortest way there, a transcript to `play`.

    It is an AssertionError too, so that test runners report it as what it is: a test that failed.
    """

    def __init__(self, problem: str, trace: str, length: int) -> None:
        super().__init__(f"{problem}\n\n{trace}")
        self.problem = problem
        self.trace = trace
        self.length = length


class TooManyStates(SagaError):
    """A saga has more states than the exploration may visit."""


class Exploration(Struct, frozen=True):
    """What was explored. `depth` is the length of the longest of all shortest ways to a state.

    `resting` counts the states in which the saga rests by what they are, `edges` are the moves of the machine that
    occurred: event, state before, state after.
    """

    states: int
    transitions: int
    depth: int
    resting: dict[SagaState, int]
    edges: frozenset[tuple[str, SagaState, SagaState]]

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {state}" for state, count in self.resting.items())
        return f"{self.states} states, {self.transitions} transitions, depth {self.depth}; at rest: {ends}"


def explore(
    steps: Sequence[Step[Any]],
    *,
    context: object = None,
    options: Options = NO_OPTIONS,
    failures: int = 1,
    operations: Sequence[ManualOperation] = (),
    invariants: Sequence[Invariant] = (),
    limit: int = 200_000,
) -> Exploration:
    """Visit every state that a saga can reach, breadth first, and check in each what has to hold.

    Every attempt has every outcome: success, skip, a final failure, a retryable one, an unknown outcome, a timeout,
    "later" and then a callback. They come in every order, twice, and late. `failures` is how many attempts in a row
    fail so that another one may follow, for each step and each operation. Each of the manual `operations` is asked
    for at any moment, at most once on each way. Delays have no jitter. What can happen is read off the sagas alone,
    as by an engine that has just been started: so a crash at any moment leads to nothing that is not visited.

    An invariant is a function of a saga, called for every state, or of (saga before, event, saga after), called for
    every event that is applied, to child sagas too. It returns what is wrong, or None. States that differ only in
    what can have no effect any more (past attempts, errors, outputs, moments) count as one, and so do, without such
    functions, states in which steps that are alike in everything but their names have changed places.

    Raises: DefinitionError, PayloadError; Violation with the shortest trace; TooManyStates beyond `limit`.
    """
    plan = plan_saga("explored", steps, context, id=SAGA_ID, at=0.0, options=options)
    saga = new_saga("explored", without_jitter(steps), context, id=SAGA_ID, at=0.0, options=options)
    return _Search(plan, saga, failures, tuple(operations), tuple(invariants), limit).run()


class _Search:
    def __init__(
        self,
        plan: Plan,
        saga: Saga,
        failures: int,
        operations: tuple[ManualOperation, ...],
        invariants: tuple[Invariant, ...],
        limit: int,
    ) -> None:
        self.plan = plan
        self.failures, self.operations, self.limit = failures, operations, limit
        self.of_states = [one for one in invariants if len(signature(one).parameters) == 1]
        self.of_events = [one for one in invariants if len(signature(one).parameters) != 1]
        self.symmetric = not invariants
        self.deciding = sum(1 << place for place, one in enumerate(operations) if one in ("resolve", "skip"))
        self.shapes: dict[str, rules.Shape] = {}
        self.twins: dict[str, Twins] = {}
        self.worlds = [World(0.0, (saga,))]
        self.keys = {self._key(self.worlds[0]): 0}
        self.came: list[tuple[int, Happening] | None] = [None]
        self.depths = [0]
        self.before: list[list[int]] = [[]]
        self.edges: set[tuple[str, SagaState, SagaState]] = set()
        self.transitions = 0

    def run(self) -> Exploration:
        self._check_world(0)
        index = 0
        while index < len(self.worlds):
            self._visit(index)
            index += 1
        self._check_ends()
        rest = Counter(world.sagas[0].state for world in self.worlds if world.sagas[0].at_rest)
        resting = {state: rest[state] for state in SagaState if state in rest}
        return Exploration(
            len(self.worlds), self.transitions, max(self.depths), resting, frozenset(self.edges)
        )

    def _visit(self, index: int) -> None:
        world = self.worlds[index]
        for happening in happenings(world, self.failures, self.operations):
            try:
                result = happen(world, happening)
                problem = self._check_result(happening, result)
            except Exception as error:
                raise self._violation(
                    f"{type(error).__name__} is raised: {error}", index, happening
                ) from error
            if problem is not None:
                raise self._violation(problem, index, happening)
            if result.answer is None or result.answer.ignored is None:
                self._arrive(index, happening, result.world)
        for saga, event in stale(world):
            answer = transition(saga, event)
            if answer.saga is not saga or answer.commands or answer.ignored is None:
                happening = Happening(saga.id, event.at, event)
                raise self._violation(
                    "a message that is late, or came twice, changes something (I2)", index, happening
                )

    def _check_result(self, happening: Happening, result: Result) -> str | None:
        before, event, answer = result.before, result.event, result.answer
        if before is None or event is None or answer is None:
            return None
        if answer.ignored is not None:
            if answer.saga is not before or answer.commands:
                return "an event is said to be ignored, and changes something"
            return None if happening.may_be_ignored else f"what is awaited is ignored: {answer.ignored}"
        self.edges.add((type(event).__name__, before.state, answer.saga.state))
        problem = rules.check_transition(before, event, answer, self.shapes[before.id])
        if problem is None:
            problem = next(filter(None, (one(before, event, answer.saga) for one in self.of_events)), None)
        return problem

    def _arrive(self, index: int, happening: Happening, world: World) -> None:
        self.transitions += 1
        key = self._key(world)
        found = self.keys.get(key)
        if found is None:
            found = len(self.worlds)
            if found >= self.limit:
                raise TooManyStates(
                    f"There are more than {self.limit} states; explore with fewer failures or operations, or a part "
                    f"of the saga, or raise the limit"
                )
            self.keys[key] = found
            self.worlds.append(world)
            self.came.append((index, happening))
            self.depths.append(self.depths[index] + 1)
            self.before.append([])
            self._check_world(found)
        if not happening.operation:
            self.before[found].append(index)

    def _check_world(self, index: int) -> None:
        world = self.worlds[index]
        for saga in world.sagas:
            try:
                problem = rules.check_state(saga, self.shapes[saga.id], world.now)
                if problem is None and (saga.at_rest or index % 64 == 0):
                    problem = rules.check_stored(saga)
                if problem is None:
                    problem = next(filter(None, (one(saga) for one in self.of_states)), None)
            except Exception as error:
                raise self._violation(f"{type(error).__name__} is raised: {error}", index) from error
            if problem is not None:
                raise self._violation(problem, index)
        if len(world.sagas) > 1:
            problem = rules.check_children(world.sagas, bool(world.used & self.deciding))
            if problem is not None:
                raise self._violation(problem, index)

    def _check_ends(self) -> None:
        """Go back from every world that is at rest, or waits for a person; whatever is not met never gets there."""
        reached = [_needs_nothing(world) for world in self.worlds]
        todo = [index for index, found in enumerate(reached) if found]
        while todo:
            for index in self.before[todo.pop()]:
                if not reached[index]:
                    reached[index] = True
                    todo.append(index)
        if not all(reached):
            raise self._violation("from here the saga never comes to rest (I1)", reached.index(False))

    def _violation(self, problem: str, index: int, last: Happening | None = None) -> Violation:
        way = [] if last is None else [last]
        came = self.came[index]
        while came is not None:
            index, happening = came
            way.append(happening)
            came = self.came[index]
        way.reverse()
        return Violation(problem, _told(self.plan, self.worlds[0], way), len(way))

    def _key(self, world: World) -> Key:
        for saga in world.sagas:
            if saga.id not in self.twins:
                self.shapes[saga.id] = rules.shape_of(saga.plan)
                self.twins[saga.id] = twins_of(saga.plan) if self.symmetric else ()
        return world_key(world, self.twins)


def _told(plan: Plan, world: World, way: Sequence[Happening]) -> str:
    """Return a way through the worlds as a transcript."""
    lines = [*write_definition(plan), "", "> start"]
    try:
        for happening in way:
            lines += ["", write_happening(world, happening)]
            world = happen(world, happening).world
        return play("\n".join(lines))
    except Exception as error:
        # The last step of the way is what makes the machine raise.
        return "\n".join([*lines, f"  raises {type(error).__name__}: {error}"])


def _needs_nothing(world: World) -> bool:
    first, *others = world.sagas
    return first.at_rest or first.suspended or any(one.suspended or one.is_failed for one in others)
