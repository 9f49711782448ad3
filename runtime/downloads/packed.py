"""Where packed weights are: a folder in Hub layout, under the cache folder, for each model and format.

Its tokenizer and config are copies, so that it runs without the published weights.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslite.model.quantized_layout import Weights
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.downloads.layout import missing_files
from dslite.runtime.errors import CheckpointError, DsliteError, ModelUnavailableError
from dslite.runtime.paths import cache_dir, write_json

PACKED = "packed.safetensors"
_NOTE = "source.json"


@dataclass(frozen=True)
class PackedModel:
    """Packed weights on this machine, whole or begun. `model` is what -m takes."""

    folder: Path
    model: str
    repo_id: str | None
    revision: str | None
    weights: str

    @property
    def complete(self) -> bool:
        return (self.folder / PACKED).is_file()

    @property
    def size_bytes(self) -> int:
        """Bytes that its files take on the disk: a begun file has holes."""
        sizes = (file.stat() for file in self.folder.iterdir() if file.is_file())
        return sum(min(status.st_size, getattr(status, "st_blocks", status.st_size) * 512) for status in sizes)


def packed_root() -> Path:
    return cache_dir() / "packed"


def packed_folder(ref: ModelRef, weights: Weights) -> Path:
    """Where a model's packed weights are or would be."""
    if ref.repo_id is not None:
        name = ref.key.replace("/", "--")
    else:
        assert ref.folder is not None
        place = str(ref.folder.resolve())
        name = f"{ref.folder.name}-{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"
    return packed_root() / name / weights


def find_packed(ref: ModelRef, weights: Weights) -> Path | None:
    """The folder of a model's packed weights, if they are here."""
    if weights == "bfloat16":
        return None
    folder = packed_folder(ref, weights)
    return folder if (folder / PACKED).is_file() else None


def packed_source(ref: ModelRef) -> Path | None:
    """A folder of packed weights of a model in any format."""
    formats: tuple[Weights, ...] = ("int8", "int4")
    return next((folder for weights in formats if (folder := find_packed(ref, weights)) is not None), None)


def locate_weights(ref: ModelRef, weights: Weights) -> Path:
    """The folder that a model is run from: that of its packed weights, or of the published ones. See `locate`."""
    return find_packed(ref, weights) or locate(ref)


def source_folder(ref: ModelRef) -> Path | None:
    """The folder of the published weights; None where they are not here, or not whole."""
    try:
        folder = locate(ref)
        return None if not folder.is_dir() or missing_files(folder) else folder
    except (ModelUnavailableError, CheckpointError):
        return None


def write_note(folder: Path, ref: ModelRef, weights: Weights) -> None:
    """Write down what a packed folder is made from. Raises OSError."""
    note = {"model": ref.key, "repo_id": ref.repo_id, "revision": ref.revision, "weights": weights}
    write_json(folder / _NOTE, note)


def packed_models() -> Iterator[PackedModel]:
    """All packed weights on this machine, begun ones too."""
    for file in sorted(packed_root().glob(f"*/*/{_NOTE}")):
        try:
            note: Any = json.loads(file.read_bytes())
            yield PackedModel(file.parent, note["model"], note["repo_id"], note["revision"], note["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            continue


def remove_packed(ref: ModelRef) -> int:
    """Remove all packed weights of a model; the bytes that were freed. Raises DsliteError."""
    freed = 0
    for packed in list(packed_models()):
        mine = packed.repo_id is not None and packed.repo_id == ref.repo_id and ref.revision in (None, packed.revision)
        if mine or packed.model == ref.key:
            freed += packed.size_bytes
            try:
                shutil.rmtree(packed.folder)
            except OSError as error:
                raise DsliteError(
                    f"{packed.folder} was not removed: {error.strerror}", "check its permissions"
                ) from None
    return freed
