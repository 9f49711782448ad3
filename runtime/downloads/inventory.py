"""The models on this machine: listing and removing them."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from dslite.runtime.downloads.hub import DEMO, SHORT_NAMES, ModelRef, RepoCache, cache_root, parse_model
from dslite.runtime.downloads.layout import CONFIG, files_of, missing_files, read_json
from dslite.runtime.downloads.packed import PackedModel, packed_models
from dslite.runtime.errors import CheckpointError, DsliteError, ModelUnavailableError, UsageError


@dataclass(frozen=True)
class StoredModel:
    """A revision of a model on this machine. `name` is the shortest that -m takes; `missing` is empty if whole."""

    name: str
    repo_id: str | None
    commit: str | None
    refs: tuple[str, ...]
    folder: Path
    size_bytes: int
    missing: tuple[str, ...]
    weights: str = "bfloat16"

    @property
    def complete(self) -> bool:
        return not self.missing


def stored_models() -> list[StoredModel]:
    """The demo, and every DeepSeek-V2 model in the Hugging Face cache, begun ones too. No request is made."""
    found = [] if (demo := _demo()) is None else [demo]
    for folder in sorted(cache_root().glob("models--*--*")):
        found += _revisions(RepoCache(folder))
    return found + [_packed(packed) for packed in packed_models()]


def _packed(packed: PackedModel) -> StoredModel:
    name = next((short for short, known in SHORT_NAMES.items() if known == packed.model), packed.model)
    missing = () if packed.complete else ("a part of the packed weights",)
    return StoredModel(name, packed.repo_id, None, (), packed.folder, packed.size_bytes, missing, packed.weights)


def _demo() -> StoredModel | None:
    folder = parse_model(DEMO).folder
    assert folder is not None
    return _stored(DEMO, None, None, (), folder) if folder.is_dir() else None


def _revisions(cache: RepoCache) -> list[StoredModel]:
    repo_id = cache.repo_id
    name = next((short for short, known in SHORT_NAMES.items() if known == repo_id), repo_id)
    refs = cache.refs()
    found = []
    for commit in cache.commits():
        if not _is_ours(cache.snapshot(commit)):
            continue
        mine = tuple(ref for ref, target in refs.items() if target == commit)
        revision = "" if "main" in mine else f"@{mine[0] if mine else commit}"
        found.append(_stored(name + revision, repo_id, commit, mine, cache.snapshot(commit)))
    if begun := cache.partial_files():
        size = sum(file.stat().st_size for file in begun)
        found.append(StoredModel(name, repo_id, None, (), cache.folder, size, (f"{len(begun)} files half fetched",)))
    return found


def _is_ours(snapshot: Path) -> bool:
    try:
        raw = read_json(snapshot / CONFIG)
    except CheckpointError:
        return False
    return isinstance(raw, dict) and raw.get("model_type") == "deepseek_v2"


def _stored(name: str, repo_id: str | None, commit: str | None, refs: tuple[str, ...], folder: Path) -> StoredModel:
    try:
        missing = missing_files(folder)
        names = files_of(folder)
    except CheckpointError as error:
        missing, names = [error.message], []
    size = sum((folder / file).stat().st_size for file in names if (folder / file).is_file())
    return StoredModel(name, repo_id, commit, refs, folder, size, tuple(missing))


def remove(ref: ModelRef) -> int:
    """Remove a model from the Hugging Face cache, all its revisions or the one that is named; return the bytes freed.

    Raises UsageError for a folder, which is the user's, ModelUnavailableError for what is not there, and DsliteError
    for what is in use or may not be removed.
    """
    cache = removable(ref)
    if not cache.folder.is_dir():
        raise ModelUnavailableError(f"the model {ref.name} is not on this machine", "see dslite model list")
    if ref.revision is not None and cache.commit(ref.revision) is None:
        raise ModelUnavailableError(f"{ref.repo_id} has no revision {ref.revision} here", "see dslite model list")
    _refuse_busy(ref, cache)
    before = _disk_bytes(cache)
    commits = cache.commits() if ref.revision is None else [str(cache.commit(ref.revision))]
    try:
        _delete(cache, commits)
        if ref.revision is None and cache.folder.is_dir():
            shutil.rmtree(cache.folder)
    except OSError as error:
        raise DsliteError(
            f"{ref.name} was not removed, or only in part: {error.filename or cache.folder}: {error.strerror}",
            "remove it as the user who owns these files, or change their permissions",
        ) from error
    if ref.revision is None:
        shutil.rmtree(cache.locks, ignore_errors=True)  # another process may hold one
    return before - _disk_bytes(cache)


def removable(ref: ModelRef) -> RepoCache:
    """The cache of a model that may be removed. Raises UsageError for a folder."""
    if ref.repo_id is None:
        raise UsageError(f"{ref.name} is not in the Hugging Face cache", "remove a folder of your own yourself")
    return RepoCache.of(ref.repo_id)


def _refuse_busy(ref: ModelRef, cache: RepoCache) -> None:
    from filelock import Timeout

    for partial in cache.partial_files():
        try:
            with cache.hold(partial.name.partition(".")[0]):
                pass
        except Timeout:
            raise DsliteError(f"another process is fetching {ref.name}", "stop it first") from None


def _delete(cache: RepoCache, commits: list[str]) -> None:
    """By the hub's own call: it knows which blobs other revisions and repositories still need. Raises OSError.

    That call logs what it may not remove, and returns as if it had: what is left is removed once more, with its error.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.utils import logging as hub_logging

    everything = scan_cache_dir(cache.folder.parent)
    # The call looks a commit up in every repository, and a copy of a repository has the same commits.
    mine = frozenset(repo for repo in everything.repos if Path(repo.repo_path) == cache.folder.resolve())
    strategy = replace(everything, repos=mine).delete_revisions(*commits)
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.CRITICAL)
    try:
        strategy.execute()
    finally:
        hub_logging.set_verbosity(verbosity)
    for path in (*strategy.repos, *strategy.snapshots):
        if path.is_dir():
            shutil.rmtree(path)
    for path in (*strategy.refs, *strategy.blobs):
        path.unlink(missing_ok=True)


def _disk_bytes(cache: RepoCache) -> int:
    """Bytes of a repository's blobs, those in the store that repositories share among them."""
    files = {file.resolve() for file in cache.folder.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)
