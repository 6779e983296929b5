"""The course that every relay runs: what is published when, what is counted, what must be true at the end.

A *hop* is: consume a message, publish the next one to the same queue, wait for the broker's confirm,
acknowledge. Nothing here does I/O. A relay calls `seeds`, `received`, `confirmed` and `acknowledged` as
things happen; that is the same small work for each of them.
"""

import time
from collections.abc import Callable

import msgspec

BODY = msgspec.json.encode({"saga": "01J" + "0" * 23, "step": 1, "revision": 2, "payload": {"pad": ""}})
BODY = BODY.replace(b'"pad":""', b'"pad":"' + b"x" * (400 - len(BODY)) + b'"')
TYPE = "relay"

# How long a relay stays connected after its last acknowledgement, in seconds. Closed at once, RabbitMQ
# forgets some acknowledgements to a quorum queue though it has read them (seen on 3.10.8 with one
# acknowledgement for each message: in one run of ten up to 60 messages came back).
LINGER = 0.2


class Outcome(msgspec.Struct, frozen=True):
    """What a relay did: hops per second, processor time in microseconds per hop."""

    rate: float
    cpu: float


class BrokenCourseError(AssertionError):
    """A relay lost, repeated, or failed to confirm or acknowledge a message: its figure is worth nothing."""


class Course:
    """Keeps `in_flight` messages going round until `hops` hops were confirmed, then lets them run out.

    The clock runs from the hop `warm_up` to the hop `hops`, so filling and emptying aren't measured.
    `finished` is called once, when the last message is acknowledged.
    """

    def __init__(self, hops: int, in_flight: int, warm_up: int, finished: Callable[[], None]) -> None:
        self.hops, self.in_flight, self.warm_up, self.finished = hops, in_flight, warm_up, finished
        self.begun = self.done = self.settled = self.acked = 0
        self._ids = 0
        self._travelling: set[str] = set()
        self._start = self._end = (0.0, 0.0)

    def seeds(self) -> list[str]:
        """Return the ids of the messages to begin with."""
        return [self._new_id() for _ in range(self.in_flight)]

    def received(self, message_id: str, body: bytes) -> str | None:
        """Return the id of the message to publish next, or None when this one is only to be acknowledged."""
        try:
            self._travelling.remove(message_id)
        except KeyError:
            raise BrokenCourseError(
                f"message {message_id!r} was delivered twice or never published"
            ) from None
        if len(body) != len(BODY):
            raise BrokenCourseError(f"message {message_id!r} was delivered with {len(body)} bytes")
        if self.begun == self.hops:
            return None
        self.begun += 1
        return self._new_id()

    def seeded(self) -> None:
        """Note that the broker confirmed one of the first messages."""
        self.settled += 1

    def confirmed(self) -> None:
        """Note that the broker confirmed the message of a hop."""
        self.settled += 1
        self.done += 1
        if self.done == self.warm_up:
            self._start = time.perf_counter(), time.process_time()
        elif self.done == self.hops:
            self._end = time.perf_counter(), time.process_time()

    def acknowledged(self, count: int = 1) -> None:
        """Note that so many deliveries more were acknowledged."""
        self.acked += count
        if self.acked == self.hops + self.in_flight:
            self.finished()

    def outcome(self) -> Outcome:
        """Return the figures.

        Raises: BrokenCourseError.
        """
        everything = self.hops + self.in_flight
        if self._travelling or (self.done, self.settled, self.acked) != (self.hops, everything, everything):
            raise BrokenCourseError(
                f"of {everything} messages {self.settled} were confirmed, {self.acked} acknowledged; "
                f"{len(self._travelling)} were never delivered"
            )
        measured = self.hops - self.warm_up
        seconds, cpu = (end - start for start, end in zip(self._start, self._end, strict=True))
        return Outcome(measured / seconds, cpu / measured * 1e6)

    def _new_id(self) -> str:
        self._ids += 1
        message_id = f"{self._ids:026d}"  # as long as a ULID
        self._travelling.add(message_id)
        return message_id


class Acknowledger:
    """Turns single acknowledgements into few, each for everything up to a tag (`multiple`)."""

    def __init__(self, send: Callable[[int], None], course: Course) -> None:
        self._send, self._course = send, course
        self._acked, self._done = 0, set[int]()

    def add(self, tag: int) -> None:
        """Note that a delivery is done with."""
        self._done.add(tag)

    def flush(self) -> None:
        """Acknowledge all that can be, without leaving a gap."""
        tag, done = self._acked, self._done
        while tag + 1 in done:
            tag += 1
            done.remove(tag)
        if tag > self._acked:
            count, self._acked = tag - self._acked, tag
            self._send(tag)
            self._course.acknowledged(count)
