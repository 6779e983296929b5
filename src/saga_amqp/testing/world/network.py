"""How long frames take, and how connections break."""

from random import Random
from typing import TYPE_CHECKING

from saga_amqp.testing.world.agenda import Agenda
from saga_amqp.testing.world.faults import Fault, Faults

if TYPE_CHECKING:
    from saga_amqp.testing.world.link import Link


class Network:
    """Between all processes and the broker. So many frames are `under_way`."""

    def __init__(self, agenda: Agenda, faults: Faults, source: Random) -> None:
        self.agenda = agenda
        self.faults = faults
        self.source = source
        self.under_way = 0
        self._mean = 10 ** source.uniform(-4, -2)

    def delay(self, who: str) -> float:
        """Return how many seconds a frame is under way."""
        delay = self.source.expovariate(1 / self._mean)
        if self.faults.strike(Fault.SLOW_FRAME, who):
            delay += self.faults.source(Fault.SLOW_FRAME, f"{who} by").uniform(0, 3)
        return delay

    def cut(self, link: "Link") -> None:
        """Break a connection: both sides notice at once, or one of them much later than the other."""
        drawn = self.faults.source(Fault.CUT, f"{link.who} how").random
        ends = [10 * drawn() if drawn() < 0.3 else 0.05 * drawn() for _ in range(2)]
        link.cut(*ends)
