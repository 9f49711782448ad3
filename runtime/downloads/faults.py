"""What went wrong in a download, in words, with the remedy: the Hub's refusals, TLS, proxies, names, the disk.

Each kind has a message of its own, because each has another remedy: a certificate of an unknown authority is not mended
by waiting, and a missing file of certificates is no fault of the cache. All have the exit code of a model that cannot
be had, and what was fetched before stays.
"""

import errno
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import DsliteError, ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_E = TypeVar("_E", bound=BaseException)

_KEPT = "try again later; what came is kept"
_ELSEWHERE = "or put the cache elsewhere with HF_HOME"
_DISK_REMEDIES = {
    errno.ENOSPC: f"make room, {_ELSEWHERE}, and pull again: what came is kept",
    errno.EDQUOT: f"make room within your quota, {_ELSEWHERE}, and pull again: what came is kept",
    errno.EROFS: "the disk is mounted for reading only: put the cache elsewhere with HF_HOME",
    errno.EACCES: f"change its permissions, {_ELSEWHERE}",
    errno.EPERM: f"change its permissions, {_ELSEWHERE}",
    errno.EFBIG: "the file system takes no files of this size: put the cache elsewhere with HF_HOME",
    errno.EIO: f"check the disk, {_ELSEWHERE}",
}
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_CLOCK, _HOSTNAME = (9, 10), (62, 64)  # X509_V_ERR of OpenSSL's x509_vfy.h


def hub_session() -> Any:
    """The Hub's HTTP client. Raises ModelUnavailableError for certificates or a proxy that cannot be used."""
    from huggingface_hub import get_session

    for variable in _CERTIFICATE_VARIABLES:
        place = os.environ.get(variable)
        if place and not Path(place).exists():
            raise ModelUnavailableError(
                f"{variable} names {place}, which does not exist",
                f"correct {variable}, or unset it to use the usual authorities",
            )
    try:
        return get_session()
    except ssl.SSLError as error:
        raise ModelUnavailableError(
            f"SSL_CERT_FILE names {os.environ.get('SSL_CERT_FILE')}, which holds no certificate: {error.reason}",
            "name a file of certificates in PEM form, or unset SSL_CERT_FILE",
        ) from error
    except Exception as error:  # httpx2 raises ImportError, ValueError and an error of its own for proxies
        raise ModelUnavailableError(
            f"the proxy of the environment cannot be used ({_proxy_text()}): {error}",
            "correct or unset HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; they begin with http:// or https://",
        ) from error


def explain(error: Exception, ref: ModelRef) -> DsliteError:
    """A download's error with its remedy. Raises errors that have none of these causes."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, DsliteError):
        return error
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{ref.name!r} is not a model's name: {error}", "write it as owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelUnavailableError(f"{ref.name} would need the network, and HF_HUB_OFFLINE forbids it")
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, ref)
    if isinstance(error, httpx2.HTTPError | ssl.SSLError):
        return _unreachable(error)
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error)
    raise error


def disk_error(error: OSError, place: Path | None = None) -> ModelUnavailableError:
    """A file or folder of the cache that cannot be written. `place` is named where the error names none."""
    where = error.filename or place or "the cache"
    remedy = _DISK_REMEDIES.get(error.errno or 0, f"check the disk, {_ELSEWHERE}; what came is kept")
    return ModelUnavailableError(f"{where} cannot be written: {error.strerror}", remedy)


def cause_of(error: BaseException, kind: type[_E]) -> _E | None:
    """The first error of a kind among an error and those that it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, kind):
            return current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


