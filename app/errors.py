"""What can go wrong with a user's own files: conversations and settings.

DsliteError
├── SessionsError            conversations cannot be read or saved
├── ConfigFileError          config.toml cannot be read, understood or written
└── NotFoundError            there is no profile of that name
    └── NoConversationError  there is no such conversation; a SessionsError, too
"""

from dslite.model.errors import DsliteError


class SessionsError(DsliteError):
    """Conversations cannot be read or saved: no room, no permission, damaged, or from a newer dslite."""


class ConfigFileError(DsliteError):
    """config.toml cannot be read, understood or written."""


class NotFoundError(DsliteError):
    """Nothing has that name."""


class NoConversationError(NotFoundError, SessionsError):
    """No conversation has that id, or more than one begins so."""
