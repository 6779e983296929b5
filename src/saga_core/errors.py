"""The exception tree of the library: one root, each class one reason.

Errors of the adapter (stores, transports, handlers) live in `saga_amqp.errors` and descend from the same root.
"""


class SagaError(Exception):
    """Root of every exception that this library raises."""


class DefinitionError(SagaError):
    """A saga's definition cannot be run: empty, a name twice, or a name that is unknown."""


class PayloadError(SagaError):
    """A context, input or output cannot be written as JSON, or does not fit the type that reads it."""


class UnknownStepError(SagaError):
    """An event or a caller names a step that its saga does not have."""


class CodecError(SagaError):
    """Bytes from a message or a store are not what this library writes."""