def _refused(error: "HfHubHTTPError", ref: ModelRef) -> DsliteError:
    """What the Hub, or a proxy in between, answered with a status."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{ref.repo_id}"
    status = error.response.status_code
    said = f": {error.server_message}" if error.server_message else ""
    if isinstance(error, errors.GatedRepoError):
        who = "your token has no access to it yet" if get_token() else "no token was sent"
        return ModelUnavailableError(
            f"{ref.repo_id} is gated, and {who}",
            f"accept its licence on {page}, then set HF_TOKEN to a token of that account",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelUnavailableError(f"{ref.repo_id} has no revision {ref.revision}", f"see {page}/tree/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelUnavailableError(
            f"{constants.ENDPOINT} has no repository {ref.repo_id}, or it is private",
            "check the name; for a private one set HF_TOKEN to a token that may read it",
        )
    if status == 407:
        return _proxy_error(f"asks for a name and a password ({status}{said})")
    if status in (401, 403):
        return ModelUnavailableError(
            f"the Hub refuses {ref.repo_id} ({status}{said})",
            "set HF_TOKEN to a valid token of an account that may read it, or unset a wrong one",
        )
    return ModelUnavailableError(f"the Hub answered {status} for {ref.repo_id}{said}", _KEPT)


def _unreachable(error: Exception) -> DsliteError:
    """TLS, a proxy, a name, or the connection, from the most special to the most general."""
    import httpx2
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    host = _host_of(error) or urlsplit(endpoint).hostname or endpoint
    if (untrusted := cause_of(error, ssl.SSLCertVerificationError)) is not None:
        return ModelUnavailableError(
            f"the certificate of {host} is not trusted: {untrusted.verify_message}", _certificate_remedy(untrusted)
        )
    if (broken := cause_of(error, ssl.SSLError)) is not None:
        return ModelUnavailableError(
            f"no TLS connection to {host}: {broken.reason or broken}",
            "check HF_ENDPOINT (http:// or https://) and the proxy, which may not speak TLS",
        )
    if cause_of(error, httpx2.ProxyError) is not None:
        return _proxy_error(f"refuses ({error})")
    no_connection = cause_of(error, ConnectionError) or cause_of(error, socket.gaierror)
    if no_connection is not None and _proxy_of(endpoint):
        return _proxy_error(f"cannot be reached ({error})")
    if (unknown := cause_of(error, socket.gaierror)) is not None:
        return ModelUnavailableError(
            f"{endpoint} cannot be reached: the name {host} is not known ({unknown.strerror})",
            f"check the connection and HF_ENDPOINT, and {_KEPT}",
        )
    return ModelUnavailableError(
        f"{endpoint} cannot be reached ({type(error).__name__}: {error})",
        f"check the connection, the proxy and HF_ENDPOINT, and {_KEPT}",
    )


def _certificate_remedy(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _CLOCK:
        return "check this machine's clock; if it is right, the server's certificate must be renewed"
    if error.verify_code in _HOSTNAME:
        return "check HF_ENDPOINT: another machine answers under this name, or a login page of the network does"
    return (
        "if this network has an authority of its own, set SSL_CERT_FILE to a file with its certificate and the usual "
        "ones in PEM form"
    )


def _host_of(error: Exception) -> str | None:
    """The host that a request asked; files lie on another one than the Hub's pages."""
    try:
        return str(error.request.url.host) or None  # type: ignore[attr-defined]  # httpx2's errors
    except (AttributeError, RuntimeError):
        return None


def _proxy_error(what: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"the proxy {_proxy_text()} {what}",
        "check HTTPS_PROXY, HTTP_PROXY and ALL_PROXY; NO_PROXY lists hosts that are reached without it",
    )


def _proxy_of(url: str) -> str | None:
    """The proxy that a URL is fetched through, of the environment or the system's settings."""
    parts = urlsplit(url)
    if parts.hostname and proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


def _proxy_text() -> str:
    """The proxy for the Hub without the password in it."""
    from huggingface_hub import constants

    proxy = _proxy_of(constants.ENDPOINT) or next(iter(getproxies().values()), "")
    before, separator, behind = proxy.rpartition("@")
    return f"{before.partition('://')[0]}://…@{behind}" if separator else proxy
