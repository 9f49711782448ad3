"""Where models are: a folder, the demo that ships with dslite, or the Hugging Face cache.

Nothing here asks the network. The cache's layout is documented by huggingface_hub ("Understand caching"): `blobs/`
holds files under their hash, `snapshots/COMMIT/` links to them by name, `refs/` says for which commit a branch stands.
"""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dslite.runtime.downloads.layout import CONFIG, missing_files
from dslite.runtime.errors import ModelUnavailableError, UsageError
from dslite.runtime.system.folders import expand_home, require_home

SHORT_NAMES = {
    "chat": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "base": "deepseek-ai/DeepSeek-V2-Lite",
    "coder": "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
    "coder-base": "deepseek-ai/DeepSeek-Coder-V2-Lite-Base",
}
DEMO = "demo"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LOCK_S = 0.2
_COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1 of a blob, or SHA-256 of a large file
PARTIAL = ".dslite.incomplete"  # `hf cache` knows files with the second ending as unfinished ones


@dataclass(frozen=True)
class ModelRef:
    """What -m names: a folder, or a repository of the Hub at a revision. `name` is how the user wrote it."""

    name: str
    folder: Path | None = None
    repo_id: str | None = None
    revision: str | None = None

    @property
    def key(self) -> str:
        """What -m takes for this model wherever it is started from: a saved conversation's model."""
        if self.repo_id is not None:
            return f"{self.repo_id}@{self.revision}" if self.revision else self.repo_id
        return self.name if self.name == DEMO or self.folder is None else str(self.folder.absolute())


def parse_model(text: str, revision: str | None = None) -> ModelRef:
    """Understand a short name, `owner/name[@revision]` or a folder. Raises UsageError."""
    if text == DEMO:
        return ModelRef(text, folder=Path(str(files("dslite.assets") / "demo")))
    name, _, pinned = text.partition("@")
    repo_id = SHORT_NAMES.get(name, name)
    if name in SHORT_NAMES or (_REPO_ID.fullmatch(name) and not Path(text).is_dir()):
        if pinned and revision and pinned != revision:
            raise UsageError(f"the model says revision {pinned}, and --revision says {revision}", "give one of them")
        return ModelRef(text, repo_id=repo_id, revision=revision or pinned or None)
    return ModelRef(text, folder=expand_home(text))


def locate(ref: ModelRef) -> Path:
    """The folder of a model that is present. No request is made. Raises ModelUnavailableError.

    Present means that no file is missing. Their bytes are not read again: what dslite fetches gets its name in the
    cache only after its hash was checked.
    """
    if ref.folder is not None:
        return ref.folder
    assert ref.repo_id is not None
    cache = RepoCache.of(ref.repo_id)
    commit = cache.commit(ref.revision)
    missing = missing_files(cache.snapshot(commit)) if commit else [CONFIG]
    if commit and not missing:
        return cache.snapshot(commit)
    if cache.partial_files() or (commit and cache.snapshot(commit).is_dir()):
        raise ModelUnavailableError(
            f"only a part of the model {ref.name} is on this machine: {_list(missing)} missing",
            f"go on with the download: dslite model pull {ref.name}",
        )
    raise ModelUnavailableError(
        f"the model {ref.name} is not on this machine", f"download it: dslite model pull {ref.name}"
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    return names[0] + more


@dataclass(frozen=True)
class RepoCache:
    """A repository's folder in the Hugging Face cache."""

    folder: Path

    @classmethod
    def of(cls, repo_id: str) -> "RepoCache":
        return cls(cache_root() / ("models--" + repo_id.replace("/", "--")))

    @property
    def repo_id(self) -> str:
        return self.folder.name.removeprefix("models--").replace("--", "/", 1)

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    def commit(self, revision: str | None) -> str | None:
        """The commit that a branch, tag or commit stands for on this machine."""
        revision = revision or "main"
        ref = self.folder / "refs" / revision
        if ref.is_file():
            return ref.read_text(encoding="utf-8").strip()
        return revision if _COMMIT.fullmatch(revision) and self.snapshot(revision).is_dir() else None

    def refs(self) -> dict[str, str]:
        """Branch or tag → commit."""
        root = self.folder / "refs"
        found = (file for file in sorted(root.rglob("*")) if file.is_file() and file.suffix != ".tmp")
        return {file.relative_to(root).as_posix(): file.read_text(encoding="utf-8").strip() for file in found}

    def commits(self) -> list[str]:
        """The commits that have a snapshot."""
        return sorted(path.name for path in (self.folder / "snapshots").glob("*") if _COMMIT.fullmatch(path.name))

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    @property
    def locks(self) -> Path:
        return self.folder.parent / ".locks" / self.folder.name

    def hold(self, blob: str) -> AbstractContextManager[object]:
        """The lock by which huggingface_hub, and dslite with it, lets one process at a time fetch a blob.

        Entering it raises filelock.Timeout after a moment in which another process had it.
        """
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self.locks.mkdir(parents=True, exist_ok=True)
        held: AbstractContextManager[object] = WeakFileLock(self.locks / f"{blob}.lock", timeout=_LOCK_S)
        return held

    def partial(self, blob: str) -> Path:
        """Where the beginning of a blob grows until it is whole and checked."""
        return self.blobs / (blob + PARTIAL)

    def partial_files(self) -> list[Path]:
        """Begun downloads of dslite."""
        return sorted(self.blobs.glob("*" + PARTIAL))


def cache_root() -> Path:
    """HF_HUB_CACHE, or `hub` in HF_HOME, as huggingface_hub reads them."""
    from huggingface_hub import constants

    return require_home(constants.HF_HUB_CACHE, "HF_HOME")


def blob_hash(file: Path) -> str | None:
    """The hash that a file of a snapshot should have: the name of the blob that it links to."""
    name = file.readlink().name if file.is_symlink() else ""
    return name if HASH.fullmatch(name) else None
