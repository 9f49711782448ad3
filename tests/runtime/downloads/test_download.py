"""Downloads against a Hub on loopback that misbehaves: nothing lost, no good byte fetched twice."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from io import FileIO
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download
from support.hub_fixtures import BESIDE, LITE
from support.hub_server import PIECE, HubServer, blob_name

from dslite.model.errors import ConfigError
from dslite.runtime.downloads import fetch
from dslite.runtime.downloads.download import pull
from dslite.runtime.downloads.hub import ModelRef, RepoCache, locate, parse_model
from dslite.runtime.downloads.retry import Retry
from dslite.runtime.errors import CheckpointError, DsliteError, ModelUnavailableError
from dslite.runtime.events import Downloading, Found, Present, PullEvent
from dslite.runtime.weights.checkpoint import Checkpoint

AT_ONCE = Retry(first_s=0.0)
SHARD = "model-00002-of-00003.safetensors"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
Files = dict[str, bytes]


def pulled(ref: ModelRef | str = "chat", **options: object) -> list[PullEvent]:
    ref = parse_model(ref) if isinstance(ref, str) else ref
    return list(pull(ref, **({"retry": AT_ONCE} | options)))  # type: ignore[arg-type]


def folder_of(events: list[PullEvent]) -> Path:
    assert isinstance(events[-1], Present)
    return events[-1].folder


def partial_of(files: Files, name: str) -> Path:
    return RepoCache.of(LITE).partial(blob_name(name, files[name]))


def ranges(hub: HubServer, name: str) -> list[str | None]:
    """The ranges in which a file was asked for: of the storage, or of the Hub for small files."""
    return [seen.range for seen in hub.fetched(name) if "/resolve/" not in seen.path]


def test_a_pulled_model_has_the_published_bytes_and_is_found_by_the_library_too(
    hub: HubServer, lite_files: Files
) -> None:
    folder = folder_of(pulled())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: data for name, data in lite_files.items() if name not in BESIDE
    }
    assert locate(parse_model("chat")) == folder
    assert Path(snapshot_download(LITE, local_files_only=True)) == folder
    Checkpoint.open(folder)


def test_only_files_that_are_read_are_fetched_each_once(hub: HubServer, lite_files: Files) -> None:
    pulled()
    assert {name: len(ranges(hub, name)) for name in lite_files} == {
        name: 0 if name in BESIDE else 1 for name in lite_files
    }


def test_the_licence_and_the_sizes_are_told_before_a_file_is_asked_for(hub: HubServer, lite_files: Files) -> None:
    events = pull(parse_model("chat"))
    found = next(events)
    events.close()
    assert isinstance(found, Found)
    assert (found.licence, found.licence_url) == (
        "DeepSeek model licence",
        "https://github.com/deepseek-ai/DeepSeek-V2/blob/main/LICENSE-MODEL",
    )
    assert found.total_bytes == sum(len(data) for name, data in lite_files.items() if name not in BESIDE)
    assert found.present_bytes == 0
    assert found.free_bytes > 0
    assert {seen.path.split("/")[1] for seen in hub.seen} == {"api"}


def test_another_repository_s_licence_is_what_its_card_says(hub: HubServer, lite_files: Files) -> None:
    hub.publish("some/model", lite_files)
    hub.repos["some/model"].card = {"license": "other", "license_name": "own-terms", "license_link": "LICENSE"}
    found = next(pull(parse_model("some/model")))
    assert isinstance(found, Found)
    assert (found.licence, found.licence_url) == ("own-terms", f"{hub.endpoint}/some/model/blob/{found.commit}/LICENSE")


def test_progress_counts_every_byte_and_ends_at_the_total(hub: HubServer, lite_files: Files) -> None:
    events = [event for event in pulled() if isinstance(event, Downloading)]
    last = events[-1]
    assert last.all_done_bytes == last.all_total_bytes
    ended = {event.file: event.done_bytes for event in events if event.stage == "done"}
    assert ended == {name: len(data) for name, data in lite_files.items() if name not in BESIDE}


def test_a_connection_dropped_at_ten_places_of_a_shard_costs_no_byte_twice(hub: HubServer, lite_files: Files) -> None:
    size = len(lite_files[SHARD])
    hub.on(SHARD).drop_at = [1, *(size * tenth // 10 for tenth in range(1, 10))]
    folder = folder_of(pulled())
    assert (folder / SHARD).read_bytes() == lite_files[SHARD]
    assert hub.sent[SHARD] == size
    assert len(ranges(hub, SHARD)) == 11


def test_an_answer_without_a_length_that_ends_early_is_resumed(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).without_length = True
    hub.on(SHARD).drop_at = [100_000]
    assert (folder_of(pulled()) / SHARD).read_bytes() == lite_files[SHARD]
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def test_a_server_that_always_drops_is_given_up_with_a_remedy_and_what_came_stays(
    hub: HubServer, lite_files: Files
) -> None:
    hub.on(SHARD).drop_at = [100_000] * 20
    with pytest.raises(ModelUnavailableError, match="cannot be reached") as caught:
        pulled()
    assert "what came is kept" in caught.value.remedy
    assert partial_of(lite_files, SHARD).read_bytes() == lite_files[SHARD][:100_000]


def test_a_server_that_ends_every_answer_early_is_given_up(hub: HubServer) -> None:
    hub.on(SHARD).without_length = True
    hub.on(SHARD).drop_at = [100_000] * 20
    with pytest.raises(ModelUnavailableError, match="ended early"):
        pulled()
    assert len(ranges(hub, SHARD)) == AT_ONCE.attempts


def test_a_killed_process_loses_nothing(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).hold_at = 200_000
    code = "from dslite.runtime.downloads.download import pull; from dslite.runtime.downloads.hub import parse_model;"
    child = subprocess.Popen([sys.executable, "-c", code + "list(pull(parse_model('chat')))"])
    try:
        assert hub.on(SHARD).held.wait(60)
        partial = partial_of(lite_files, SHARD)
        wait_for(lambda: partial.is_file() and partial.stat().st_size == 200_000)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with pytest.raises(ModelUnavailableError, match="only a part"):
        locate(parse_model("chat"))
    assert (folder_of(pulled()) / SHARD).read_bytes() == lite_files[SHARD]
    assert ranges(hub, SHARD) == [None, "bytes=200000-"]
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def wait_for(condition: object) -> None:
    """Look again and again, for a minute at most."""
    tick = threading.Event()
    for _ in range(6000):
        if condition():  # type: ignore[operator]
            return
        tick.wait(0.01)
    raise AssertionError("it did not happen")


class Waits(Retry):
    """Records the waits instead of waiting."""

    def pause(self, seconds: float, cancel: threading.Event | None = None) -> None:
        WAITED.append(seconds)


WAITED: list[float] = []


def test_a_busy_server_is_asked_again_when_it_says(hub: HubServer, lite_files: Files) -> None:
    WAITED.clear()
    hub.api_statuses = [(503, {}), (429, {"Retry-After": "7"})]
    hub.on(SHARD).statuses = [(503, {"Retry-After": "3"}), (500, {})]
    assert (folder_of(pulled(retry=Waits())) / SHARD).read_bytes() == lite_files[SHARD]
    assert WAITED == [0.5, 7.0, 3.0, 1.0]
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def test_a_server_that_stays_busy_is_given_up(hub: HubServer) -> None:
    hub.on(SHARD).statuses = [(503, {})] * 20
    with pytest.raises(ModelUnavailableError, match="answered 503"):
        pulled()
    assert len(ranges(hub, SHARD)) == AT_ONCE.attempts


def no_workers() -> bool:
    return not any("_worker" in thread.name for thread in threading.enumerate())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads time out after longer than `wait_for` waits: a worker that ends was woken."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 600)


@pytest.mark.usefixtures("patient")
def test_a_silent_server_shows_what_came_and_is_left_when_cancelled(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).hold_at = 150_000
    cancel = threading.Event()
    reached = False
    for event in pull(parse_model("chat"), cancel=cancel, retry=AT_ONCE):
        assert not isinstance(event, Present)
        if isinstance(event, Downloading) and event.file == SHARD and event.done_bytes == 150_000:
            reached = True
            cancel.set()
    assert reached
    wait_for(no_workers)
    assert partial_of(lite_files, SHARD).stat().st_size == 150_000


def test_a_server_that_never_answers_is_left_when_cancelled(hub: HubServer) -> None:
    hub.on(SHARD).hold_at = -1
    cancel = threading.Event()
    events = []
    for event in pull(parse_model("chat"), cancel=cancel, retry=AT_ONCE):
        events.append(event)
        if hub.on(SHARD).held.is_set():
            cancel.set()
    assert not isinstance(events[-1], Present)
    hub.on(SHARD).release.set()
    wait_for(no_workers)


def test_a_slow_server_s_progress_moves_with_every_piece(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).hold_at = PIECE
    seen = []
    for event in pull(parse_model("chat"), retry=AT_ONCE):
        if isinstance(event, Downloading) and event.file == SHARD:
            seen.append(event.done_bytes)
            if event.done_bytes == hub.on(SHARD).hold_at:  # let one more piece go, and fall silent again
                hub.on(SHARD).hold_at = min(event.done_bytes + PIECE, len(lite_files[SHARD]) - 1)
                hub.on(SHARD).release.set()
    assert set(range(PIECE, 5 * PIECE, PIECE)) <= set(seen)


@pytest.mark.usefixtures("patient")
def test_a_dropped_generator_stops_the_work(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).hold_at = 150_000
    events = pull(parse_model("chat"), retry=AT_ONCE)
    for event in events:
        if isinstance(event, Downloading) and event.file == SHARD and event.done_bytes == 150_000:
            break
    events.close()
    wait_for(no_workers)
    pulled()
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def pulled_with_the_shard_last(hub: HubServer) -> None:
    """Hold the second shard back until the others are whole: an error would stop them in their middle."""
    hub.on(SHARD).hold_at = 2000
    whole = set()
    for event in pull(parse_model("chat"), retry=AT_ONCE):
        if isinstance(event, Downloading) and event.stage == "done":
            whole.add(event.file)
        if whole >= {*SHARDS} - {SHARD}:
            hub.on(SHARD).release.set()


def test_wrong_bytes_of_the_right_length_are_named_and_removed(hub: HubServer, lite_files: Files) -> None:
    right = lite_files[SHARD]
    how = hub.on(SHARD)
    how.instead = right[:1000] + bytes([right[1000] ^ 1]) + right[1001:]
    with pytest.raises(CheckpointError, match=f"{SHARD} came with wrong bytes") as caught:
        pulled_with_the_shard_last(hub)
    assert "pull again" in caught.value.remedy
    assert not partial_of(lite_files, SHARD).exists()
    assert not (RepoCache.of(LITE).blobs / blob_name(SHARD, right)).exists()
    how.instead = how.hold_at = None
    assert (folder_of(pulled()) / SHARD).read_bytes() == right
    others = [name for name in lite_files if name not in BESIDE and name != SHARD]
    assert {hub.sent[name] - len(lite_files[name]) for name in others} == {0}


def test_right_bytes_under_a_wrong_etag_are_taken_once(hub: HubServer, lite_files: Files) -> None:
    for name in lite_files:
        hub.on(name).etag = "0" * 64
    folder = folder_of(pulled())
    assert (folder / SHARD).resolve().name == blob_name(SHARD, lite_files[SHARD])
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def test_a_server_without_ranges_still_completes_a_beginning(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).ignores_ranges = True
    hub.on(SHARD).drop_at = [100_000]
    assert (folder_of(pulled()) / SHARD).read_bytes() == lite_files[SHARD]


def test_a_login_page_in_between_is_not_taken_for_a_shard(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).instead = b"<html>Please log in</html>"
    with pytest.raises(CheckpointError, match="sends 26 bytes") as caught:
        pulled()
    assert "login page" in caught.value.remedy
    assert partial_of(lite_files, SHARD).stat().st_size == 0


def test_a_full_disk_is_told_before_the_weights_are_asked_for(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, hub_home: Path
) -> None:
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ModelUnavailableError, match=r"needs 1\.4 MB more in .*hf/hub, and 100\.0 KB are free"
    ) as caught:
        pulled()
    assert "HF_HOME" in caught.value.remedy
    assert [name for name in SHARDS if ranges(hub, name)] == []


def test_a_disk_that_fills_up_keeps_what_came(
    hub: HubServer, lite_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 100_000

    def write(stream: FileIO, data: memoryview) -> None:
        if stream.tell() + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stream.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_write", write)
        with pytest.raises(ModelUnavailableError, match="No space left on device") as caught:
            pulled()
    assert "what came is kept" in caught.value.remedy
    wait_for(no_workers)
    kept = {name: file.stat().st_size for name in SHARDS if (file := partial_of(lite_files, name)).is_file()}
    assert 0 < max(kept.values()) <= room
    pulled()
    assert {name: ranges(hub, name)[-1] for name in kept} == {
        name: f"bytes={size}-" if size else None for name, size in kept.items()
    }


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_is_refused_with_its_page_and_hf_token(
    hub: HubServer, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[LITE].gate, hub.repos[LITE].token = (status, "GatedRepo"), "hf_right"
    with pytest.raises(ModelUnavailableError, match="is gated, and no token was sent") as caught:
        pulled()
    assert f"{hub.endpoint}/{LITE}" in caught.value.remedy
    assert "HF_TOKEN" in caught.value.remedy
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ModelUnavailableError, match="your token has no access"):
        pulled()


def test_a_token_opens_a_gated_model_and_never_reaches_the_storage(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[LITE].gate, hub.repos[LITE].token = (401, "GatedRepo"), "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    folder_of(pulled())
    tokens = {(seen.path.startswith(f"/{LITE}/resolve"), seen.authorization) for seen in hub.fetched(SHARD)}
    assert tokens == {(True, "Bearer hf_right"), (False, None)}


def test_a_refused_token_is_told(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.api_statuses = [(401, {"X-Error-Message": "Invalid credentials in Authorization header"})]
    with pytest.raises(ModelUnavailableError, match="401: Invalid credentials") as caught:
        pulled()
    assert "HF_TOKEN" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "message"),
    [("chat@v9", "has no revision v9"), ("nobody/nothing", "has no repository nobody/nothing")],
)
def test_what_the_hub_does_not_have_is_told(hub: HubServer, name: str, message: str) -> None:
    with pytest.raises(ModelUnavailableError, match=message):
        pulled(name)


def test_a_model_of_another_type_is_refused_before_its_weights(hub: HubServer, lite_files: Files) -> None:
    hub.publish("some/llama", lite_files | {"config.json": b'{"model_type": "llama"}'})
    with pytest.raises(ConfigError, match=r"some/llama: config\.json: model_type is 'llama'"):
        pulled("some/llama")
    assert [seen.path for seen in hub.seen if "safetensors" in seen.path] == []


def test_a_repository_without_weights_or_tokenizer_is_refused(hub: HubServer, lite_files: Files) -> None:
    hub.publish("some/gguf", {name: data for name, data in lite_files.items() if "safetensors" not in name})
    with pytest.raises(ModelUnavailableError, match=r"has no \*.safetensors"):
        pulled("some/gguf")
    hub.publish("some/bare", {name: data for name, data in lite_files.items() if name != "tokenizer.json"})
    with pytest.raises(ModelUnavailableError, match=r"has no tokenizer.json"):
        pulled("some/bare")


def test_weights_that_the_index_does_not_name_stay_where_they_are(hub: HubServer, lite_files: Files) -> None:
    hub.publish(LITE, lite_files | {"consolidated.safetensors": bytes(1000)})
    assert not (folder_of(pulled()) / "consolidated.safetensors").exists()
    assert hub.fetched("consolidated.safetensors") == []


def test_two_pulls_at_once_fetch_each_file_once(hub: HubServer, lite_files: Files) -> None:
    hub.on(SHARD).hold_at = 100_000
    first: list[PullEvent] = []
    thread = threading.Thread(target=lambda: first.extend(pulled()))
    thread.start()
    assert hub.on(SHARD).held.wait(60)
    second = []
    for event in pull(parse_model("chat"), retry=AT_ONCE):
        second.append(event)
        if isinstance(event, Downloading) and event.note == "another process is fetching it":
            hub.on(SHARD).release.set()
    thread.join()
    assert folder_of(first) == folder_of(second)
    assert {name: hub.sent[name] for name in SHARDS} == {name: len(lite_files[name]) for name in SHARDS}


def test_a_revision_that_moves_leaves_the_old_one_usable_until_the_new_one_is_whole(
    hub: HubServer, lite_files: Files
) -> None:
    old = folder_of(pulled())
    changed = lite_files[SHARD][:-1] + bytes([lite_files[SHARD][-1] ^ 1])
    new_commit = hub.publish(LITE, lite_files | {SHARD: changed})
    assert locate(parse_model("chat")) == old
    hub.on(SHARD).drop_at = [100_000] * 20
    with pytest.raises(DsliteError):
        pulled()
    assert locate(parse_model("chat")) == old
    hub.on(SHARD).drop_at = []
    last = pulled()[-1]
    assert last == Present(locate(parse_model("chat")), new_commit, older=(old.name,))
    assert (old / SHARD).read_bytes() == lite_files[SHARD]
    assert (last.folder / SHARD).read_bytes() == changed
    assert hub.sent[SHARD] == 2 * len(changed)
    assert hub.sent[SHARDS[0]] == len(lite_files[SHARDS[0]])


def test_a_pinned_commit_does_not_move_main(hub: HubServer, lite_files: Files) -> None:
    old = hub.repos[LITE].refs["main"]
    newer = folder_of(pulled()) if hub.publish(LITE, lite_files | {"generation_config.json": b"{}"}) else None
    pinned = folder_of(pulled(f"chat@{old}"))
    assert pinned.name == old
    assert locate(parse_model("chat")) == newer
    assert locate(parse_model("chat", old)) == pinned


def test_a_repository_in_xet_is_fetched_and_resumed_over_plain_http(hub: HubServer, lite_files: Files) -> None:
    hub.xet = True
    hub.on(SHARD).drop_at = [100_000]
    assert (folder_of(pulled()) / SHARD).read_bytes() == lite_files[SHARD]
    assert ranges(hub, SHARD) == [None, "bytes=100000-"]
    assert [seen.path for seen in hub.seen if "xet" in seen.path] == []


def test_a_second_pull_fetches_nothing_and_reads_nothing_again(
    hub: HubServer, lite_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled()
    monkeypatch.setattr(fetch, "_READ_BYTES", None)  # whoever reads a file now fails
    events = pulled()
    assert [type(event) for event in events] == [Found, Present]
    assert events[0].missing_bytes == 0  # type: ignore[union-attr]
    assert {name: len(ranges(hub, name)) for name in SHARDS} == dict.fromkeys(SHARDS, 1)


def test_files_that_the_library_fetched_are_hashed_once_and_damaged_ones_replaced(
    hub: HubServer, lite_files: Files
) -> None:
    snapshot = Path(snapshot_download(LITE))
    assert locate(parse_model("chat")) == snapshot  # other tools' files count
    blob = (snapshot / SHARD).resolve()
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(lite_files[SHARD])))
    sent = dict(hub.sent)
    folder = folder_of(pulled())
    assert (folder / SHARD).read_bytes() == lite_files[SHARD]
    assert hub.sent[SHARD] == 2 * sent[SHARD]
    assert {hub.sent[name] - sent[name] for name in SHARDS if name != SHARD} == {0}


def test_beginnings_that_nobody_continues_are_swept_up_by_a_pull(hub: HubServer) -> None:
    blobs = RepoCache.of(LITE).blobs
    blobs.mkdir(parents=True)
    orphans = [blobs / f"{'a' * 64}.1f2e3d4c.incomplete", RepoCache.of(LITE).partial("b" * 64)]
    for orphan in orphans:
        orphan.write_bytes(bytes(1000))
    pulled()
    assert [orphan for orphan in orphans if orphan.exists()] == []


def test_no_socket_is_opened_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(pulled())

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    assert locate(parse_model("chat")) == folder
    with pytest.raises(ModelUnavailableError, match="--offline forbids"):
        pulled(offline=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE forbids"):
        pulled()
    assert locate(parse_model("chat")) == folder


def test_a_present_model_is_located_without_a_request(hub: HubServer) -> None:
    folder = folder_of(pulled())
    hub.seen.clear()
    assert locate(parse_model("chat")) == folder
    assert hub.seen == []


def test_a_hub_that_cannot_be_reached_is_told_with_its_address(hub_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailableError, match=r"http://127.0.0.1:9 cannot be reached") as caught:
        pulled()
    assert "HF_ENDPOINT" in caught.value.remedy


def test_a_cache_that_cannot_be_written_is_told(hub: HubServer, hub_home: Path) -> None:
    hub_home.mkdir()
    (hub_home / "hub").write_text("no folder")
    with pytest.raises(ModelUnavailableError, match=r"hf/hub.* cannot be written") as caught:
        pulled()
    assert "HF_HOME" in caught.value.remedy


def test_a_record_that_cannot_be_written_costs_only_a_second_hash(
    hub: HubServer, tmp_path: Path, lite_files: Files
) -> None:
    (tmp_path / "dslite-cache").write_text("no folder")
    folder_of(pulled())
    events = pulled()
    assert {event.stage for event in events if isinstance(event, Downloading)} <= {"checking", "done"}
    assert hub.sent[SHARD] == len(lite_files[SHARD])


def test_a_disk_without_links_gets_the_files_themselves(
    hub: HubServer, lite_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: str) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = folder_of(pulled())
    assert not (folder / SHARD).is_symlink()
    assert (folder / SHARD).read_bytes() == lite_files[SHARD]
    hub.seen.clear()
    pulled()
    assert [seen.path for seen in hub.seen if "safetensors" in seen.path] == []
