"""A Hub on loopback that speaks the real protocol, and misbehaves where a test asks for it.

    with HubServer() as hub:
        commit = hub.publish("owner/name", {"config.json": b"{}", "model.safetensors": weights})
        hub.on("model.safetensors").drop_at = [1000, 2000]

The protocol is what huggingface_hub 2.4 expects (hf_api.py, file_download.py): revision and tree API, `resolve` with a
redirect to a CDN of another origin for large files, and the headers X-Repo-Commit, X-Linked-Etag and X-Linked-Size.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 16 * 1024


@dataclass
class Behaviour:
    """How one file's bytes are served. Lists are used up from the front, one entry a request."""

    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answers before it goes well
    drop_at: list[int] = field(default_factory=list)  # places in the file where the connection breaks
    hold_at: int | None = None  # a place where the server falls silent until `release`
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    instead: bytes | None = None  # other bytes of the same length, or another answer altogether
    etag: str | None = None
    ignores_ranges: bool = False
    without_length: bool = False


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Repo:
    """Commits with their files, and what guards them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gate: tuple[int, str] | None = None  # status and X-Error-Code for whoever comes without `token`
    token: str | None = None
    declared: dict[str, tuple[int, str]] = field(default_factory=dict)  # sizes and hashes of files too big for a test


def git_sha1(data: bytes) -> str:
    """git's id of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def blob_name(name: str, data: bytes) -> str:
    """Under which name the cache keeps a file."""
    return hashlib.sha256(data).hexdigest() if is_large(name) else git_sha1(data)


class HubServer:
    """A Hub and its CDN, two ports of 127.0.0.1."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.sent: dict[str, int] = defaultdict(int)  # bytes of each file that left
        self.xet = False
        self.api_statuses: list[tuple[int, dict[str, str]]] = []
        self.tree_page = 4
        self._behaviours: dict[str, Behaviour] = defaultdict(Behaviour)
        self._servers = [_Server(self, _HubHandler), _Server(self, _CdnHandler)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for behaviour in self._behaviours.values():
            behaviour.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repo_id: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """Commit files and move a branch there; returns the commit."""
        repo = self.repos.setdefault(repo_id, Repo())
        listing = "".join(f"{name} {git_sha1(data)}\n" for name, data in sorted(files.items()))
        commit = hashlib.sha1(listing.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[revision] = commit
        return commit

    def on(self, name: str) -> Behaviour:
        """How the file of this name is served."""
        return self._behaviours[name]

    def fetched(self, name: str) -> list[Seen]:
        """The GET requests for a file."""
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.endswith("/" + name)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: with it each answer takes 40 ms
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        raise NotImplementedError  # each of the two servers has its own

    def do_HEAD(self) -> None:
        self.do_GET()

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def note(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(self.command, path, self.headers["Range"], self.headers["Authorization"]))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.reply(status, body, X_Error_Code=code, X_Error_Message=message)

    def serve(self, name: str, data: bytes, **headers: str) -> None:
        """A file's bytes from where the request asks, with what its behaviour adds."""
        how = self.hub.on(name)
        if self.command == "GET" and how.statuses:
            status, extra = how.statuses.pop(0)
            self.reply(status, b"busy", **extra)
            return
        if how.hold_at == -1 and self.command == "GET":
            how.held.set()
            how.release.wait()
        data = data if how.instead is None else how.instead
        start = 0
        asked = self.headers["Range"]
        if asked and not how.ignores_ranges:
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self.reply(416, Content_Range=f"bytes */{len(data)}")
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        if how.without_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(name, data, start, how)

    def _send(self, name: str, data: bytes, start: int, how: Behaviour) -> None:
        drop = next((place for place in how.drop_at if place >= start), None)
        end = len(data) if drop is None else drop
        while start < end:
            stop = min(start + PIECE, end)
            if how.hold_at is not None and start < how.hold_at:
                stop = min(stop, how.hold_at)
            self.wfile.write(data[start:stop])
            self.hub.sent[name] += stop - start
            start = stop
            if start == how.hold_at:
                how.held.set()
                how.release.wait()
                how.release.clear()
        if drop is not None:
            how.drop_at.remove(drop)
            self.close_connection = True


