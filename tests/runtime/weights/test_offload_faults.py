"""What goes wrong under a running engine: memory that runs out, disks that fail, files that change. No wrong token."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.forward import random_ids
from support.machines import machine

from dslite.model.attention import Span
from dslite.runtime.device import PlainDevice
from dslite.runtime.engine import runner
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import CheckpointError, OutOfMemoryError
from dslite.runtime.events import Token
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights import disk, loader
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import load

CPU = torch.device("cpu")
EXPERTS, PER_TOKEN, LAYERS, TOKENS = 12, 3, 3, 12
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = tiny_config(n_routed_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, num_hidden_layers=LAYERS)
    return write_checkpoint(tmp_path / "model", config)


def offloaded(folder: Path, *, slots: int = 6, backend: PlainDevice | None = None, spare: int = 2) -> Engine:
    """An engine whose experts lie on disk but for a few slots, and are read on almost every token."""
    checkpoint = Checkpoint.open(folder)
    made = plan(machine(0, 64), checkpoint.config, PlanRequest(dtype="float32", expert_slots=slots, context=256))
    model = load(checkpoint, device=CPU, dtype=torch.float32, plan=replace(made, spare=spare), backend=backend)
    return Engine(model, Tokenizer.from_folder(folder), context=256, eos_token_ids=[], prefill_chunk=16)


def prompt(folder: Path) -> list[int]:
    return random_ids(40, Checkpoint.open(folder).config.vocab_size, seed=4)


def answer(running: Engine, ids: Sequence[int]) -> list[int]:
    return [event.id for event in running.generate(Request(ids, GREEDY)) if isinstance(event, Token)]


def follow(running: Engine, ids: Sequence[int], got: list[int], then: Callable[[], object]) -> None:
    """Answer into `got`, doing something behind each token."""
    for event in running.generate(Request(ids, GREEDY)):
        if isinstance(event, Token):
            got.append(event.id)
            then()


def right_answer(folder: Path) -> list[int]:
    return answer(load_engine(folder, eos_token_ids=[]), prompt(folder))


class FailingDevice(PlainDevice):
    """A device whose n-th allocation fails, and the `times - 1` behind it."""

    def __init__(self, first: int, times: int) -> None:
        super().__init__(CPU)
        self.count, self._fails = 0, range(first, first + times)

    def allocate(self, nbytes: int) -> torch.Tensor:
        self.count += 1
        if self.count - 1 in self._fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return super().allocate(nbytes)


def test_slots_beyond_the_fewest_are_as_many_as_fit(folder: Path) -> None:
    """They are allocated last, three beyond the fewest three."""
    allocations = FailingDevice(-1, 0)
    offloaded(folder, backend=allocations)
    for slots in (3, 4, 5):
        running = offloaded(folder, backend=FailingDevice(allocations.count - 6 + slots, 1))
        assert running.expert_stats()["slots"] == slots
        assert answer(running, prompt(folder)) == right_answer(folder)


def test_what_must_fit_and_does_not_is_told_with_its_remedy(folder: Path) -> None:
    allocations = FailingDevice(-1, 0)
    offloaded(folder, backend=allocations)
    for failing in range(allocations.count - 3):
        with pytest.raises(OutOfMemoryError, match=r"experts per layer|weights of") as told:
            offloaded(folder, backend=FailingDevice(failing, 1))
        assert "--ctx-size" in told.value.remedy


def test_an_arena_that_never_fits_is_told_with_its_remedy(folder: Path) -> None:
    with pytest.raises(OutOfMemoryError, match="3 experts per layer") as told:
        offloaded(folder, backend=FailingDevice(0, 10**6))
    assert "--ctx-size" in told.value.remedy


def test_a_cache_that_does_not_fit_takes_the_memory_of_slots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LatentKVCache", failing_first(runner.LatentKVCache, 2))
    running = offloaded(folder)
    assert answer(running, prompt(folder)) == right_answer(folder)
    assert running.expert_stats()["slots"] == 4


def failing_first(make: Callable[..., Any], times: int) -> Callable[..., Any]:
    """`make`, out of memory the first times."""
    left = iter(range(times))

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if next(left, None) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(*args, **kwargs)

    return wrapper


READS = {torch.ops.aten._local_scalar_dense.default}  # makes no tensor


class Shortage(torch.utils._python_dispatch.TorchDispatchMode):
    """The n-th operation of a network's pass has no memory for its result; `failures` in all."""

    def __init__(self, first: int, failures: int = 1, where: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self.count, self.failures, self._first = 0, failures, first
        self._where = where or in_network

    def begin(self) -> None:
        self._first = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.is_view or func._schema.is_mutable or func in READS or not self._where():
            return func(*args, **(kwargs or {}))
        self.count += 1
        if self.count > self._first and self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return func(*args, **(kwargs or {}))


def callers() -> set[str]:
    """The files, with their folders, of all functions that are being run."""
    frame: Any = sys._getframe()
    names = set()
    while frame is not None:
        names.add("/".join(frame.f_code.co_filename.split("/")[-2:]))
        frame = frame.f_back
    return names


def in_network() -> bool:
    """Whether the network computes now, rather than what is around it."""
    return "model/transformer.py" in callers()


def around_network() -> bool:
    """Whether the engine itself works with tensors now: not the network, nor the drawing of tokens."""
    names = callers()
    own = {"engine/core.py", "engine/runner.py", "engine/scheduler.py", "cache/prefix_cache.py"}
    return bool(names & own) and not names & {"model/transformer.py", "engine/sequence.py"}


def in_drawing() -> bool:
    """Whether a token is drawn now."""
    return "engine/sequence.py" in callers()


def operations(folder: Path, during: Callable[[Engine], object]) -> int:
    running = offloaded(folder)
    with Shortage(10**9) as watch:
        during(running)
    return watch.count


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 0.97])
def test_memory_that_runs_out_anywhere_in_an_answer_costs_slots_and_no_token(folder: Path, share: float) -> None:
    ids, right = prompt(folder), right_answer(folder)
    count = operations(folder, lambda running: answer(running, ids))
    running = offloaded(folder)
    with Shortage(int(count * share)) as shortage:
        assert answer(running, ids) == right
    assert shortage.failures == 0
    assert running.expert_stats()["slots"] == 5
    if share < 0.1:
        assert running.runner.prefill_chunk == 8


