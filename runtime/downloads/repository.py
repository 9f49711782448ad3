"""What the Hub says about a repository: its commit, its files with their hashes, its licence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dslite.runtime.downloads.hub import SHORT_NAMES, ModelRef
from dslite.runtime.downloads.layout import INDEX, NEEDED, OPTIONAL, WEIGHTS
from dslite.runtime.downloads.retry import Retry, reason_to_retry
from dslite.runtime.errors import DsliteError, ModelUnavailableError, UsageError

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


def ask(ref: ModelRef, *, offline: bool = False, retry: Retry | None = None) -> Repository:
    """Ask the Hub about a model. Raises DsliteError with a remedy for whatever is in the way."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    assert ref.repo_id is not None
    repo_id = ref.repo_id
    refuse_offline(ref, offline)
    api = HfApi(endpoint=constants.ENDPOINT, library_name="dslite")
    info = _patiently(ref, retry or Retry(), lambda: api.model_info(repo_id, revision=ref.revision, timeout=_TIMEOUT_S))
    commit = info.sha
    assert commit is not None
    tree = _patiently(ref, retry or Retry(), lambda: list(api.list_repo_tree(repo_id, revision=commit)))
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


def _patiently(ref: ModelRef, retry: Retry, call: Callable[[], _T]) -> _T:
    """Call the Hub, again where that may help. Raises DsliteError."""
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            if reason_to_retry(error) is None or failures == retry.attempts:
                raise explain(error, ref) from error
            retry.pause(retry.wait(failures - 1, error))


def explain(error: Exception, ref: ModelRef) -> DsliteError:
    """What went wrong at the Hub, in words, with what to do. Raises errors that are none of the Hub's."""
    import httpx2
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{ref.repo_id}"
    again = "try again later; what came is kept"
    if isinstance(error, DsliteError):
        return error
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{ref.name!r} is not a model's name: {error}", "write it as owner/name")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelUnavailableError(f"{ref.name} would need the network, and HF_HUB_OFFLINE forbids it")
    if isinstance(error, errors.GatedRepoError):
        return _gated(error, ref, page)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelUnavailableError(f"{ref.repo_id} has no revision {ref.revision}", f"see {page}/tree/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelUnavailableError(
            f"{constants.ENDPOINT} has no repository {ref.repo_id}, or it is private",
            "check the name; for a private one set HF_TOKEN to a token that may read it",
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, ref, again)
    if isinstance(error, httpx2.HTTPError):
        return ModelUnavailableError(
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error})",
            f"check the connection, the proxy and HF_ENDPOINT, and {again}",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return ModelUnavailableError(
            f"{error.filename or 'the cache'} cannot be written: {error.strerror}",
            "change its permissions, or put the cache elsewhere with HF_HOME",
        )
    raise error


def _gated(error: Exception, ref: ModelRef, page: str) -> DsliteError:
    from huggingface_hub import get_token

    who = "your token has no access to it yet" if get_token() else "no token was sent"
    return ModelUnavailableError(
        f"{ref.repo_id} is gated, and {who}",
        f"accept its licence on {page}, then set HF_TOKEN to a token of that account",
    )


def _refused(error: Exception, ref: ModelRef, again: str) -> DsliteError:
    from huggingface_hub.errors import HfHubHTTPError

    assert isinstance(error, HfHubHTTPError)
    status = error.response.status_code
    said = f": {error.server_message}" if error.server_message else ""
    if status in (401, 403):
        return ModelUnavailableError(
            f"the Hub refuses {ref.repo_id} ({status}{said})",
            "set HF_TOKEN to a valid token of an account that may read it, or unset a wrong one",
        )
    return ModelUnavailableError(f"the Hub answered {status} for {ref.repo_id}{said}", again)
