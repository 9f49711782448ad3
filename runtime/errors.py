"""What can go wrong between a request and its answer, each with the contract's exit code.

DsliteError (1)
├── UsageError (2)             the request itself is wrong
├── ModelUnavailableError (3)  the model or device cannot be had: absent, incomplete, damaged, not supported
│   ├── CheckpointError        a file of the model at fault
│   └── OutOfMemoryError       the weights, or the work, do not fit into memory
├── ContextFullError (4)       the context cannot take the prompt
└── NumericsError (1)          the network gave something that is not a number
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
    """The request itself is wrong."""

    exit_code = 2


class ModelUnavailableError(DsliteError):
    """The model or the device cannot be had."""

    exit_code = 3


class CheckpointError(ModelUnavailableError):
    """A file of the model is missing, damaged or not what its config says."""


class OutOfMemoryError(ModelUnavailableError):
    """Memory ran out, and nothing was left to give back."""

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