class _HubHandler(_Handler):
    """API and `resolve`."""

    def do_GET(self) -> None:
        self.note()
        path = urlsplit(self.path).path
        if path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif path.startswith("/api/resolve-cache/"):
            self._small(path.removeprefix("/api/resolve-cache/"))
        elif "/resolve/" in path:
            repo_id, _, rest = path.removeprefix("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            self._resolve(repo_id, unquote(revision), unquote(name))
        else:
            self.refuse(404, "", "Not found")

    def _api(self, path: str) -> None:
        if self.hub.api_statuses:
            status, extra = self.hub.api_statuses.pop(0)
            self.reply(status, b"busy", **extra)
            return
        parts = path.split("/")
        repo_id, kind = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "revision"
        commit = self._commit(repo_id, unquote(parts[3]) if len(parts) > 3 else "main")
        if commit is None:
            return
        repo = self.hub.repos[repo_id]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in repo.commits[commit]]
            body = {"id": repo_id, "sha": commit, "cardData": repo.card, "siblings": siblings}
            self.reply(200, json.dumps(body).encode(), Content_Type="application/json")
        else:
            self._tree(repo.commits[commit], repo.declared)

    def _tree(self, files: Mapping[str, bytes], declared: Mapping[str, tuple[int, str]]) -> None:
        """One page; the Link header leads to the next."""
        place = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        entries = [self._entry(name, data) for name, data in sorted(files.items())]
        for name, (size, sha256) in declared.items():
            lfs = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append({"type": "file", "path": name, "size": size, "oid": git_sha1(b""), "lfs": lfs})
        page = entries[place : place + self.hub.tree_page]
        headers = {"Content_Type": "application/json"}
        if place + self.hub.tree_page < len(entries):
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.endpoint}{path}?cursor={place + self.hub.tree_page}>; rel="next"'
        self.reply(200, json.dumps(page).encode(), **headers)

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git_sha1(data)}
        if is_large(name):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            if self.hub.xet:
                entry["xetHash"] = hashlib.sha256(b"xet" + data).hexdigest()
        return entry

    def _commit(self, repo_id: str, revision: str) -> str | None:
        """The commit of a revision; None when the request was refused."""
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
            return None
        if repo.gate and self.headers["Authorization"] != f"Bearer {repo.token}":
            self.refuse(*repo.gate, f"Access to model {repo_id} is restricted")
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        commit = self._commit(repo_id, revision)
        if commit is None:
            return
        data = self.hub.repos[repo_id].commits[commit].get(name)
        if data is None:
            self.refuse(404, "EntryNotFound", "TranscriptItem not found")
            return
        etag = self.hub.on(name).etag or blob_name(name, data)
        headers = {"X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if is_large(name):
            headers |= {"X_Linked_Etag": f'"{etag}"', "X_Linked_Size": str(len(data))}
            if self.hub.xet:
                headers["X_Xet_Hash"] = hashlib.sha256(b"xet" + data).hexdigest()
                headers["X_Xet_Refresh_Route"] = f"/api/models/{repo_id}/xet-read-token/{commit}"
            self.reply(302, b"", Location=f"{self.hub.cdn}/{repo_id}/{commit}/{name}", **headers)
        else:
            headers["ETag"] = f'"{etag}"'
            self.reply(307, b"", Location=f"/api/resolve-cache/models/{repo_id}/{commit}/{name}", **headers)

    def _small(self, path: str) -> None:
        _, owner, model, commit, name = path.split("/", 4)
        data = self.hub.repos[f"{owner}/{model}"].commits[commit][name]
        etag = self.hub.on(name).etag or blob_name(name, data)
        self.serve(name, data, ETag=f'"{etag}"', X_Repo_Commit=commit)


class _CdnHandler(_Handler):
    """Large files by a signed address. As storage services do, it refuses whoever also sends a token."""

    def do_GET(self) -> None:
        self.note()
        owner, model, commit, name = urlsplit(self.path).path.removeprefix("/").split("/", 3)
        if self.headers["Authorization"]:
            self.reply(400, b"only one auth mechanism allowed")
            return
        data = self.hub.repos[f"{owner}/{model}"].commits[commit][name]
        self.serve(name, data, ETag='"of-the-storage-3"')
