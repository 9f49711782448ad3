"""Names of models, and finding those that are present."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_fixtures import LITE

from dslite.runtime.downloads.hub import ModelRef, RepoCache, locate, parse_model
from dslite.runtime.errors import ModelUnavailableError, UsageError

COMMIT = "1" * 40


@pytest.mark.parametrize(
    ("text", "repo_id"),
    [
        ("chat", "deepseek-ai/DeepSeek-V2-Lite-Chat"),
        ("base", "deepseek-ai/DeepSeek-V2-Lite"),
        ("coder", "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct"),
        ("coder-base", "deepseek-ai/DeepSeek-Coder-V2-Lite-Base"),
        ("some.one/Model_1", "some.one/Model_1"),
    ],
)
def test_names_stand_for_repositories(text: str, repo_id: str) -> None:
    assert parse_model(text) == ModelRef(text, repo_id=repo_id)
    assert parse_model(f"{text}@v1").revision == "v1"
    assert parse_model(text, "v2").revision == "v2"


def test_two_revisions_are_refused_unless_they_agree() -> None:
    assert parse_model("chat@v1", "v1").revision == "v1"
    with pytest.raises(UsageError, match="says revision v1"):
        parse_model("chat@v1", "v2")


def test_a_folder_that_is_there_wins_over_a_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_model("some/model").repo_id == "some/model"
    (tmp_path / "some" / "model").mkdir(parents=True)
    assert parse_model("some/model").folder == Path("some/model")
    assert parse_model("./chat").folder == Path("chat")


def snapshot(files: dict[str, str], *, ref: str | None = "main") -> Path:
    cache = RepoCache.of(LITE)
    folder = cache.snapshot(COMMIT)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    if ref:
        (cache.folder / "refs").mkdir()
        (cache.folder / "refs" / ref).write_text(COMMIT)
    return folder


WHOLE = {
    "config.json": "{}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "model.safetensors.index.json": '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}',
    "one.safetensors": "",
    "two.safetensors": "",
}


def test_a_snapshot_that_has_every_file_of_its_index_is_present(hub_home: Path) -> None:
    folder = snapshot(WHOLE)
    assert locate(parse_model("chat")) == folder


@pytest.mark.parametrize("name", [name for name in WHOLE if "index" not in name])
def test_a_snapshot_that_lacks_a_file_is_not_present(hub_home: Path, name: str) -> None:
    snapshot({other: text for other, text in WHOLE.items() if other != name})
    with pytest.raises(ModelUnavailableError, match=f"only a part of the model chat .* {name} is missing") as caught:
        locate(parse_model("chat"))
    assert caught.value.remedy.endswith("dslite model pull chat")
    assert caught.value.exit_code == 3


def test_a_model_of_one_file_needs_no_index(hub_home: Path) -> None:
    files = {name: text for name, text in WHOLE.items() if "safetensors" not in name}
    folder = snapshot(files | {"model.safetensors": ""})
    assert locate(parse_model("chat")) == folder


def test_a_revision_is_found_by_branch_and_by_commit_and_no_other(hub_home: Path) -> None:
    folder = snapshot(WHOLE, ref="v1")
    assert locate(parse_model("chat@v1")) == folder
    assert locate(parse_model(f"chat@{COMMIT}")) == folder
    for other in ("chat", f"chat@{'2' * 40}"):
        with pytest.raises(ModelUnavailableError, match="is not on this machine"):
            locate(parse_model(other))


def test_finding_a_model_imports_neither_torch_nor_an_http_client(hub_home: Path) -> None:
    snapshot(WHOLE)
    code = (
        "import sys; from dslite.runtime.downloads.hub import locate, parse_model; locate(parse_model('chat'));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'httpx2', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
