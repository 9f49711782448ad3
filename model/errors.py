"""The base of all errors that are shown to the user.

An error states the fact and its cause in `message` and what to do in `remedy`. The command line prints both and exits
with `exit_code`; the chat shows the same words.
"""


class DsliteError(Exception):
    """An error with a remedy. `exit_code` is that of the command line."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ConfigError(DsliteError):
    """config.json is malformed or asks for something that is not implemented."""

    exit_code = 3
