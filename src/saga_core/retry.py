"""How often to try again, and when: policies as data, delays as pure functions of them."""

from hashlib import blake2b

from msgspec import Struct
from msgspec.structs import force_setattr

from saga_core.errors import DefinitionError
from saga_core.states import Operation


class RetryPolicy(Struct, frozen=True, gc=False, omit_defaults=True):
    """When a failed attempt is followed by another one.

    The delay before attempt n + 1 is `initial_delay` * `multiplier` ** (n - 1) seconds, at most `max_delay`, and then
    shortened by up to the fraction `jitter`: chance that is drawn from the saga's id, so that every machine draws
    the same. `max_attempts` counts the first one too; None is without end. With `retry_on` only errors with these
    codes are tried again. An error that says it is not retryable never is.
    """

    max_attempts: int | None = 3
    initial_delay: float = 1.0
    multiplier: float = 2.0
    max_delay: float = 300.0
    jitter: float = 0.1
    retry_on: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise DefinitionError where the numbers make no sense."""
        if self.max_attempts is not None and self.max_attempts < 1:
            raise DefinitionError(f"max_attempts must be at least 1, or None, not {self.max_attempts}")
        for name in ("initial_delay", "max_delay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise DefinitionError(f"{name} must be a number of seconds, not {getattr(self, name)}")
        if self.initial_delay > self.max_delay:
            raise DefinitionError(
                f"initial_delay, {self.initial_delay}, must not be above max_delay, {self.max_delay}; raise that too"
            )
        if not 1 <= self.multiplier < float("inf"):
            raise DefinitionError(f"multiplier must be at least 1, not {self.multiplier}")
        if not 0 <= self.jitter <= 1:
            raise DefinitionError(f"jitter must be a fraction from 0 to 1, not {self.jitter}")
        if isinstance(self.retry_on, str):
            raise DefinitionError(f"retry_on takes a tuple of codes, not the text {self.retry_on!r}")
        # Whole numbers become floats now, for they would when read back.
        for name in ("initial_delay", "multiplier", "max_delay", "jitter"):
            force_setattr(self, name, float(getattr(self, name)))


NO_RETRY = RetryPolicy(max_attempts=1)
"""What a step does unless told otherwise: its first failure is final."""

PATIENT = RetryPolicy(max_attempts=1000)
"""What a compensation does unless told otherwise: three days of attempts, in the end every five minutes."""


def delay_before(
    policy: RetryPolicy, used: int, saga_id: str, step: str, attempt: int, operation: Operation
) -> float:
    """Return how many seconds to wait after `used` failed attempts; `attempt` is the number of the next one."""
    try:
        grown = policy.initial_delay * policy.multiplier ** (used - 1)
    except OverflowError:
        grown = policy.max_delay
    delay = min(grown, policy.max_delay)
    if policy.jitter == 0 or delay == 0:
        return delay
    seed = f"{saga_id}/{step}/{operation}/{attempt}".encode()
    chance = int.from_bytes(blake2b(seed, digest_size=4).digest(), "big") / 2**32
    return delay * (1 - policy.jitter * chance)
