"""What was read, as JSON: to be written down by one release, and compared by another."""

from enum import Enum
from typing import Any

import msgspec

from saga_core import Saga, Step, outstanding, wake_at


def told(value: object) -> Any:
    """Tell of structs by the names of their fields, which are part of the library's interface."""
    if isinstance(value, msgspec.Struct):
        fields = {name: told(getattr(value, name)) for name in value.__struct_fields__}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: told(inner) for key, inner in value.items()}
    return [told(inner) for inner in value] if isinstance(value, list | tuple) else value


def told_of(saga: Saga) -> dict[str, Any]:
    """Tell of a saga what its users can see, and what there is to be done for it."""
    names = (
        "id", "name", "state", "revision", "created_at", "updated_at", "completed_at", "suspended", "context", "tags",
    )  # fmt: skip
    return {
        **{name: told(getattr(saga, name)) for name in names},
        "options": told(saga.plan.options),
        "steps": [_step(step) for step in saga.steps],
        "outstanding": told(outstanding(saga)),
        "wake_at": wake_at(saga),
    }


def _step(step: Step) -> dict[str, Any]:
    fields: dict[str, Any] = told(step)
    del fields["origin"]
    return fields | {"id": step.id, "token": step.token}


def agrees(now: Any, then: Any) -> bool:
    """Whether all that was told then is told now; a later release may tell more."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(
            key in now and agrees(now[key], value) for key, value in then.items()
        )
    if isinstance(then, list):
        return isinstance(now, list) and len(now) == len(then) and all(map(agrees, now, then))
    return bool(now == then)