def talk(running: Engine, ids: Sequence[int]) -> list[int]:
    """Three turns: an answer, one to an edited prompt, and one that goes back to the first."""
    first = follow_briefly(running, ids)
    return [*first, *follow_briefly(running, [*ids[:8], 7, 8]), *follow_briefly(running, [*ids, *first])]


def follow_briefly(running: Engine, ids: Sequence[int]) -> list[int]:
    request = Request(ids, replace(GREEDY, max_tokens=2))
    return [event.id for event in running.generate(request) if isinstance(event, Token) and event.id is not None]


def told_or(run: Callable[[], list[int]]) -> list[int] | str:
    """What comes of it, or the remedy that is told."""
    try:
        return run()
    except OutOfMemoryError as told:
        return told.remedy


@pytest.mark.parametrize("make", [offloaded, lambda folder: load_engine(folder, eos_token_ids=[])])
def test_memory_that_runs_out_around_the_network_is_made_or_told(folder: Path, make: Callable[[Path], Engine]) -> None:
    """At every operation of the engine's own: with slots to give back nothing shows; without, it is one message."""
    ids = prompt(folder)
    right = talk(load_engine(folder, eos_token_ids=[]), ids)
    running = make(folder)
    with Shortage(10**9, where=around_network) as watch:
        assert talk(running, ids) == right
    assert watch.count > 10
    for first in range(watch.count):
        running = make(folder)
        with Shortage(first, where=around_network):
            got = told_or(lambda running=running: talk(running, ids))  # type: ignore[misc]
        assert got == right or (isinstance(got, str) and running.experts is None)
        assert talk(running, ids) == right, "the conversation must go on"


def test_memory_that_runs_out_while_a_token_is_drawn_is_told_and_the_conversation_stays(folder: Path) -> None:
    ids = prompt(folder)
    request = Request(ids, SamplingParams(temperature=0.7, top_p=0.9, seed=3, max_tokens=4), logprobs=2)

    def drawn(running: Engine) -> list[int]:
        return [event.id for event in running.generate(request) if isinstance(event, Token) and event.id is not None]

    running = offloaded(folder)
    with Shortage(10**9, where=in_drawing) as watch:
        right = drawn(running)
    assert watch.count > 20
    for first in range(watch.count):
        with Shortage(first, where=in_drawing), pytest.raises(OutOfMemoryError, match="drawing a token"):
            drawn(running)
        assert drawn(running) == right


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_resident_network_without_room_for_a_chunk_reads_it_in_halves(folder: Path, share: float) -> None:
    """There are no slots to give back: shorter chunks are what helps."""
    ids, right = prompt(folder), right_answer(folder)
    running = load_engine(folder, eos_token_ids=[])
    whole = Shortage(10**9)
    with whole:
        running.runner.run(ids, [Span(running.runner.make_cache(64), len(ids))])
    with Shortage(int(whole.count * share), failures=2) as shortage:
        assert answer(running, ids) == right
    assert shortage.failures == 0
    assert running.runner.prefill_chunk == len(ids) // 4


