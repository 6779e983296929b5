"""Whether a process lives. Everything that reaches out of it asks first, so a dead one has no last words."""

from collections.abc import Callable


class Died(BaseException):
    """A dead process asked for something. It is no Exception, so that nothing but its own end catches it."""


class Pulse:
    """One life of one process: from its start to its crash or its end."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.alive = True
        self._then: list[Callable[[], None]] = []

    def at_death(self, do: Callable[[], None]) -> None:
        """Call a function in the moment of death."""
        self._then.append(do)

    def die(self) -> None:
        """End at once: from now on nothing gets out."""
        if not self.alive:
            return
        self.alive = False
        for do in self._then:
            do()

    def check(self) -> None:
        """Raise Died in a dead process."""
        if not self.alive:
            raise Died
