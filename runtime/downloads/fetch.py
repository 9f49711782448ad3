"""One file of the Hub, fetched so that no byte comes twice.

huggingface_hub 2.4 begins a file anew in every process and leaves the old beginning behind: killed at 8 of 8.6 GB, it
loses them. So the bytes are fetched here, by ranged requests through the library's own HTTP client (its proxies, its
offline switch), into a file named after the hash that the whole will have. That name is what makes resuming safe: a
beginning is never continued with another file's end, and nothing gets the blob's own name before its hash was checked.
A repository that is served by Xet answers the same requests through its bridge.
"""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from dslite.runtime.downloads.faults import disk_error, hub_session
from dslite.runtime.downloads.jobs import Job
from dslite.runtime.downloads.repository import RemoteFile
from dslite.runtime.downloads.retry import Retry, reason_to_retry
from dslite.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import httpx2

_READ_BYTES = 1 << 20


class Hasher:
    """The hash that the Hub gives a file: SHA-256 of a large one, git's SHA-1 of a blob for the others."""

    def __init__(self, blob: str, size: int) -> None:
        if len(blob) == 64:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        self.update = self._hash.update
        self.hexdigest = self._hash.hexdigest


def hash_file(file: Path, blob: str, job: Job) -> str:
    """Hash a file as its blob's name was made. Raises OSError, Cancelled."""
    with FileIO(file) as stream:
        hasher = Hasher(blob, os.fstat(stream.fileno()).st_size)
        _hash_rest(hasher, stream, job)
    job.moved += job.done
    return hasher.hexdigest()


def _hash_rest(hasher: Hasher, stream: FileIO, job: Job) -> None:
    job.stage, job.done = "checking", 0
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := stream.readinto(buffer):
        job.check_cancel()
        hasher.update(buffer[:count])
        job.done += count


def fetch(url: str, headers: dict[str, str], file: RemoteFile, partial: Path, job: Job, retry: Retry) -> None:
    """Complete the beginning of a file at `partial` and check its hash.

    Raises CheckpointError for wrong bytes, whose file is then gone, Cancelled, and the errors of the Hub's client: what
    came before them stays.
    """
    with _opened(partial) as stream:
        hasher = Hasher(file.blob, file.size)
        if stream.seek(0, os.SEEK_END) > file.size:
            stream.truncate(0)
        if stream.seek(0, os.SEEK_END):
            stream.seek(0)
            _hash_rest(hasher, stream, job)
        failures = 0
        while job.done < file.size:
            before = job.done
            try:
                _append(url, headers, file, stream, hasher, job)
            except Exception as error:
                job.check_cancel()
                reason = reason_to_retry(error)
                failures = 1 if job.done > before else failures + 1
                if reason is None or failures >= retry.attempts:
                    raise
                wait = retry.wait(failures - 1, error)
                job.stage, job.note = "retrying", f"{reason}; trying again in {wait:.0f} s"
                retry.pause(wait, job.cancel)
                job.check_cancel()
        os.fsync(stream.fileno())
    if hasher.hexdigest() != file.blob:
        partial.unlink()
        raise CheckpointError(
            f"{file.name} came with wrong bytes: their hash is {hasher.hexdigest()}, and the Hub says {file.blob}",
            "the file was removed: pull again; if it comes wrong again, use another network or no mirror",
        )


@contextmanager
def _opened(partial: Path) -> Iterator[FileIO]:
    """The beginning of a file, unbuffered, at its end. Raises ModelUnavailableError for what the disk refuses."""
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        with FileIO(descriptor, "r+b") as stream:
            yield stream
    except OSError as error:
        if error.errno is None:
            raise  # errors of the Hub's client are OSErrors too; those of the disk have a number
        raise disk_error(error, partial.parent) from error


def _append(url: str, headers: dict[str, str], file: RemoteFile, stream: FileIO, hasher: Hasher, job: Job) -> None:
    """Append what one request brings. Raises where it ends too early."""
    import httpx2
    from huggingface_hub import constants, hf_raise_for_status

    headers = {**headers, "Accept-Encoding": "identity"}
    if job.done:
        headers["Range"] = f"bytes={job.done}-"
    timeout = httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    with hub_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        skip = _overlap(response, file, job.done)
        job.abort = lambda: _shut(response)
        job.stage, job.note = "fetching", ""
        try:
            for chunk in response.iter_bytes():
                job.check_cancel()
                new = memoryview(chunk)[skip : skip + file.size - job.done]
                skip = max(0, skip - len(chunk))
                _write(stream, new)
                hasher.update(new)
                job.done += len(new)
                job.moved += len(new)
        finally:
            job.abort = None
    if job.done < file.size:
        raise httpx2.RemoteProtocolError("the answer ended early")


def _overlap(response: "httpx2.Response", file: RemoteFile, start: int) -> int:
    """How many bytes of an answer are already here. Raises CheckpointError for an answer that is not the file."""
    total, overlap = response.headers.get("Content-Length", ""), start
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        overlap = start - int(found[1]) if found else -1
        total = found[2] if found else ""
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if overlap < 0 or (total.isdecimal() and int(total) != file.size and not encoded):
        raise CheckpointError(
            f"the server sends {total or 'an unknown number of'} bytes for {file.name}, which has {file.size}",
            "a login page of the network, a proxy or a broken mirror may be in between: check HF_ENDPOINT",
        )
    return overlap


def _write(stream: FileIO, data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]


def _shut(response: "httpx2.Response") -> None:
    """End a read that waits for a silent server. Only the plain shutdown wakes it, under TLS too."""
    network = response.extensions.get("network_stream")
    connection = network.get_extra_info("socket") if network is not None else None
    if connection is not None:
        with suppress(OSError):  # it has ended by itself meanwhile
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
