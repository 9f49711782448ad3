"""Listing and removing models."""

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from support.hub_fixtures import BESIDE, LITE
from support.hub_server import HubServer

from dslite.runtime.downloads.download import pull
from dslite.runtime.downloads.hub import RepoCache, cache_root, locate, parse_model
from dslite.runtime.downloads.inventory import StoredModel, remove, stored_models
from dslite.runtime.downloads.retry import Retry
from dslite.runtime.errors import DsliteError, ModelUnavailableError, UsageError

SHARD = "model-00002-of-00003.safetensors"
CHAT = parse_model("chat")


def pulled(name: str = "chat") -> Path:
    list(pull(parse_model(name), retry=Retry(attempts=1, first_s=0.0)))
    return locate(parse_model(name))


def listed() -> dict[str, StoredModel]:
    return {model.name: model for model in stored_models() if model.name != "demo"}


def test_a_pulled_model_is_listed_by_its_short_name_with_size_and_place(
    hub: HubServer, lite_files: dict[str, bytes]
) -> None:
    folder = pulled()
    hub.seen.clear()
    size = sum(len(data) for name, data in lite_files.items() if name not in BESIDE)
    assert listed() == {"chat": StoredModel("chat", LITE, folder.name, ("main",), folder, size, ())}
    assert hub.seen == []


def test_the_demo_is_listed_first(hub_home: Path) -> None:
    assert [model.name for model in stored_models()][:1] == ["demo"]


def test_models_of_other_types_in_the_shared_cache_are_not_listed(hub: HubServer, lite_files: dict[str, bytes]) -> None:
    hub.publish("some/llama", lite_files | {"config.json": b'{"model_type": "llama"}'})
    snapshot_download("some/llama")
    assert listed() == {}


def test_a_begun_download_is_listed_as_incomplete_and_removed_whole(hub: HubServer) -> None:
    hub.on(SHARD).drop_at = [100_000] * 3
    with pytest.raises(DsliteError):
        pulled()
    begun = listed()["chat"]
    assert not begun.complete
    assert begun.size_bytes >= 100_000
    assert remove(CHAT) >= 100_000
    assert listed() == {}
    assert not RepoCache.of(LITE).folder.exists()


def test_revisions_are_listed_and_removed_one_by_one_sharing_their_files(
    hub: HubServer, lite_files: dict[str, bytes]
) -> None:
    old = pulled()
    changed = lite_files[SHARD][:-1] + b"\1"
    hub.publish(LITE, lite_files | {SHARD: changed})
    new = pulled()
    assert set(listed()) == {"chat", f"chat@{old.name}"}
    assert remove(parse_model(f"chat@{old.name}")) == len(changed)
    assert set(listed()) == {"chat"}
    assert locate(CHAT) == new
    assert {file.name: file.read_bytes() for file in new.iterdir()}[SHARD] == changed


def test_other_repositories_survive_a_removal(hub: HubServer, lite_files: dict[str, bytes]) -> None:
    hub.publish("some/model", lite_files)
    pulled()
    other = pulled("some/model")
    remove(CHAT)
    assert set(listed()) == {"some/model"}
    assert (other / SHARD).read_bytes() == lite_files[SHARD]
    assert sorted(path.name for path in cache_root().glob("models--*")) == ["models--some--model"]


def test_what_cannot_be_removed_is_said(hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="is not on this machine"):
        remove(CHAT)
    pulled()
    with pytest.raises(ModelUnavailableError, match="has no revision v9 here"):
        remove(parse_model("chat@v9"))
    with pytest.raises(UsageError, match="not in the Hugging Face cache"):
        remove(parse_model("demo"))


def test_a_model_that_is_being_fetched_is_not_removed(hub: HubServer) -> None:
    hub.on(SHARD).hold_at = 100_000
    events = pull(CHAT, retry=Retry(first_s=0.0))
    for _ in events:
        if hub.on(SHARD).held.is_set():
            break
    with pytest.raises(DsliteError, match="another process is fetching chat"):
        remove(CHAT)
    events.close()
    remove(CHAT)
