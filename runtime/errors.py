"""What can go wrong between a request and its answer, each with the contract's exit code.

DsliteError (1)
├── UsageError (2)             the request itself is wrong
├── ModelUnavailableError (3)  the model or device cannot be had: absent, incomplete, damaged, not supported
│   └── CheckpointError        a file of the model at fault
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


class ContextFullError(DsliteError):
    """More tokens than the context holds."""

    exit_code = 4


class NumericsError(DsliteError):
    """The network computed NaN or infinity: its weights are damaged."""
