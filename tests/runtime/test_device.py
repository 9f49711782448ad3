"""Recording on a GPU, by a fake runtime: the thread's stream, the error that is raised, and other threads' work."""

import gc

import pytest
import torch
from support.fake_torch_cuda import Card, FakeTorchCuda

from dslite.runtime.device import CudaDevice


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    return FakeTorchCuda([Card(), Card()]).install(monkeypatch)


def test_a_launch_runs_once_and_is_then_recorded_on_a_stream_of_its_device(cuda: FakeTorchCuda) -> None:
    launched = []
    replay = CudaDevice(torch.device("cuda", 1)).record(lambda: launched.append((cuda.stream, cuda.current)))
    assert launched == [("default", 1), ("side", 1)]
    assert cuda.log == ["wait", "begin on side, thread_local", "end"]
    replay()
    assert cuda.log[-1] == "replay on cuda:1"
    assert (cuda.stream, cuda.current, gc.isenabled()) == ("default", 0, True)


@pytest.mark.parametrize("fails_in_end", ["", "CUDA error: operation failed due to a previous error during capture"])
def test_a_recording_that_fails_raises_its_own_error_and_leaves_the_stream(
    cuda: FakeTorchCuda, fails_in_end: str
) -> None:
    cuda.fails_in_end = fails_in_end

    def launch() -> None:
        if cuda.stream == "side":
            assert not gc.isenabled(), "memory that is freed in a recording ends it"
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaDevice(torch.device("cuda", 0)).record(launch)
    assert (cuda.stream, cuda.log[-1], gc.isenabled()) == ("default", "end", True)


def test_a_recording_that_cannot_be_ended_says_so(cuda: FakeTorchCuda) -> None:
    cuda.fails_in_end = "CUDA error: operation not permitted"
    with pytest.raises(torch.AcceleratorError, match="not permitted"):
        CudaDevice(torch.device("cuda", 0)).record(lambda: None)
    assert cuda.stream == "default"
