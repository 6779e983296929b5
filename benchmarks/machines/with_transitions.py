"""A saga of three steps as a machine of the package `transitions`."""

import itertools
from collections.abc import Callable
from typing import Any

from msgspec import Raw
from transitions import Machine

OUTPUT = Raw(b'{"ok":true}')
STATES = ("first", "second", "third", "completed")


class Model:
    """What a saga has to keep, and to tell."""

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


def machine(**more: str) -> Any:
    """Return a machine without models; `more` is what each transition calls beside."""
    table = [
        {"trigger": "succeeded", "source": source, "dest": dest, **more}
        for source, dest in itertools.pairwise(STATES)
    ]
    return Machine(
        model=None, states=list(STATES), transitions=table, initial=STATES[0], auto_transitions=False
    )


def created() -> Callable[[], int]:
    """Return what makes a model and leads it to its end, and says how many transitions that took."""
    made = machine()

    def drive() -> int:
        model = Model()
        made.add_model(model)
        for _ in range(3):
            model.succeeded()
        made.remove_model(model)
        assert model.state == STATES[-1]
        return 3

    return drive


def like_a_saga() -> Callable[[], int]:
    """Return the same for a model that is there, checks the attempt, keeps the output, and tells what is next."""
    model = Model()
    machine(conditions="awaited", after="tell").add_model(model)

    def drive() -> int:
        model.state = STATES[0]
        for step in STATES[:-1]:
            model.succeeded(step, 1, OUTPUT)
        assert model.state == STATES[-1]
        return 3

    return drive


def bare() -> Callable[[], int]:
    """Return the same for a model that is there and does nothing."""
    model = Model()
    machine().add_model(model)

    def drive() -> int:
        model.state = STATES[0]
        for _ in range(3):
            model.succeeded()
        assert model.state == STATES[-1]
        return 3

    return drive


def many(count: int) -> object:
    """Return so many models, each in its first state."""
    made, models = machine(), [Model() for _ in range(count)]
    for model in models:
        made.add_model(model)
    return made, models
