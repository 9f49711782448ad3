"""What can go wrong with a user's own files: conversations and settings."""

from dslite.model.errors import DsliteError


class SessionsError(DsliteError):
    """Conversations cannot be read or saved: no room, no permission, damaged, or from a newer dslite."""


class ConfigFileError(DsliteError):
    """config.toml cannot be read, understood or written."""


class NotFoundError(DsliteError):
    """No conversation or profile has that name, or more than one begins so."""
