"""Latent entries of conversations on disk, so that continuing one later costs a file read instead of a prefill.

One safetensors file a conversation: `token_ids`, and the entries in blocks of 1,024 tokens. A fingerprint identifies
all that the entries depend on, and each block has a checksum over fingerprint, tokens up to its end, and bytes. What
does not match exactly is ignored: a lost file costs a prefill, never a wrong answer.
"""

# L layers  T tokens of a block  C latent  R rope

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dslite.model.rope import ROPE_LAYOUT
from dslite.runtime.atomic_file import replacing
from dslite.runtime.cache.branch_cache import common_prefix
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.errors import CheckpointError
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.safetensors_file import SafetensorsFile, TensorForm, tensor_bytes, write

DEFAULT_MOST_BYTES = 4_000_000_000
_FORMAT = "dslite-latents-1"
_BLOCK = 1024
_BLOCKS = "rows"  # a block's tensor is named so, and its number
_SEARCHED = 64  # first tokens of a prompt, by which its file is found
_HASHERS = 2
_ORPHAN_S = 600  # no file takes so long to write
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_BLOB = re.compile(r"[0-9a-f]{64}")
_DAMAGE = (OSError, CheckpointError, ValueError, TypeError, LookupError, RuntimeError)  # tensors of any name and form

log = logging.getLogger(__name__)


