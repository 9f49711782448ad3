"""Getting a model: which files, how much room, several at once, and links that appear only when all are whole.

The hub's own download call links files by asking for each one's headers again and believing their ETag: a mirror with
another ETag would cost 31 GB a second time. The snapshot's links are therefore made here, as the cache's layout
documents them, with config.json last: a snapshot that has it is whole. The ref moves after that, so that a revision
that is on disk stays usable until the new one is complete.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event as Flag

from dslite.model.config import ModelConfig
from dslite.runtime.atomic_file import write_file
from dslite.runtime.downloads.faults import disk_error, explain
from dslite.runtime.downloads.fetch import fetch, hash_file
from dslite.runtime.downloads.hub import ModelRef, RepoCache
from dslite.runtime.downloads.jobs import Cancelled, Job, ProgressReporter, run
from dslite.runtime.downloads.layout import CONFIG, INDEX, read_json, weight_map
from dslite.runtime.downloads.repository import RemoteFile, Repository, ask
from dslite.runtime.downloads.retry import Retry
from dslite.runtime.downloads.verified import VerifiedFiles
from dslite.runtime.errors import ConfigError, ModelUnavailableError
from dslite.runtime.events import Downloading, Found, Present, PullEvent
from dslite.runtime.system.files import free_disk_bytes, replace
from dslite.runtime.units import size_text

_AT_ONCE = 4


def pull(
    ref: ModelRef, *, offline: bool = False, cancel: Flag | None = None, retry: Retry | None = None
) -> Generator[PullEvent, None, None]:
    """Make a model present: Found, then Downloading events, then Present.

    Nothing was fetched before Found. Set `cancel`, and it ends within a second without Present. Raises DsliteError;
    what was fetched before stays for the next pull.
    """
    cancel, retry = cancel or Flag(), retry or Retry()
    try:
        repository = ask(ref, offline=offline, retry=retry, cancel=cancel)
    except Cancelled:
        return
    pulling = _Pull(ref, repository, RepoCache.of(repository.repo_id), cancel, retry)
    try:
        yield from _pull(pulling)
    except OSError as error:
        raise disk_error(error, pulling.cache_folder) from error


def _pull(pulling: "_Pull") -> Iterator[PullEvent]:
    repository = pulling.repository
    yield pulling.found()
    yield from pulling.files([repository.files[CONFIG]])
    if pulling.cancelled:
        return
    pulling.check_config()
    yield from pulling.files([file for file in repository.files.values() if file not in repository.weights])
    if pulling.cancelled:
        return
    pulling.choose_weights()
    pulling.check_room()
    yield from pulling.files(list(pulling.repository.files.values()))
    if pulling.cancelled:
        return
    yield pulling.finish()


class _Pull:
    """One download of one repository."""

    def __init__(self, ref: ModelRef, repository: Repository, cache: RepoCache, cancel: Flag, retry: Retry) -> None:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.repository = repository
        self._ref = ref
        self._cache = cache
        self._cancel = cancel
        self._retry = retry
        self._verified = VerifiedFiles.read()
        self._headers: dict[str, str] = build_hf_headers(library_name="dslite")  # the user's token among them

    @property
    def cache_folder(self) -> Path:
        return self._cache.folder

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def found(self) -> Found:
        repository = self.repository
        return Found(
            repo_id=repository.repo_id,
            commit=repository.commit,
            licence=repository.licence.name,
            licence_url=repository.licence.url,
            total_bytes=sum(file.size for file in self._blobs()),
            present_bytes=sum(map(self._bytes_here, self._blobs())),
            free_bytes=free_disk_bytes(self._cache.folder),
            place=self._cache.folder,
        )

    def check_config(self) -> None:
        """Raises ConfigError for a model that dslite cannot run: before the big files."""
        try:
            ModelConfig.from_dict(read_json(self._cache_file(self.repository.files[CONFIG])))
        except ConfigError as error:
            raise ConfigError(f"{self.repository.repo_id}: {error.message}", error.remedy) from None

    def choose_weights(self) -> None:
        """Leave out weights that the index does not name: other forms of the same tensors."""
        files = self.repository.files
        if INDEX not in files:
            return
        named = set(weight_map(self._cache_file(files[INDEX])).values())
        if absent := sorted(named - files.keys()):
            raise ModelUnavailableError(f"{self.repository.repo_id} has no {absent[0]}, which its {INDEX} names")
        for file in self.repository.weights:
            if file.name not in named:
                del files[file.name]

    def check_room(self) -> None:
        """Raises ModelUnavailableError where the disk cannot take what is missing."""
        missing = sum(file.size - self._bytes_here(file) for file in self._blobs())
        free = free_disk_bytes(self._cache.folder)
        if missing > free:
            raise ModelUnavailableError(
                f"{self._ref.name} needs {size_text(missing)} more in {self._cache.folder.parent}, "
                f"and {size_text(free)} are free",
                "make room, or put the cache on another disk with HF_HOME",
            )

    def files(self, files: Sequence[RemoteFile]) -> Iterator[Downloading]:
        """Have these files in the cache, each checked."""
        self._cache.blobs.mkdir(parents=True, exist_ok=True)
        wanted = {file.blob: file for file in files if not self._trusted(file)}
        jobs = {Job(file.name, file.size): file for file in wanted.values()}
        total = sum(file.size for file in self._blobs())
        done = sum(file.size for file in self._blobs() if self._trusted(file))
        reporter = ProgressReporter(list(jobs), done=done, total=total)
        try:
            yield from run(
                lambda job: self._obtain(jobs[job], job), list(jobs), reporter, workers=_AT_ONCE, cancel=self._cancel
            )
        except Exception as error:
            raise explain(error, self._ref) from error
        finally:
            self._verified.write()

    def finish(self) -> Present:
        """Link the snapshot, move the ref, remove abandoned beginnings. Writes only what is not there yet."""
        cache, commit = self._cache, self.repository.commit
        snapshot = cache.snapshot(commit)
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in sorted(self.repository.files.values(), key=lambda file: file.name == CONFIG):
            _link(cache.blobs / file.blob, snapshot / file.name)
        revision = self._ref.revision or "main"
        if revision != commit and cache.commit(revision) != commit:
            ref = cache.folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_file(ref, commit.encode())
        _remove_abandoned(cache)
        return Present(snapshot, commit, tuple(older for older in cache.commits() if older != commit))

    def _blobs(self) -> list[RemoteFile]:
        """The files, equal ones once."""
        return list({file.blob: file for file in self.repository.files.values()}.values())

    def _trusted(self, file: RemoteFile) -> bool:
        return self._cache_file(file) in self._verified

    def _cache_file(self, file: RemoteFile) -> Path:
        """Where a file's bytes lie: as a blob, or in the snapshot itself where the disk has no links."""
        plain = self._cache.snapshot(self.repository.commit) / file.name
        return plain if plain.is_file() and not plain.is_symlink() else self._cache.blobs / file.blob

    def _bytes_here(self, file: RemoteFile) -> int:
        for place in (self._cache_file(file), self._cache.partial(file.blob)):
            if place.is_file():
                return min(place.stat().st_size, file.size)
        return 0

    def _obtain(self, file: RemoteFile, job: Job) -> None:
        """Have one file: check what is there, else fetch it. Two processes do it one after the other."""
        from huggingface_hub import constants, hf_hub_url

        with ExitStack() as stack:
            self._lock(file, job, stack)
            if self._sound(file, job):
                return
            repository, partial = self.repository, self._cache.partial(file.blob)
            url = hf_hub_url(repository.repo_id, file.name, revision=repository.commit, endpoint=constants.ENDPOINT)
            fetch(url, self._headers, file, partial, job, self._retry)
            blob = self._cache.blobs / file.blob
            replace(partial, blob)
            self._verified.add(blob)

    def _lock(self, file: RemoteFile, job: Job, stack: ExitStack) -> None:
        """Hold the file's lock. A cache that this user may only read has none: what is whole there is only read."""
        from filelock import Timeout

        while True:
            try:
                stack.enter_context(self._cache.hold(file.blob))
                return
            except Timeout:
                job.check_cancel()
                job.stage, job.note = "waiting", "another process is fetching it"
                job.done = self._bytes_here(file)
            except OSError:
                if self._cache_file(file).is_file():
                    return
                raise

    def _sound(self, file: RemoteFile, job: Job) -> bool:
        """Whether a file is there with the right bytes; wrong ones are removed."""
        place = self._cache_file(file)
        if not place.is_file():
            return False
        if place in VerifiedFiles.read() or hash_file(place, file.blob, job) == file.blob:
            self._verified.add(place)
            job.done = file.size
            return True
        place.unlink()
        job.done = 0
        return False


def _link(blob: Path, target: Path) -> None:
    """Let a snapshot's name point to its blob; where the disk has no links, the blob itself moves there."""
    from huggingface_hub import constants

    if target.is_file() and not target.is_symlink():
        return
    pointer = os.path.relpath(blob, target.parent)
    if target.is_symlink() and (os.readlink(target) == pointer or target.resolve() == blob.resolve()):
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if constants.HF_HUB_DISABLE_SYMLINKS:
            raise OSError
        beside.symlink_to(pointer)
    except OSError:
        replace(blob, target)
    else:
        replace(beside, target)


def _remove_abandoned(cache: RepoCache) -> None:
    """Remove beginnings that no process is fetching: dslite's, and those that huggingface_hub leaves when killed."""
    from filelock import Timeout

    for orphan in cache.blobs.glob("*.incomplete"):
        with suppress(Timeout, OSError), cache.hold(orphan.name.partition(".")[0]):
            orphan.unlink(missing_ok=True)
