"""Each kind of fault of a download has its own message and remedy, at once where waiting does not mend it."""

import errno
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from support.hub_fixtures import LITE
from support.hub_server import HubServer
from support.permissions import read_only

from dslite.runtime.downloads import fetch
from dslite.runtime.downloads.download import pull
from dslite.runtime.downloads.faults import disk_error, explain
from dslite.runtime.downloads.hub import RepoCache, cache_root, locate, parse_model
from dslite.runtime.downloads.inventory import remove
from dslite.runtime.downloads.retry import Retry, reason_to_retry
from dslite.runtime.errors import DsliteError, ModelUnavailableError
from dslite.runtime.events import Present, PullEvent

TLS = Path(__file__).parents[2] / "support" / "tls"
CHAT = parse_model("chat")


class NoWaits(Retry):
    """Fails where a wait before another try is asked for."""

    def pause(self, seconds: float, cancel: threading.Event | None = None) -> None:
        raise AssertionError("it is tried again")


def pulled(retry: Retry | None = None) -> list[PullEvent]:
    return list(pull(CHAT, retry=retry or Retry(attempts=1)))


class _Answer(BaseHTTPRequestHandler):
    """Answers each request with the server's status."""

    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """On a port of 127.0.0.1, with TLS where a certificate is given."""

    daemon_threads = True

    def __init__(self, status: int = 404, certificate: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f"https://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that ends the connection is what these tests are about."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def endpoint(hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A Hub at the address that a test sets, and a client that reads the environment anew."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.close_session()
    yield monkeypatch
    huggingface_hub.close_session()


def at(endpoint: pytest.MonkeyPatch, url: str) -> None:
    endpoint.setattr(constants, "ENDPOINT", url)
    endpoint.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize(
    ("certificate", "trusted", "message", "remedy"),
    [
        ("unknown_authority.pem", None, "certificate of 127.0.0.1 is not trusted", "SSL_CERT_FILE"),
        ("another_host.pem", "another_host.pem", "certificate of 127.0.0.1 is not trusted", "HF_ENDPOINT"),
        ("unknown_authority.pem", "unknown_authority.pem", "answered 404", "try again"),  # the connection is made
    ],
)
def test_a_certificate_that_is_not_trusted_is_named_at_once_with_its_remedy(
    endpoint: pytest.MonkeyPatch, certificate: str, trusted: str | None, message: str, remedy: str
) -> None:
    server = Server(certificate=certificate)
    if trusted is not None:
        endpoint.setenv("SSL_CERT_FILE", str(TLS / trusted))
    at(endpoint, server.url)
    try:
        with pytest.raises(ModelUnavailableError, match=message) as caught:
            pulled(NoWaits())
    finally:
        server.close()
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(("code", "remedy"), [(9, "clock"), (10, "clock"), (62, "HF_ENDPOINT"), (20, "SSL_CERT_FILE")])
def test_each_reason_not_to_trust_a_certificate_has_its_remedy(code: int, remedy: str) -> None:
    import httpx2

    inner = ssl.SSLCertVerificationError(1, "verify failed")
    inner.verify_code, inner.verify_message = code, "as OpenSSL says"
    error = httpx2.ConnectError("verify failed")
    error.__cause__ = inner
    told = explain(error, CHAT)
    assert "as OpenSSL says" in told.message
    assert remedy in told.remedy
    assert reason_to_retry(error) is None


def test_a_server_that_speaks_no_tls_is_told(endpoint: pytest.MonkeyPatch) -> None:
    server = Server()
    at(endpoint, server.url.replace("http:", "https:"))
    try:
        with pytest.raises(ModelUnavailableError, match=r"no TLS connection to 127\.0\.0\.1") as caught:
            pulled()
    finally:
        server.close()
    assert "HF_ENDPOINT" in caught.value.remedy


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_missing_certificates_are_named_by_their_variable(endpoint: pytest.MonkeyPatch, variable: str) -> None:
    endpoint.setenv(variable, "/no/such/place")
    with pytest.raises(ModelUnavailableError, match=f"{variable} names /no/such/place, which does not exist") as caught:
        pulled(NoWaits())
    assert "unset" in caught.value.remedy


def test_a_file_without_certificates_is_named(endpoint: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    endpoint.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    with pytest.raises(ModelUnavailableError, match=r"empty\.pem, which holds no certificate") as caught:
        pulled(NoWaits())
    assert "PEM" in caught.value.remedy


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "foo://x", "http://:bad:port"])
def test_a_proxy_that_cannot_be_used_is_named(endpoint: pytest.MonkeyPatch, proxy: str) -> None:
    endpoint.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ModelUnavailableError, match="the proxy of the environment cannot be used") as caught:
        pulled(NoWaits())
    assert "HTTPS_PROXY" in caught.value.remedy


