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


def shown_error(error: Exception) -> DsliteError:
    """An error of any kind as one that can be shown; the traceback of one that no code expected goes to the log."""
    if isinstance(error, DsliteError):
        return error
    from dslite.app.terminal.log_file import log_error

    log_error(error)
    return DsliteError(f"unexpected {type(error).__name__}: {error}", "the log has the details: dslite.log")
