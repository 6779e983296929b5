"""Who waits for whom: a saga's steps as a directed graph without cycles, checked once and read by position."""

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from saga_core.errors import DefinitionError

# The records of steps are kept in tuples of this length, in one tuple: to replace one is to copy two short tuples.
CHUNK = 32

# How many kinds of sagas have their graph remembered. One of 1,000 steps takes a few hundred kilobytes.
REMEMBERED = 128


class Handover(Struct, frozen=True, gc=False):
    """What changes when a step has completed that one other simply follows, or none.

    `follower` is the position of the one that does: it waits for this step alone, and under no condition or time. None
    where no step waits. `mask` are the two. `outer` and `inner` say in which chunk the step's record is and where in
    it; `beyond` and `place` say it of the follower's, or once more of the step's.
    """

    follower: int | None
    mask: int
    outer: int
    inner: int
    beyond: int
    place: int


class Graph(Struct, frozen=True, gc=False):
    """Dependencies by position. A mask is an int with one bit per position, the lowest for the first step.

    `positions` gives a step's place by its name. `masks` are the dependencies once more, as masks; `roots` are the
    steps that wait for nothing, and `behind` those after the pivot, 0 without one. `handovers` are by name, those of
    the steps that have one: where several wait, or the one that waits does for others too, it is another matter.
    """

    positions: dict[str, int]
    handovers: dict[str, Handover]
    dependencies: tuple[tuple[int, ...], ...]
    dependents: tuple[tuple[int, ...], ...]
    masks: tuple[int, ...]
    roots: int
    behind: int


@lru_cache(REMEMBERED)
def build_graph(
    names: tuple[str, ...],
    depends_on: tuple[tuple[str, ...] | None, ...],
    plain: tuple[bool, ...],
    pivot: int | None,
    where: str,
) -> Graph:
    """Build the graph of named steps. None depends on the step before, an empty tuple on nothing.

    `plain` are the steps that begin without a condition, a clock or a child; `where` names the saga in errors. Sagas
    of one kind share their graph: it is remembered.

    Raises: DefinitionError for an unknown name, a name twice, a cycle, or a step beside the pivot.
    """
    positions = {name: position for position, name in enumerate(names)}
    dependencies: list[tuple[int, ...]] = []
    dependents: list[list[int]] = [[] for _ in names]
    for position, (name, wanted) in enumerate(zip(names, depends_on, strict=True)):
        if wanted is None:
            found: tuple[int, ...] = (position - 1,) if position else ()
        else:
            for other in wanted:
                if other not in positions:
                    raise DefinitionError(
                        f"{where}: step {name!r} depends on {other!r}, and there is no such step"
                    )
            if len(set(wanted)) < len(wanted):
                raise DefinitionError(f"{where}: step {name!r} names a dependency twice: {', '.join(wanted)}")
            found = tuple(positions[other] for other in wanted)
        dependencies.append(found)
        for other_position in found:
            dependents[other_position].append(position)
    frozen = tuple(map(tuple, dependents))
    _check_cycles(names, dependencies, frozen, where)
    behind = 0
    if pivot is not None:
        behind = _reach(pivot, frozen)
        beside = ~(behind | _reach(pivot, dependencies) | 1 << pivot) & (1 << len(names)) - 1
        if beside:
            others = ", ".join(repr(name) for position, name in enumerate(names) if beside >> position & 1)
            raise DefinitionError(
                f"{where}: the pivot {names[pivot]!r} must not run beside other steps, and {others} can run beside it; "
                f"let the pivot depend on them, or them on the pivot"
            )

    return Graph(
        positions,
        _handovers(names, dependencies, frozen, plain),
        tuple(dependencies),
        frozen,
        tuple(sum(1 << other for other in found) for found in dependencies),
        sum(1 << position for position, found in enumerate(dependencies) if not found),
        behind,
    )


def _check_cycles(
    names: Sequence[str],
    dependencies: Sequence[tuple[int, ...]],
    dependents: Sequence[tuple[int, ...]],
    where: str,
) -> None:
    # Kahn's algorithm; what it cannot take off lies on a cycle, or behind one.
    left = [len(found) for found in dependencies]
    free = [position for position, count in enumerate(left) if count == 0]
    for position in free:
        for dependent in dependents[position]:
            left[dependent] -= 1
            if left[dependent] == 0:
                free.append(dependent)
    if len(free) == len(names):
        return
    stuck = set(range(len(names))) - set(free)
    position = min(stuck)
    path: list[int] = []
    while position not in path:
        path.append(position)
        position = next(other for other in dependencies[position] if other in stuck)
    circle = [*path[path.index(position) :], position]
    raise DefinitionError(
        f"{where}: steps depend on each other in a circle: {' → '.join(repr(names[place]) for place in circle)}"
    )


def _handovers(
    names: Sequence[str],
    dependencies: Sequence[tuple[int, ...]],
    dependents: Sequence[tuple[int, ...]],
    plain: Sequence[bool],
) -> dict[str, Handover]:
    found: dict[str, Handover] = {}
    for position, (name, waiting) in enumerate(zip(names, dependents, strict=True)):
        mask, place = 1 << position, divmod(position, CHUNK)
        if not waiting:
            found[name] = Handover(None, mask, *place, *place)
        elif len(waiting) == 1 and plain[waiting[0]] and dependencies[waiting[0]] == (position,):
            follower = waiting[0]
            found[name] = Handover(follower, mask | 1 << follower, *place, *divmod(follower, CHUNK))
    return found


def _reach(start: int, edges: Sequence[tuple[int, ...]]) -> int:
    seen, todo = 0, list(edges[start])
    while todo:
        position = todo.pop()
        if not seen >> position & 1:
            seen |= 1 << position
            todo.extend(edges[position])
    return seen