def test_a_proxy_that_is_not_there_is_named_without_its_password(endpoint: pytest.MonkeyPatch) -> None:
    at(endpoint, "http://hub.example")
    endpoint.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:1")
    with pytest.raises(ModelUnavailableError, match=r"the proxy http://…@127\.0\.0\.1:1 cannot be reached") as caught:
        pulled()
    assert "NO_PROXY" in caught.value.remedy
    assert "secret" not in caught.value.message + caught.value.remedy


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_named(endpoint: pytest.MonkeyPatch, scheme: str) -> None:
    server = Server(status=407)
    at(endpoint, f"{scheme}://hub.example")
    endpoint.setenv(f"{scheme.upper()}_PROXY", server.url)
    try:
        with pytest.raises(ModelUnavailableError, match=r"the proxy http://127\.0\.0\.1:\d+ .*407") as caught:
            pulled()
    finally:
        server.close()
    assert "HTTPS_PROXY" in caught.value.remedy


def test_a_name_that_is_not_known_is_told_at_once(endpoint: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    at(endpoint, "http://hub.invalid")
    endpoint.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ModelUnavailableError, match=r"the name hub\.invalid is not known") as caught:
        pulled(NoWaits())
    assert "HF_ENDPOINT" in caught.value.remedy


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permissions"),
        (errno.EPERM, "permissions"),
        (errno.EROFS, "reading only"),
        (errno.EFBIG, "files of this size"),
        (errno.EIO, "check the disk"),
        (errno.ENXIO, "check the disk"),
    ],
)
def test_each_refusal_of_the_disk_has_its_remedy(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def write(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fetch, "_write", write)
    with pytest.raises(ModelUnavailableError, match="cannot be written") as told:
        pulled()
    assert os.strerror(number) in told.value.message
    assert remedy in told.value.remedy
    assert "HF_HOME" in told.value.remedy


def test_an_error_that_is_no_fault_of_a_download_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError):
        explain(KeyError("a mistake of ours"), CHAT)
    assert "the cache" in disk_error(OSError(errno.EIO, "broken")).message


def test_a_shared_cache_that_has_the_model_whole_needs_no_permission_to_write(hub: HubServer) -> None:
    pulled()
    folder = locate(CHAT)
    sent = dict(hub.sent)
    for record in (True, False):  # with what this user has checked before, and as another user who has checked nothing
        if not record:
            (Path(os.environ["DSLITE_CACHE_DIR"]) / "verified.json").unlink()
        with read_only(cache_root()):
            events = pulled()
        assert isinstance(events[-1], Present)
        assert events[-1].folder == folder
        assert {name: hub.sent[name] - count for name, count in sent.items() if "safetensors" in name} == dict.fromkeys(
            (name for name in sent if "safetensors" in name), 0
        )


def test_a_shared_cache_that_lacks_a_file_is_told_as_not_writable(hub: HubServer) -> None:
    pulled()
    next(RepoCache.of(LITE).blobs.iterdir()).unlink()
    with read_only(cache_root()), pytest.raises(ModelUnavailableError, match="cannot be written") as caught:
        pulled()
    assert "permissions" in caught.value.remedy


@pytest.mark.parametrize("which", ["snapshots", "blobs", "."])
def test_a_removal_without_permission_is_an_error_and_not_a_success(
    hub: HubServer, which: str, caplog: pytest.LogCaptureFixture
) -> None:
    pulled()
    cache = RepoCache.of(LITE)
    with read_only(cache.folder / which), pytest.raises(DsliteError, match="chat was not removed") as caught:
        remove(CHAT)
    assert caught.value.exit_code == 1
    assert "Permission denied" in caught.value.message
    assert "permissions" in caught.value.remedy
    assert cache.folder.is_dir()
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_revision_is_not_removed_without_permission(hub: HubServer) -> None:
    commit = locate(CHAT).name if pulled() else ""
    with read_only(RepoCache.of(LITE).folder), pytest.raises(DsliteError, match="was not removed"):
        remove(parse_model(f"chat@{commit}"))
    assert locate(CHAT).name == commit


def test_a_hub_that_is_silent_is_left_when_cancelled(hub: HubServer, endpoint: pytest.MonkeyPatch) -> None:
    """The first request of all: no file is known yet, and no worker runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    at(endpoint, f"http://127.0.0.1:{listener.getsockname()[1]}")
    cancel = threading.Event()
    found: list[PullEvent] = []
    thread = threading.Thread(target=lambda: found.extend(pull(CHAT, cancel=cancel)))
    thread.start()
    connection, _ = listener.accept()  # the request has begun
    cancel.set()
    thread.join(60)
    assert not thread.is_alive()
    assert found == []
    connection.close()
    listener.close()


def test_a_wait_for_another_try_is_left_when_cancelled(hub: HubServer) -> None:
    cancel = threading.Event()

    class Long(Retry):
        def pause(self, seconds: float, cancel: threading.Event | None = None) -> None:
            assert cancel is not None
            cancel.set()
            super().pause(3600, cancel)

    hub.api_statuses = [(503, {})] * 20
    assert list(pull(CHAT, cancel=cancel, retry=Long())) == []
