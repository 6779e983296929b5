"""What to do next. A command is data for outside, and is its own message: its JSON is what travels (`codec`)."""

from msgspec import Struct


class Execute(Struct, frozen=True, gc=False, tag_field="operation", tag="execute"):
    """Run a step's action."""

    saga: str
    step: str
    action: str
    attempt: int
    version: int = 1


class Compensate(Struct, frozen=True, gc=False, tag_field="operation", tag="compensate"):
    """Run a step's compensation; `action` is the compensation's name."""

    saga: str
    step: str
    action: str
    attempt: int
    version: int = 1


Command = Execute | Compensate
