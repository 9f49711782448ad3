"""When asking the Hub again may help, and how long to wait before."""

import socket
import ssl
from dataclasses import dataclass
from threading import Event as Flag

from dslite.runtime.downloads.faults import cause_of

_AGAIN = (408, 429, 500, 502, 503, 504)
_MOST_WAIT_S = 120.0


@dataclass(frozen=True)
class Retry:
    """How often to try when nothing came in between, and how long to wait, doubling each time."""

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 8.0

    def wait(self, failures: int, error: Exception) -> float:
        """Seconds to wait: what the server asks for in Retry-After, within reason, or more with each failure."""
        response = getattr(error, "response", None)
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        if asked.isdecimal():
            return min(float(asked), _MOST_WAIT_S)
        return min(self.first_s * 2.0**failures, self.most_s)

    def pause(self, seconds: float, cancel: Flag | None = None) -> None:
        """Wait for some seconds, or until `cancel` is set."""
        (cancel or Flag()).wait(seconds)


def reason_to_retry(error: Exception) -> str | None:
    """Why trying again may help; None where it cannot."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    unknown = cause_of(error, socket.gaierror)
    if cause_of(error, ssl.SSLCertVerificationError) or (unknown and unknown.errno == socket.EAI_NONAME):
        return None  # neither a certificate nor a name is mended by waiting
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"the server answered {status}" if status in _AGAIN else None
    if isinstance(error, httpx2.TimeoutException):
        return "the server sends nothing"
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return "the connection broke"
    return None
