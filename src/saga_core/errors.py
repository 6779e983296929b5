"""The exception tree of the library: one root, each class one reason.

Errors of the adapter (stores, transports, handlers) live in `saga_amqp.errors` and descend from the same root.
"""


class SagaError(Exception):
    """Root of every exception that this library raises."""


class DefinitionError(SagaError):
    """A saga's definition cannot be run: empty, a name twice, or a name that cannot be used."""


class PayloadError(SagaError):
    """A context, input or output cannot be written as a JSON object, or does not fit the type that reads it."""


class UnknownStepError(SagaError):
    """An event or a caller names a step that its saga does not have."""


class CodecError(SagaError):
    """Bytes from a message or a store are not what this library writes."""


class StepError(SagaError):
    """Raise this in a handler to say what kind of failure it was.

    `code` is for machines, `message` for people; `retryable` says whether another attempt could succeed;
    `details` is anything that JSON can hold, and is kept with the step.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class TokenError(SagaError):
    """A token of a deferred step is malformed, or was not made for this saga."""


class HandlerError(SagaError):
    """A handler cannot be used: not async, a wrong signature, registered twice, or missing."""
