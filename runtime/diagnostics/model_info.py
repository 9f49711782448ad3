"""The size of a model by part, per token and on disk, known before any of it is downloaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.downloads.layout import files_of
from dslite.runtime.downloads.model_config import config_of
from dslite.runtime.downloads.repository import Licence, ask, known_licence
from dslite.runtime.errors import DsliteError, ModelUnavailableError
from dslite.runtime.planning.footprint import Footprint

PARTS = ("embedding", "attention", "dense", "shared", "routed", "gate", "norms", "head")
_ITEM_BYTES = 2  # BF16, in which the published weights are stored


@dataclass(frozen=True)
class ModelInfo:
    """A model's figures. Bytes are of BF16 weights; `file_bytes` those of its weight files, None if not known."""

    ref: ModelRef
    folder: Path | None
    commit: str | None
    config: ModelConfig
    parameters: int
    part_bytes: dict[str, int]
    file_bytes: int | None
    kv_bytes_per_token: int
    read_bytes_per_token: int
    expert_bytes: int
    licence: Licence | None

    @property
    def weights_bytes(self) -> int:
        return sum(self.part_bytes.values())


def describe(ref: ModelRef, *, offline: bool = False) -> ModelInfo:
    """Collect the figures of a model from its folder or the cache, else from the Hub.

    Raises ModelUnavailableError where its config is not known, ConfigError naming the key at fault.
    """
    folder = _present(ref)
    remote = None
    if folder is None and ref.repo_id is not None:
        try:
            remote = ask(ref, offline=offline)
        except ModelUnavailableError as unreachable:
            try:
                config_of(ref, offline=True)  # where the config is known without the Hub, the rest may be missing
            except ModelUnavailableError:
                raise unreachable from None
    config = config_of(ref, offline=offline)
    footprint = Footprint(config, "bfloat16")
    licence = remote.licence if remote else known_licence(ref.repo_id)
    if remote is not None:
        file_bytes: int | None = sum(file.size for file in remote.weights)
    else:
        file_bytes = None if folder is None else _weight_bytes(folder)
    return ModelInfo(
        ref=ref,
        folder=folder,
        commit=remote.commit if remote else _commit(ref, folder),
        config=config,
        parameters=footprint.parameters,
        part_bytes=part_bytes(config),
        file_bytes=file_bytes,
        kv_bytes_per_token=footprint.kv_per_token,
        read_bytes_per_token=footprint.read_per_token,
        expert_bytes=footprint.expert,
        licence=licence,
    )


def part_bytes(config: ModelConfig) -> dict[str, int]:
    """Bytes of BF16 weights by part, complete."""
    totals = dict.fromkeys(PARTS, 0)
    for name, shape in parameter_shapes(config).items():
        totals[_part(name)] += math.prod(shape) * _ITEM_BYTES
    return totals


def _part(name: str) -> str:
    """embedding, attention, dense, shared, routed, gate, norms or head."""
    if "norm" in name:
        return "norms"
    for mark, part in (
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
        (".self_attn.", "attention"),
        (".mlp.gate.", "gate"),
        (".mlp.shared_experts.", "shared"),
        (".mlp.experts.", "routed"),
    ):
        if mark in name:
            return part
    return "dense"


def _present(ref: ModelRef) -> Path | None:
    try:
        return locate(ref)
    except DsliteError:
        return None


def _commit(ref: ModelRef, folder: Path | None) -> str | None:
    return folder.name if folder is not None and ref.repo_id is not None else None


def _weight_bytes(folder: Path) -> int | None:
    """Bytes of the weight files; None for a folder that has only its config."""
    files = [folder / name for name in files_of(folder) if name.endswith(".safetensors")]
    return sum(file.stat().st_size for file in files) if all(file.is_file() for file in files) else None
