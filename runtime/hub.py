"""Where models are: a folder, the demo that ships with dslite, or the Hugging Face cache."""

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from dslite.runtime.errors import ModelUnavailableError, UsageError

SHORT_NAMES = {
    "chat": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "base": "deepseek-ai/DeepSeek-V2-Lite",
    "coder": "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
    "coder-base": "deepseek-ai/DeepSeek-Coder-V2-Lite-Base",
}
DEMO = "demo"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class ModelRef:
    """What -m names: a folder, or a repository of the Hub at a revision. `name` is how the user wrote it."""

    name: str
    folder: Path | None = None
    repo_id: str | None = None
    revision: str | None = None


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
    return ModelRef(text, folder=Path(text).expanduser())


def locate(ref: ModelRef) -> Path:
    """The folder of a model that is present. Asks nobody. Raises ModelUnavailableError."""
    if ref.folder is not None:
        return ref.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert ref.repo_id is not None
    try:
        return Path(snapshot_download(ref.repo_id, revision=ref.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelUnavailableError(
            f"the model {ref.name} is not on this machine", f"download it: dslite model pull {ref.name}"
        ) from None
