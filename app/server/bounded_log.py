"""A log that clients cannot fill: the first record of a kind is written, and later ones at 10, 100, 1,000, …"""

import logging
from collections import Counter

_LIBRARIES = ("uvicorn.error", "asyncio")
_REWORDED = {  # uvicorn's text: what it means to the operator of this server
    "Unsupported upgrade request.": "a client asked for a WebSocket, which this server does not have",
    "Invalid HTTP request received.": "a client sent something that is not HTTP/1.1",
    "Exceeded concurrency limit.": "too many connections are busy at once; a request was refused with 503",
}
_DROPPED = "No supported WebSocket library"


class OncePerKind(logging.Filter):
    """Passes the records of a kind whose number is a power of ten, all but the first without their traceback."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, object, object]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.msg, record.exc_info[0] if record.exc_info else None)
        self._counts[key] += 1
        count = self._counts[key]
        if count > 1:
            record.exc_info = record.exc_text = None
            record.msg = f"{record.msg} ({count:,} times so far)"
        return str(count).strip("0") == "1"


class _Forward(logging.Handler):
    """Gives a library's records to the log of the server."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if not message.startswith(_DROPPED):
            text = _REWORDED.get(message, message)
            logging.getLogger("dslite.server").log(record.levelno, text, exc_info=record.exc_info)


def bound_log() -> None:
    """Bound what the server and its libraries log in this process."""
    logging.getLogger("dslite.server").addFilter(OncePerKind())
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.addHandler(_Forward(logging.WARNING))
        logger.propagate = False
