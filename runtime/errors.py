"""The errors of the runtime, each with the exit code of the command line.

DsliteError (1)
├── UsageError (2)             the request is wrong
├── ModelUnavailableError (3)  the model or device is absent, incomplete, damaged or not supported
│   ├── CheckpointError        a file of the model is at fault
│   └── OutOfMemoryError       weights or intermediate values do not fit into memory
├── ContextFullError (4)       the prompt does not fit into the context
└── NumericsError (1)          the network computed NaN or infinity
"""

from dslite.model.errors import ConfigError, DsliteError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContextFullError",
    "DsliteError",
    "ModelUnavailableError",
    "NumericsError",
    "OutOfMemoryError",
    "UsageError",
]


class UsageError(DsliteError):
    """The request is wrong."""

    exit_code = 2


class ModelUnavailableError(DsliteError):
    """The model or the device is not available."""

    exit_code = 3


class CheckpointError(ModelUnavailableError):
    """A file of the model is missing, damaged or not what its config says."""


class OutOfMemoryError(ModelUnavailableError):
    """Memory ran out, and nothing more could be freed."""

    @classmethod
    def of(cls, error: BaseException, what: str) -> "OutOfMemoryError":
        """From what torch or the system said, with the remedy."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return cls(
            f"memory ran out for {what}: {reason}",
            "give a smaller --ctx-size or fewer --expert-slots, or close other programs; dslite plan shows what fits",
        )


class ContextFullError(DsliteError):
    """More tokens than the context holds."""

    exit_code = 4


class NumericsError(DsliteError):
    """The network computed NaN or infinity: its weights are damaged."""