def test_a_resident_network_without_room_for_a_token_says_so_once_and_the_conversation_stays(folder: Path) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = load_engine(folder, eos_token_ids=[])
    got: list[int] = []
    shortage = Shortage(10**9, failures=10**6)
    with shortage, pytest.raises(OutOfMemoryError, match=r"memory ran out for .*Tried to allocate 2\.00 GiB") as told:
        follow(running, ids, got, lambda: shortage.begin() if len(got) == 4 else None)
    assert got == right[:4]
    assert "--ctx-size" in told.value.remedy
    assert list(running.prefix_cache.newest.ids) == ids + right[:3]
    assert answer(running, [*ids, *right[:4]])[:4] == right[4:8]


def test_memory_that_stays_short_ends_in_one_message_and_the_conversation_stays(folder: Path) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = offloaded(folder)
    got: list[int] = []
    shortage = Shortage(10**9, failures=10**6)
    with shortage, pytest.raises(OutOfMemoryError, match="memory ran out for") as told:
        follow(running, ids, got, lambda: shortage.begin() if len(got) == 4 else None)
    assert got == right[:4]
    assert "--ctx-size" in told.value.remedy
    assert len(running.prefix_cache.newest.ids) >= len(ids)
    assert answer(running, ids) == right


def break_reads(monkeypatch: pytest.MonkeyPatch, behave: Callable[[], int | None]) -> None:
    """Positional reads as the system gives them, but for what `behave` says: an error number, or -1 for a short one."""
    real = disk.read_at

    def read_at(fd: int, target: memoryview, position: int) -> int:
        wrong = behave()
        if wrong is None:
            return real(fd, target, position)
        if wrong == -1:
            return real(fd, target[:512], position)
        raise OSError(wrong, os.strerror(wrong))

    monkeypatch.setattr(disk, "read_at", read_at)


@pytest.mark.parametrize(("wrong", "message"), [(5, "Input/output error"), (-1, "too early")])
def test_a_read_that_fails_in_mid_answer_names_the_file_and_emits_nothing_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, message: str
) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = offloaded(folder)
    healed = False
    got: list[int] = []
    break_reads(monkeypatch, lambda: wrong if len(got) >= 3 and not healed else None)
    with pytest.raises(CheckpointError, match=message) as told:
        follow(running, ids, got, lambda: None)
    assert "model.safetensors" in told.value.message
    assert got == right[: len(got)]
    assert len(got) >= 3
    healed = True
    assert answer(running, ids) == right, "the engine must go on once the disk does"


@pytest.mark.parametrize("spare", [1, 4])
def test_a_read_that_fails_while_a_prompt_is_read_leaves_a_working_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = offloaded(folder, spare=spare)
    for good in range(0, 45, 5):
        left = iter(range(good))
        break_reads(monkeypatch, lambda left=left: None if next(left, None) is not None else 5)  # type: ignore[misc]
        running.prefix_cache.clear()
        with pytest.raises(CheckpointError):
            follow(running, ids, [], lambda: None)
        monkeypatch.undo()
        assert answer(running, ids) == right


def change(file: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    else:
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size // 2)
            stream.write(b"\x00" * 4096)
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    ("how", "message"), [("truncated", "model.safetensors"), ("overwritten", "changed while in use")]
)
def test_a_file_that_changes_in_mid_answer_is_told_by_name(folder: Path, how: str, message: str) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = offloaded(folder, slots=PER_TOKEN)
    got: list[int] = []
    with pytest.raises(CheckpointError, match=message):
        follow(running, ids, got, lambda: change(folder / "model.safetensors", how) if len(got) == 3 else None)
    assert got == right[: len(got)]


def test_a_file_replaced_by_another_is_still_read_as_it_was(folder: Path, tmp_path: Path) -> None:
    ids, right = prompt(folder), right_answer(folder)
    running = offloaded(folder, slots=PER_TOKEN)
    other = write_checkpoint(
        tmp_path / "other",
        tiny_config(n_routed_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, num_hidden_layers=LAYERS),
        seed=9,
    )
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert answer(running, ids) == right


def test_a_file_cut_before_it_is_opened_for_offload_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    made = plan(machine(0, 64), checkpoint.config, PlanRequest(dtype="float32", expert_slots=4))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        loader.load(checkpoint, device=CPU, dtype=torch.float32, plan=made)
