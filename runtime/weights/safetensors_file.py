"""Files in the safetensors format: checkpoints, and the disk cache's latent entries.

Every file is opened once, and all that is known of it comes from that descriptor: a name that is opened a second time
may by then belong to another file. The safetensors package opens names alone and gives no offsets, which reading
experts from the disk needs. So headers are parsed here, and the package checks each one too, where the system has a
name for an open descriptor (not on Windows). The parser alone refuses, beyond what the package does: dtypes that its
caller does not read, values that are not aligned to their size in the file, and names that occur twice.

Small files are written by the package, larger ones tensor by tensor, so that no second copy of them is in memory.
"""

import json
import math
import mmap
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dslite.runtime.errors import CheckpointError
from dslite.runtime.system.files import name_of_descriptor

REMEDY = "download the model again, or check the folder"
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_METADATA = "__metadata__"
_SMALL = 16 * 2**20  # bytes of a file that the package writes, which takes them once more in memory


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: `nbytes` bytes from byte `offset` on."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorForm:
    """The dtype and the shape of a tensor that is to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """The tensors of a file in the order of its header, and its metadata."""

    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


class SafetensorsFile:
    """A file in memory by a private mapping. Raises OSError, CheckpointError for a damaged header."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            self._header = _checked_header(stream, file, tuple(_NAMES))
            # Private: nothing is written, but torch takes read-only memory with a warning alone.
            self._bytes = torch.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._header.metadata

    def tensor(self, name: str) -> Tensor:
        """A view of the file. Raises KeyError."""
        entry = self._header.entries[name]
        return self._bytes[entry.offset : entry.offset + entry.nbytes].view(entry.dtype).view(entry.shape)


def read_header(file: Path, dtypes: Collection[torch.dtype] = tuple(_NAMES)) -> Header:
    """The header of a file with tensors of some dtypes, whose extents fill it exactly. Raises CheckpointError."""
    try:
        with file.open("rb") as stream:
            return _checked_header(stream, file, dtypes)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", REMEDY) from None


def _checked_header(stream: BinaryIO, file: Path, dtypes: Collection[torch.dtype]) -> Header:
    header = parse_header(stream, file, dtypes)
    _check_with_package(stream, file)
    return header


def parse_header(stream: BinaryIO, file: Path, dtypes: Collection[torch.dtype] = tuple(_NAMES)) -> Header:
    """The header of an open file by the parser alone; `file` is its name for messages.

    Raises OSError, CheckpointError.
    """
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{file} is cut short: its header does not fit into {size} bytes", REMEDY)
    try:
        text = stream.read(length).decode("utf-8")
        raw = json.loads(
            text,
            object_pairs_hook=_sound_names,
            parse_int=_whole_number,
            parse_float=_finite_number,
            parse_constant=_finite_number,
        )
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        metadata = _metadata(raw.pop(_METADATA, {}))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged header: {error}", REMEDY) from None
    entries = {name: _entry(file, name, entry, 8 + length, dtypes) for name, entry in raw.items()}
    _check_extents(file, list(entries.values()), 8 + length, size)
    return Header(entries, metadata)


def write(
    stream: BinaryIO,
    layout: Mapping[str, TensorForm],
    tensors: Iterable[Tensor],
    metadata: Mapping[str, str],
    *,
    small: int = _SMALL,
) -> None:
    """Write tensors, which come in the order of the layout, as a safetensors file of that layout. Raises OSError.

    Files of `small` bytes at most are written by the package, larger ones tensor by tensor; in those each tensor must
    begin at a multiple of its values' size, as where the widest come first.
    """
    if sum(form.nbytes for form in layout.values()) <= small:
        stream.write(
            save({name: _packed(tensor) for name, tensor in zip(layout, tensors, strict=True)}, dict(metadata))
        )
        return
    stream.write(header_bytes(layout, metadata))
    for form, tensor in zip(layout.values(), tensors, strict=True):
        if (tensor.dtype, tensor.shape) != (form.dtype, form.shape):
            raise ValueError(f"a tensor {tensor.dtype} {tuple(tensor.shape)} where the layout has {form}")
        stream.write(tensor_bytes(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; copied only where it is not contiguous or not in host memory."""
    return memoryview(_packed(tensor).flatten().view(torch.uint8).numpy().data)


def _packed(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous()


def header_bytes(layout: Mapping[str, TensorForm], metadata: Mapping[str, str], align: int = 8) -> bytes:
    """The bytes in front of tensors that lie one behind the other in this order, the first at a multiple of `align`."""
    entries: dict[str, object] = {_METADATA: dict(metadata)}
    place = 0
    for name, form in layout.items():
        if place % form.dtype.itemsize:
            raise ValueError(f"{name} would begin at byte {place}, which is not aligned")
        entries[name] = {
            "dtype": _NAMES[form.dtype],
            "shape": list(form.shape),
            "data_offsets": [place, place + form.nbytes],
        }
        place += form.nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % align)
    return len(text).to_bytes(8, "little") + text


def _sound_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    for name in found:
        name.encode()  # half of a surrogate pair is no text: a ValueError
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _whole_number(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # a negative zero is no place in a file


def _finite_number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text} is none of JSON")
    return number


def _metadata(raw: object) -> dict[str, str]:
    """Raises ValueError for what does not map texts to texts."""
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError("its metadata does not map texts to texts")
    for text in raw.values():
        text.encode()
    return raw


def _entry(file: Path, name: str, raw: Any, start: int, dtypes: Collection[torch.dtype]) -> TensorEntry:
    """One header entry. `start` is where the file's payload begins."""
    try:
        kind, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        sound = isinstance(kind, str) and isinstance(raw["shape"], list)
        sound = sound and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file}: the header entry of {name} is damaged", REMEDY)
    dtype = _DTYPES.get(kind)
    if dtype is None or dtype not in dtypes:
        raise CheckpointError(
            f"{file}: {name} has dtype {kind}, and only {' and '.join(_NAMES[known] for known in dtypes)} are read",
            "use a BF16 checkpoint; float16 overflows in this model",
        )
    entry = TensorEntry(name, file, dtype, shape, start + begin, end - begin)
    if entry.nbytes != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{file}: {name} of shape {list(shape)} cannot have {entry.nbytes} bytes", REMEDY)
    if entry.offset % dtype.itemsize:
        raise CheckpointError(f"{file}: {name} begins at byte {entry.offset}, which is not aligned", REMEDY)
    return entry


def _check_extents(file: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    place = start
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != place:
            raise CheckpointError(f"{file}: {entry.name} begins at byte {entry.offset} instead of {place}", REMEDY)
        place += entry.nbytes
        if place > size:
            raise CheckpointError(
                f"{file} is cut short: {entry.name} ends at byte {place}, and the file has {size}", REMEDY
            )
    if place != size:
        raise CheckpointError(f"{file} has {size - place} bytes behind its last tensor", REMEDY)


def _check_with_package(stream: BinaryIO, file: Path) -> None:
    """Let the safetensors package check the header of the file that is open. Raises CheckpointError."""
    descriptor = name_of_descriptor(stream.fileno())
    if descriptor is None:
        return
    try:
        # Read, not mapped: a file that is cut meanwhile would end the process.
        with safe_open(descriptor, framework="np", backend="pread"):
            pass
    except OSError:
        pass  # a system without names for open descriptors: the parser has found the header sound
    except SafetensorError as error:
        raise CheckpointError(f"{file} has a damaged header: {error}", REMEDY) from None
