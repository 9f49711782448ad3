"""Which errors say that memory ran out, and what is free on a GPU."""

import errno

import pytest
import torch
from support.fake_torch_cuda import GIB, Card, FakeTorchCuda

from dslite.runtime.memory import free_gpu_memory, is_out_of_memory, release_unused


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&handle)`"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GiB"),
    ],
)
def test_memory_that_ran_out_is_known_in_every_dress(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx(...)`"),
        RuntimeError("out of resource: shared memory, Required: 180224, Hardware limit: 101376"),
        OSError(errno.ENOENT, "No such file"),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_blocks_that_torch_keeps_of_an_earlier_model_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver sees half a GiB; 20 GiB of torch's blocks are not in use."""
    card = Card(total=24 * GIB, others=GIB // 2, reserved=23 * GIB, allocated=3 * GIB)
    FakeTorchCuda([card]).install(monkeypatch)
    device = torch.device("cuda", 0)
    assert free_gpu_memory(device) == 24 * GIB - GIB // 2 - 3 * GIB
    release_unused(device)
    assert card.reserved == 3 * GIB
    assert free_gpu_memory(device) == 24 * GIB - GIB // 2 - 3 * GIB


def test_each_card_has_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTorchCuda([Card(total=8 * GIB), Card(total=80 * GIB)]).install(monkeypatch)
    assert free_gpu_memory(torch.device("cuda", 1)) == 80 * GIB
    assert fake.contexts == {1}
