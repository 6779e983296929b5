"""How long frames take, and how connections break."""

from random import Random
from typing import TYPE_CHECKING

from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.chance import Chance
from saga_amqp.testing.world.faults import Fault, Faults

if TYPE_CHECKING:
    from saga_amqp.testing.world.link import Link


class Network:
    """Between all processes and the broker. So many frames are `under_way`."""

    def __init__(self, agenda: Agenda, faults: Faults, chance: Chance) -> None:
        self.agenda = agenda
        self.faults = faults
        self.chance = chance
        self.under_way = 0
        self._mean = 10 ** (-4 + 2 * chance.random("mean"))

    def delay(self, who: str, about: str) -> float:
        """Return how many seconds a frame is under way."""
        delay = self.chance.exponential(about, self._mean)
        if drawn := self.faults.strike(Fault.SLOW_FRAME, who, about):
            delay += drawn.uniform(0, 3)
        return delay

    def cut(self, link: "Link", drawn: Random) -> None:
        """Break a connection: both sides notice at once, or one of them much later than the other."""
        ends = [drawn.uniform(0, 10) if drawn.random() < 0.3 else drawn.uniform(0, 0.05) for _ in range(2)]
        link.cut(*ends)
