"""Larger sagas from smaller lists of steps.

A list of steps means what it means to a saga: a step without `depends_on` follows the one before it. Each function
returns a list in which every dependency is written out, so that lists can be put together in any order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from saga_core.plan import Step

Steps = Sequence[Step[Any]]


def prefix(name: str, steps: Steps) -> list[Step[Any]]:
    """Put `name` and a dot before the name of every step, and of every dependency among them."""
    own = {step.name for step in steps}

    def rename(old: str) -> str:
        return f"{name}.{old}" if old in own else old

    return [
        replace(step, name=rename(step.name), depends_on=tuple(map(rename, step.depends_on or ())))
        for step in _written_out(steps)
    ]


def sequence(*groups: Steps) -> list[Step[Any]]:
    """Join groups so that each begins when every step of the one before has ended well."""
    joined: list[Step[Any]] = []
    ends: tuple[str, ...] = ()
    for group in groups:
        if group:
            steps = _written_out(group)
            joined += [step if step.depends_on else replace(step, depends_on=ends) for step in steps]
            ends = _ends(steps)
    return joined


def parallel(*groups: Steps) -> list[Step[Any]]:
    """Join groups so that they run side by side."""
    return [step for group in groups for step in _written_out(group)]


def _written_out(steps: Steps) -> list[Step[Any]]:
    return [
        step
        if step.depends_on is not None
        else replace(step, depends_on=(steps[place - 1].name,) if place else ())
        for place, step in enumerate(steps)
    ]


def _ends(steps: Iterable[Step[Any]]) -> tuple[str, ...]:
    steps = list(steps)
    waited_for = {name for step in steps for name in step.depends_on or ()}
    return tuple(step.name for step in steps if step.name not in waited_for)
