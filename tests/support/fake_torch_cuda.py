"""`torch.cuda` of a machine that has no GPU: cards with memory, contexts, streams, recordings and registered memory.

It replaces the functions that dslite calls, and keeps account of what a real runtime would hold: which cards have a
context, which ranges of host memory are registered, and the error that a failed call leaves for the next launch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

GIB = 2**30
OUT_OF_MEMORY, ALREADY_REGISTERED = 2, 712  # cudaError_t


@dataclass
class Card:
    """A GPU. Bytes: its own, those of other programs, and of torch's allocator what it holds and what is in use."""

    name: str = "A card"
    total: int = 24 * GIB
    others: int = 0
    reserved: int = 0
    allocated: int = 0
    capability: tuple[int, int] = (9, 0)
    refuses: str = ""  # the error with which it gives no context

    @property
    def free(self) -> int:
        return self.total - self.others - self.reserved


@dataclass
class FakeTorchCuda:
    """Cards, and what was done with them."""

    cards: list[Card] = field(default_factory=lambda: [Card()])
    contexts: set[int] = field(default_factory=set)  # cards that this process has a context on
    registered: dict[int, int] = field(default_factory=dict)  # address → bytes
    most_registered: int = 1 << 60
    pins: bool = True  # whether the allocator of pinned memory works
    latched: int = 0  # the error that the next launch reports
    current: int = 0
    stream: str = "default"
    fails_in_end: str = ""
    log: list[str] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> "FakeTorchCuda":
        for name in (
            "mem_get_info get_device_name get_device_capability memory_reserved memory_allocated empty_cache "
            "synchronize set_device current_device cudart Stream current_stream CUDAGraph max_memory_allocated"
        ).split():
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "is_available", lambda: bool(self.cards))
        patch.setattr(torch.cuda, "device_count", lambda: len(self.cards))
        patch.setattr(torch.cuda, "stream", self.on_stream)
        patch.setattr(torch.cuda, "device", self.on_device)
        return self

    def _card(self, device: Any = None) -> Card:
        """A card, by a call that needs a context on it."""
        index = self.current if device is None else torch.device(device).index or 0
        if self.cards[index].refuses:
            raise torch.AcceleratorError(self.cards[index].refuses)
        self.contexts.add(index)
        return self.cards[index]

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        card = self._card(device)
        return card.free, card.total

    def get_device_name(self, device: Any = None) -> str:
        return self.cards[torch.device(device).index or 0].name

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self.cards[torch.device(device).index or 0].capability

    def memory_reserved(self, device: Any = None) -> int:
        return self._card(device).reserved

    def memory_allocated(self, device: Any = None) -> int:
        return self._card(device).allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        return self._card(device).allocated

    def empty_cache(self) -> None:
        for card in self.cards:
            card.reserved = card.allocated

    def synchronize(self, device: Any = None) -> None:
        self._card(device)
        self.log.append("synchronize")

    def set_device(self, device: Any) -> None:
        self.current = torch.device(device).index or 0

    def current_device(self) -> int:
        return self.current

    @contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, torch.device(device).index or 0
        yield
        self.current = before

    # Host memory.

    def cudart(self) -> "FakeTorchCuda":
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if any(start < address + nbytes and address < start + size for start, size in self.registered.items()):
            self.latched = ALREADY_REGISTERED
        elif sum(self.registered.values()) + nbytes > self.most_registered:
            self.latched = OUT_OF_MEMORY
        else:
            self.registered[address] = nbytes
            self.log.append("register")
            return 0
        return self.latched

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        self.log.append("unregister")
        return 0

    def launch(self, *_: Any) -> None:
        """A kernel: reports the error of an earlier call as its own."""
        latched, self.latched = self.latched, 0
        if latched:
            raise torch.AcceleratorError("CUDA error: out of memory")

    # Streams and recordings.

    def Stream(self, device: Any = None) -> Any:
        fake = self

        class Stream:
            def __init__(self) -> None:
                self.device = torch.device(device)

            def wait_stream(self, _: Any) -> None:
                fake.log.append("wait")

        return Stream()

    def current_stream(self, device: Any = None) -> str:
        return self.stream

    @contextmanager
    def on_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, "side"
        try:
            yield
        finally:
            self.stream = before

    def CUDAGraph(self) -> Any:
        fake = self

        class Graph:
            def capture_begin(self, **options: Any) -> None:
                fake.log.append(f"begin on {fake.stream}, {options['capture_error_mode']}")

            def capture_end(self) -> None:
                fake.log.append("end")
                if fake.fails_in_end:
                    raise torch.AcceleratorError(fake.fails_in_end)

            def replay(self) -> None:
                fake.log.append(f"replay on cuda:{fake.current}")

        return Graph()
