"""A saga of three steps as a machine of the package `python-statemachine`, where each saga is a machine."""

from collections.abc import Callable

from msgspec import Raw
from statemachine import State, StateMachine

OUTPUT = Raw(b'{"ok":true}')
STATES = ("first", "second", "third", "completed")


class Bare(StateMachine):
    """Three steps and nothing else, and a way back, for a final state is left by nothing."""

    first, second, third, completed = State(initial=True), State(), State(), State()
    succeeded = first.to(second) | second.to(third) | third.to(completed)
    again = completed.to(first)


class LikeASaga(StateMachine):
    """Three steps that check the attempt, keep the output, and tell what is next."""

    first, second, third, completed = State(initial=True), State(), State(), State()
    succeeded = (
        first.to(second, cond="awaited", on="tell")
        | second.to(third, cond="awaited", on="tell")
        | third.to(completed, cond="awaited", on="tell")
    )
    again = completed.to(first)

    def __init__(self) -> None:
        self.attempt = 1
        self.outputs: dict[str, Raw] = {}
        self.commands: tuple[tuple[str, int], ...] = ()
        super().__init__()

    def awaited(self, step: str, attempt: int, output: Raw) -> bool:
        return step == self.current_state_value and attempt == self.attempt

    def tell(self, step: str, attempt: int, output: Raw) -> None:
        self.outputs[step] = output
        self.commands = () if step == STATES[2] else ((STATES[STATES.index(step) + 1], 1),)


def created() -> Callable[[], int]:
    """Return what makes a machine and leads it to its end, and says how many transitions that took."""

    def drive() -> int:
        machine = Bare()
        for _ in range(3):
            machine.succeeded()
        assert machine.current_state_value == STATES[-1]
        return 3

    return drive


def like_a_saga() -> Callable[[], int]:
    """Return the same for one that is there, checks the attempt, keeps the output, and tells what is next."""
    machine = LikeASaga()

    def drive() -> int:
        for step in STATES[:-1]:
            machine.succeeded(step, 1, OUTPUT)
        machine.again()
        assert len(machine.outputs) == 3
        return 4

    return drive


def bare() -> Callable[[], int]:
    """Return the same for one that is there and does nothing."""
    machine = Bare()

    def drive() -> int:
        for _ in range(3):
            machine.succeeded()
        machine.again()
        return 4

    return drive


def many(count: int) -> object:
    """Return so many machines, each in its first state."""
    return [Bare() for _ in range(count)]
