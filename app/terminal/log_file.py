"""dslite.log: what happened, for when somebody asks later. Nothing of it is needed, so nothing breaks without it."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from dslite.app.terminal import console
from dslite.runtime.errors import DsliteError
from dslite.runtime.paths import log_dir

_MOST_BYTES = 2_000_000
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _File(logging.Handler):
    """Appends to the log; a file that has grown large becomes dslite.log.1."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, DsliteError):  # the second: there is no home folder
            file = log_file()
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file() and file.stat().st_size > _MOST_BYTES:
                with suppress(OSError):  # Windows renames no file that another process has open: it grows on
                    file.replace(file.with_name(file.name + ".1"))
            with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(self.format(record) + "\n")


class _Stderr(logging.Handler):
    """Shows records where stderr goes at that moment: a terminal application puts its own in that place.

    Their tracebacks are shown under --debug alone; the file always has them.
    """

    def emit(self, record: logging.LogRecord) -> None:
        shown = f"dslite: {self.format(record) if console.settings.debug else record.getMessage()}"
        with suppress(OSError, ValueError):
            print(shown, file=sys.stderr)


def log_file() -> Path:
    """Where the log lies."""
    return log_dir() / "dslite.log"


def log_place() -> str:
    """Where the log lies, in words: without a home folder there is none."""
    try:
        return str(log_file())
    except DsliteError as error:
        return error.message


def keep_log(*, answers: bool = True, stderr: bool = True) -> None:
    """Write what the package logs into its file, and its warnings also to stderr. Without `answers`, warnings alone."""
    logger = logging.getLogger("dslite")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _File | _Stderr)]:
        logger.removeHandler(handler)
    logger.setLevel(logging.INFO if answers else logging.WARNING)
    file = _File()
    file.setFormatter(logging.Formatter(_FORMAT))
    logger.addHandler(file)
    if stderr:
        logger.addHandler(_Stderr(logging.WARNING))


def log_error(error: BaseException) -> None:
    """Write an error with its traceback into the log, and to no screen. It never fails: an error is being reported."""
    with suppress(Exception):
        handler = _File()
        handler.setFormatter(logging.Formatter(_FORMAT))
        about = (type(error), error, error.__traceback__)
        handler.emit(logging.LogRecord("dslite", logging.ERROR, __file__, 0, str(error), None, about))
