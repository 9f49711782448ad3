"""What the Hub says about a repository: its commit, its files with their hashes, its licence."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event as Flag
from typing import TYPE_CHECKING, TypeVar

from dslite.runtime.downloads.faults import explain, hub_session
from dslite.runtime.downloads.hub import SHORT_NAMES, ModelRef
from dslite.runtime.downloads.jobs import Cancelled, interruptible
from dslite.runtime.downloads.layout import INDEX, NEEDED, OPTIONAL, WEIGHTS
from dslite.runtime.downloads.retry import Retry, reason_to_retry
from dslite.runtime.errors import ModelUnavailableError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_T = TypeVar("_T")
_TIMEOUT_S = 10.0
# The model cards name it; the Lite and the Coder series have a text each.
_DEEPSEEK = "DeepSeek model licence"
_DEEPSEEK_URL = "https://github.com/deepseek-ai/DeepSeek-{series}/blob/main/LICENSE-MODEL"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `blob` is its SHA-256 where it is a large one (LFS), else git's SHA-1 of the blob."""

    name: str
    size: int
    blob: str


@dataclass(frozen=True)
class Licence:
    """Under which terms a model is given."""

    name: str
    url: str


@dataclass(frozen=True)
class Repository:
    """A commit of a repository and those of its files that dslite reads, by name."""

    repo_id: str
    commit: str
    files: dict[str, RemoteFile]
    licence: Licence

    @property
    def weights(self) -> list[RemoteFile]:
        return [file for file in self.files.values() if file.name.endswith(WEIGHTS)]


def ask(ref: ModelRef, *, offline: bool = False, retry: Retry | None = None, cancel: Flag | None = None) -> Repository:
    """Ask the Hub about a model. Raises DsliteError with a remedy, and Cancelled within a moment of `cancel`."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    assert ref.repo_id is not None
    repo_id = ref.repo_id
    refuse_offline(ref, offline)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="dslite")
    hub_session()
    retry, cancel = retry or Retry(), cancel or Flag()
    info = _with_retries(ref, retry, cancel, lambda: api.model_info(repo_id, revision=ref.revision, timeout=_TIMEOUT_S))
    commit = info.sha
    assert commit is not None
    tree = _with_retries(ref, retry, cancel, lambda: list(api.list_repo_tree(repo_id, revision=commit)))
    wanted = {
        file.path: RemoteFile(file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id)
        for file in tree
        if isinstance(file, RepoFile) and (file.path in (*NEEDED, *OPTIONAL) or _is_weights(file.path))
    }
    repository = Repository(repo_id, commit, wanted, _licence(repo_id, info))
    for name in NEEDED:
        if name not in wanted:
            raise ModelUnavailableError(f"{repo_id} has no {name}", "choose a DeepSeek-V2 model in Hub layout")
    if not repository.weights:
        raise ModelUnavailableError(f"{repo_id} has no *{WEIGHTS} file", f"choose one with {INDEX} or safetensors")
    return repository


def refuse_offline(ref: ModelRef, offline: bool) -> None:
    """Raise ModelUnavailableError where the network must not be used."""
    from huggingface_hub import constants

    if offline or constants.is_offline_mode():
        why = "--offline" if offline else "HF_HUB_OFFLINE"
        raise ModelUnavailableError(
            f"{ref.name} would need the network, and {why} forbids it", f"do it without {why}, or use another model"
        )


def _is_weights(path: str) -> bool:
    return path.endswith(WEIGHTS) and "/" not in path


def known_licence(repo_id: str | None) -> Licence | None:
    """The licence of the four published models."""
    if repo_id is None or repo_id not in SHORT_NAMES.values():
        return None
    return Licence(_DEEPSEEK, _DEEPSEEK_URL.format(series="Coder-V2" if "Coder" in repo_id else "V2"))


def _licence(repo_id: str, info: "ModelInfo") -> Licence:
    """Of the published models what is known, of others what their card says."""
    from huggingface_hub import constants

    if known := known_licence(repo_id):
        return known
    page = f"{constants.ENDPOINT}/{repo_id}"
    card = info.card_data
    name = card and (card.get("license_name") or card.get("license"))
    link = card and card.get("license_link")
    if link and not str(link).startswith("http"):
        link = f"{page}/blob/{info.sha}/{link}"
    return Licence(str(name) if name else "no licence named on its card", str(link or page))


def _with_retries(ref: ModelRef, retry: Retry, cancel: Flag, call: Callable[[], _T]) -> _T:
    """Call the Hub, again where that may help. Raises DsliteError, and Cancelled within a moment of `cancel`."""
    failures = 0
    while True:
        try:
            return interruptible(call, cancel)
        except Cancelled:
            raise
        except Exception as error:
            failures += 1
            if reason_to_retry(error) is None or failures == retry.attempts:
                raise explain(error, ref) from error
            retry.pause(retry.wait(failures - 1, error), cancel)
