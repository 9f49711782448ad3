"""The config of a model that need not be here: what planning wants to know before a download."""

from importlib.resources import files
from pathlib import Path

from dslite.model.config import ModelConfig
from dslite.runtime.downloads.hub import SHORT_NAMES, ModelRef, RepoCache
from dslite.runtime.downloads.layout import CONFIG, read_config, read_json
from dslite.runtime.downloads.packed import packed_source
from dslite.runtime.downloads.repository import refuse_offline
from dslite.runtime.errors import ModelUnavailableError

_LITE = "deepseek-v2-lite.config.json"  # in assets: the four named models are one network


def config_of(ref: ModelRef, *, offline: bool = False) -> ModelConfig:
    """The config of a folder, of the cache, as dslite knows it, or from the Hub (2 KB), in this order.

    Raises ModelUnavailableError, and ConfigError naming the key at fault.
    """
    if ref.folder is not None:
        return read_config(ref.folder if ref.folder.is_dir() else packed_source(ref) or ref.folder)
    assert ref.repo_id is not None
    cache = RepoCache.of(ref.repo_id)
    commit = cache.commit(ref.revision)
    if commit and (cache.snapshot(commit) / CONFIG).is_file():
        return read_config(cache.snapshot(commit))
    if (packed := packed_source(ref)) is not None:
        return read_config(packed)
    if ref.repo_id in SHORT_NAMES.values():
        return ModelConfig.from_dict(read_json(Path(str(files("dslite.assets") / _LITE))))
    return _download(ref, offline=offline)


def _download(ref: ModelRef, *, offline: bool) -> ModelConfig:
    refuse_offline(ref, offline)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert ref.repo_id is not None
    try:
        file = hf_hub_download(ref.repo_id, CONFIG, revision=ref.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelUnavailableError(
            f"the config of {ref.name} is not on this machine and cannot be fetched: {reason}",
            "check the name and the connection, or give a folder",
        ) from None
    return read_config(Path(file).parent)
