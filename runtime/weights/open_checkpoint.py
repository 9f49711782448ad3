"""The checkpoint of a model in the format that its user chose."""

from pathlib import Path

from dslite.model.quantized_layout import Weights
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.downloads.packed import find_packed, source_folder
from dslite.runtime.errors import CheckpointError, ModelUnavailableError
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.packing import source_identity
from dslite.runtime.weights.quantized_checkpoint import PackedCheckpoint, QuantizingCheckpoint


def open_checkpoint(ref: ModelRef, weights: Weights, *, pack: bool = True) -> Checkpoint:
    """Published weights, packed ones, or without `pack` published ones that are quantized as they load.

    Raises ModelUnavailableError, CheckpointError.
    """
    if weights == "bfloat16":
        return Checkpoint.open(locate(ref))
    if (folder := find_packed(ref, weights)) is not None:
        packed = PackedCheckpoint.open(folder)
        source = source_folder(ref)
        if source is not None and not _made_from(packed, source):
            raise CheckpointError(
                f"the {weights} weights of {ref.name} were packed from files that have changed since",
                f"pack them again: dslite model pack {ref.name} --weights {weights}",
            )
        return packed
    source_checkpoint = Checkpoint.open(locate(ref))
    if not pack:
        return QuantizingCheckpoint(source_checkpoint, weights)
    raise ModelUnavailableError(
        f"{ref.name} has no packed {weights} weights",
        f"pack them: dslite model pack {ref.name} --weights {weights}; or keep nothing on disk: --no-pack",
    )


def unchanged(packed: Path, source: Path) -> bool:
    """Whether a packed folder can be opened and was made from the published weights of a folder."""
    try:
        return _made_from(PackedCheckpoint.open(packed), source)
    except CheckpointError:
        return False


def _made_from(packed: PackedCheckpoint, source: Path) -> bool:
    return packed.metadata.get("source") == source_identity(source)
