"""The root of every error that a user can meet.

An error states the fact and its cause in `message` and what to do in `remedy`. The command line prints both and exits
with `exit_code`; the chat shows the same words.
"""


class DsliteError(Exception):
    """A fault with a remedy. `exit_code` is the contract's."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ConfigError(DsliteError):
    """config.json is malformed or asks for something that is not implemented."""

    exit_code = 3