def fingerprint(checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    """Identifies what entries depend on: format, config, weights, tokenizer, rotation layout, dtype.

    Weights of the Hub's cache are known by their content hash; those of a plain folder by size, date and samples.
    """
    digest = hashlib.sha256(f"{_FORMAT} {checkpoint.config} {ROPE_LAYOUT} {dtype}".encode())
    if checkpoint.weights != "bfloat16":
        digest.update(checkpoint.weights.encode())
    tokenizer = checkpoint.folder / "tokenizer.json"
    digest.update(tokenizer.read_bytes() if tokenizer.is_file() else b"")
    for file in sorted({entry.file for entry in checkpoint.entries.values()}):
        digest.update(f"\n{file.name} ".encode())
        digest.update(file_identity(file))
    return digest.hexdigest()


def file_identity(file: Path) -> bytes:
    """Known by its content hash in the Hub's cache; elsewhere by size, date and samples."""
    blob = file.resolve().name
    if file.is_symlink() and _BLOB.fullmatch(blob):
        return blob.encode()
    status = file.stat()
    identity = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
    with file.open("rb") as stream:
        for place in range(_SAMPLES):
            stream.seek(place * max(status.st_size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
            identity.update(stream.read(_SAMPLE_BYTES))
    return identity.digest()


class LatentDiskCache:
    """The files of one model, in a folder that all models share and that never exceeds `most_bytes`."""

    def __init__(self, folder: Path, fingerprint: str, *, most_bytes: int = DEFAULT_MOST_BYTES) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        self._most = most_bytes

    def save(self, key: str, token_ids: Sequence[int], cache: LatentKVCache) -> bool:
        """Write the entries of a conversation; False, and a line in the log, where the folder cannot take them."""
        count = min(len(token_ids), cache.length)
        ids = torch.tensor(token_ids[:count], dtype=torch.int32)
        entries = cache.entries(0, count)
        if not count or entries.nbytes > self._most:
            return False
        try:
            # The tokens of conversations are in these files: they are the user's alone.
            self._folder.mkdir(parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._make_room(self._file(key), entries.nbytes)
            with replacing(self._file(key), mode=0o600) as stream:
                self._write(stream, ids, entries)
        except OSError as error:
            log.warning("the cache of %s was not saved: %s", key, error)
            return False
        return True

    def load(self, key: str, token_ids: Sequence[int], cache: LatentKVCache) -> int:
        """Extend the cache by the saved entries of the tokens, as far as they verify; return its new length."""
        try:
            for entries in self._verified(self._file(key), token_ids, cache):
                cache.put(entries)
            os.utime(self._file(key))
        except FileNotFoundError:
            pass
        except _DAMAGE as error:
            log.warning("the saved cache of %s is not used: %s", key, error)
        return cache.length

    def token_ids(self, key: str) -> list[int]:
        """The tokens that a file holds; none where there is no sound file."""
        try:
            ids: list[int] = SafetensorsFile(self._file(key)).tensor("token_ids").tolist()
        except _DAMAGE:
            return []
        return ids

    def save_by_tokens(self, token_ids: Sequence[int], cache: LatentKVCache) -> None:
        """Write latent entries that are found again by their tokens. Fewer than a search compares are not worth it."""
        if len(token_ids) >= _SEARCHED:
            self.save(f"{_digest(token_ids[:_SEARCHED])}-{_digest(token_ids)}", token_ids, cache)

    def load_longest(self, token_ids: Sequence[int], cache: LatentKVCache) -> bool:
        """Continue the cache with the longest prefix of the tokens that any file holds; False where none is longer."""
        best, known = None, cache.length
        for file in self._folder.glob(f"{_digest(token_ids[:_SEARCHED])}-*.safetensors"):
            try:
                shared = common_prefix(SafetensorsFile(file).tensor("token_ids").tolist(), token_ids)
            except (OSError, *_DAMAGE) as error:
                log.warning("the saved entries %s are not used: %s", file, error)
                continue
            if shared > known:
                best, known = file, shared
        return best is not None and self.load(best.stem, token_ids, cache) > 0

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, _, size in self._files())

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _write(self, stream: BinaryIO, ids: Tensor, entries: Tensor) -> None:
        """Token ids (T,), and latent entries (L, T, C+R) in blocks with a checksum for each."""
        blocks = entries.split(_BLOCK, dim=1)
        layout = {"token_ids": TensorForm(ids.dtype, tuple(ids.shape))}
        for number, block in enumerate(blocks):
            layout[f"{_BLOCKS}.{number}"] = TensorForm(block.dtype, tuple(block.shape))
        layout["checksums"] = TensorForm(torch.uint8, (len(blocks), hashlib.sha256().digest_size))
        write(stream, layout, self._tensors(ids, blocks), {"format": _FORMAT, "fingerprint": self._fingerprint})

    def _tensors(self, ids: Tensor, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        yield ids
        checksums, end = bytearray(), 0
        for block in blocks:
            end += block.shape[1]
            packed = block.contiguous()
            checksums += self._checksum(ids[:end], packed)
            yield packed
        yield torch.frombuffer(checksums, dtype=torch.uint8).view(len(blocks), -1)

    def _checksum(self, ids: Tensor, block: Tensor) -> bytes:
        digest = hashlib.sha256(self._fingerprint.encode())
        digest.update(tensor_bytes(ids))
        digest.update(tensor_bytes(block))
        return digest.digest()

    def _verified(self, file: Path, token_ids: Sequence[int], cache: LatentKVCache) -> Iterator[Tensor]:
        """Entries (L, T, C+R) of the tokens behind those of the cache, up to the first block that does not verify."""
        known, form = cache.length, cache.entries(0, 0)
        opened = SafetensorsFile(file)
        if opened.metadata.get("format") != _FORMAT or opened.metadata.get("fingerprint") != self._fingerprint:
            raise ValueError("it belongs to another model, or to another version")
        ids, checksums = opened.tensor("token_ids"), opened.tensor("checksums").tolist()
        wanted = common_prefix(ids.tolist(), token_ids)
        numbers = range(known // _BLOCK, -(-wanted // _BLOCK))

        def verify(number: int) -> Tensor | None:
            entries = opened.tensor(f"{_BLOCKS}.{number}")
            end = min((number + 1) * _BLOCK, len(ids))
            shape = (form.shape[0], end - number * _BLOCK, form.shape[2])
            if entries.dtype != form.dtype or entries.shape != shape:
                return None
            return entries if self._checksum(ids[:end], entries) == bytes(checksums[number]) else None

        with ThreadPoolExecutor(_HASHERS) as pool:  # hashing releases the GIL
            for number, entries in zip(numbers, pool.map(verify, numbers), strict=True):
                if entries is None:
                    log.warning("%s: block %d is damaged and will be computed again", file, number)
                    return
                start = number * _BLOCK
                yield entries[:, max(known - start, 0) : wanted - start]

    def _files(self) -> list[tuple[float, Path, int]]:
        """Date, path and size of every conversation's file, the longest unused first."""
        found = []
        for file in self._folder.glob("*.safetensors"):
            try:
                status = file.stat()
            except OSError:
                continue  # another process removed it
            found.append((status.st_mtime, file, status.st_size))
        return sorted(found)

    def _make_room(self, incoming: Path, nbytes: int) -> None:
        """Remove unfinished files of killed processes, then the least recently used ones, until a file fits."""
        for orphan in self._folder.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - orphan.stat().st_mtime > _ORPHAN_S:
                    orphan.unlink()
        files = [item for item in self._files() if item[1] != incoming]
        total = sum(size for _, _, size in files) + nbytes
        for _, file, size in files:
            if total <= self._most:
                return
            _remove(file)
            total -= size


def clear_folder(folder: Path) -> int:
    """Remove all files of a disk cache; returns their bytes. Raises OSError where one cannot be removed."""
    removed = 0
    for file in [*folder.glob("*.safetensors"), *folder.glob(".*.tmp")]:
        removed += file.stat().st_size
        file.unlink()
    return removed


def _digest(token_ids: Sequence[int]) -> str:
    """A file name's part for tokens."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()[:24]


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
