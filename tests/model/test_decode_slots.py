"""Recorded steps with experts in slots, interpreted on the CPU: torch's answers, whatever is in the slots or fails."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not here")
from support.checkpoints import load_model, tiny_config, write_checkpoint
from support.forward import new_cache, random_ids, read, read_batch
from support.interpreted import GraphRecorder, interpret
from support.machines import machine

from dslite.model.decode_buffers import DecodeBuffers
from dslite.model.errors import DsliteError
from dslite.model.kernels import gpu
from dslite.model.transformer import Transformer
from dslite.runtime.device import Launch
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights import slot_step
from dslite.runtime.weights.admission import RecentUses
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.loader import expert_cache, load
from dslite.runtime.weights.slot_step import SlotStep
from dslite.runtime.weights.sources import HostSource

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here")

CPU = torch.device("cpu")
VOCABULARY, EXPERTS, CHOSEN, SLOTS = 160, 10, 3, 5
TOLERANCE = 2e-5  # of log-probabilities, against torch's layers
ORACLE_TOLERANCE = 5e-5  # the same, against transformers
MISSES = ("fetch", "compute")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(monkeypatch)


def config(**more: Any) -> dict[str, Any]:
    return tiny_config(vocab_size=VOCABULARY, n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), config(), std=0.14, tokenizer=False)


def hybrid(folder: Path, miss: str, recorder: GraphRecorder, *, slots: int = SLOTS, spare: int = 2) -> Transformer:
    """The network with some experts in slots over host memory."""
    checkpoint = Checkpoint.open(folder)
    request = PlanRequest("float32", context=64, expert_slots=CHOSEN, miss=miss)  # type: ignore[arg-type]
    made = replace(plan(machine(1), checkpoint.config, request), embedding_on_device=False)
    made = replace(made, slots=slots, spare=spare, source="host", compute_below=1000)
    return load(checkpoint, device=CPU, dtype=torch.float32, plan=made, backend=recorder)


def cache_of(model: Transformer) -> ExpertCache:
    cache = expert_cache(model)
    assert cache is not None
    return cache


@contextmanager
def torchs_layers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "usable", lambda device: False)
        yield


def difference(model: Transformer, plain: Transformer, count: int = 1, steps: int = 5) -> float:
    """The largest of the log-probabilities of some steps of `count` sequences, which differ in length."""
    prompts = [random_ids(3 + 5 * place, VOCABULARY, seed=place) for place in range(count)]
    ours, theirs = ([new_cache(model, 64) for _ in prompts] for _ in range(2))
    greatest = 0.0
    with torchs_layers():
        for own, other, prompt in zip(ours, theirs, prompts, strict=True):
            read(plain, own, prompt)
            read(plain, other, prompt)
    for step in range(steps):
        tokens = random_ids(count, VOCABULARY, seed=100 + step)
        batch = read_batch(model, [(cache, [token]) for cache, token in zip(ours, tokens, strict=True)])
        with torchs_layers():
            expected = read_batch(plain, [(cache, [token]) for cache, token in zip(theirs, tokens, strict=True)])
        greatest = max(greatest, float((torch.cat(batch) - torch.cat(expected)).abs().max()))
    return greatest


def recorded(model: Transformer) -> bool:
    """Whether steps are recorded still."""
    assert model.step_recorder is not None
    return bool(model.step_recorder.segments)


SHAPES: dict[str, dict[str, Any]] = {
    "lite-like": {},
    "no dense layer, scaled": {"first_k_dense_replace": 0, "routed_scaling_factor": 2.5},
    "one shared expert, odd sizes": {"n_shared_experts": 1, "hidden_size": 88, "moe_intermediate_size": 22},
    "compressed queries": {"q_lora_rank": 24},
}


@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step_is_transformers_within_5e_5(tmp_path: Path, shape: dict[str, Any], miss: str) -> None:
    from support.oracle import Oracle

    folder = write_checkpoint(tmp_path, config(**shape), std=0.14, tokenizer=False)
    model = hybrid(folder, miss, GraphRecorder())
    ids = random_ids(12, VOCABULARY, seed=4)
    expected = Oracle(folder).logprobs(ids)
    cache = new_cache(model, 64)
    with torchs_layers():
        read(model, cache, ids[:6])
    for place in range(6, 12):
        assert (read(model, cache, [ids[place]])[0] - expected[place]).abs().max() <= ORACLE_TOLERANCE
    stats = cache_of(model).stats
    assert recorded(model)
    assert stats.hits > 0
    assert stats.misses > 0
    assert (stats.computed > 0) == (miss == "compute")


@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_sequences_decode_as_by_torchs_layers(folder: Path, miss: str, count: int) -> None:
    """Three and five are filled up to four and eight with copies of the first, whose misses are computed once."""
    model = hybrid(folder, miss, GraphRecorder())
    assert difference(model, load_model(folder), count) <= TOLERANCE
    assert recorded(model)


@pytest.mark.parametrize("miss", MISSES)
def test_without_shared_experts_the_table_has_none(tmp_path: Path, miss: str) -> None:
    folder = write_checkpoint(tmp_path, config(n_shared_experts=None), std=0.14, tokenizer=False)
    assert difference(hybrid(folder, miss, GraphRecorder()), load_model(folder)) <= TOLERANCE


@pytest.mark.parametrize("spare", [1, 2, 6])
def test_misses_are_fetched_through_any_number_of_buffers(folder: Path, spare: int) -> None:
    model = hybrid(folder, "fetch", GraphRecorder(), slots=CHOSEN, spare=spare)
    assert difference(model, load_model(folder), count=3) <= TOLERANCE
    assert recorded(model)


def test_all_in_slots_needs_no_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = GraphRecorder()
    model = hybrid(folder, "fetch", recorder, slots=EXPERTS)
    plain = load_model(folder)
    for seed in range(3):  # brings every expert
        with torchs_layers():
            read(model, new_cache(model, 64), random_ids(60, VOCABULARY, seed=seed))
    assert all(len(cache_of(model).resident(layer)) == EXPERTS for layer in cache_of(model).layers)
    monkeypatch.setattr(ExpertCache, "load", lambda *_: pytest.fail("every expert is in a slot"))
    puts: list[int] = []
    put = recorder.put
    monkeypatch.setattr(recorder, "put", lambda target, values: (puts.append(len(values)), put(target, values)))
    assert difference(model, plain, steps=4) <= TOLERANCE
    assert puts.count(EXPERTS) == 2  # the tables of two layers, once
    # Two routers, the hits behind each, and the last sum.
    assert (recorder.recorded, recorder.replayed) == (5, 15)


def test_what_is_in_the_slots_leaves_no_trace_in_a_recorded_step(folder: Path) -> None:
    model = hybrid(folder, "fetch", GraphRecorder())
    prompt = random_ids(9, VOCABULARY)

    def answer() -> Tensor:
        cache = new_cache(model, 64)
        return torch.cat([read(model, cache, [token]) for token in prompt])

    cold = answer()
    for seed in range(3):
        read(model, new_cache(model, 64), random_ids(7, VOCABULARY, seed=seed))
        assert torch.equal(answer(), cold)


@pytest.mark.parametrize("miss", MISSES)
def test_a_slot_given_back_is_addressed_no_more(folder: Path, miss: str) -> None:
    model, plain = hybrid(folder, miss, GraphRecorder()), load_model(folder)
    assert difference(model, plain) <= TOLERANCE
    while cache_of(model).give_back():
        assert difference(model, plain, steps=3) <= TOLERANCE
    assert cache_of(model).slots == CHOSEN


def keep_the_first_table(step: SlotStep, table: Tensor) -> None:
    """The mistake of a table that is written once, while the host takes it for what the slots hold."""
    if step._table is not table:
        WRITE_TABLE(step, table)
    step._written = {expert: one.buffer for expert, one in step._cache.resident(step._layer).items()}


def forget_evictions(step: SlotStep, table: Tensor) -> None:
    """The mistake of writing only the lines of new experts: evicted ones stay, as the bytes of others."""
    old = table.clone()
    WRITE_TABLE(step, table)
    gone = (table[:, 0] == 0) & (old[:, 0] != 0)
    table[gone] = old[gone]


WRITE_TABLE = SlotStep._write_table


@pytest.mark.parametrize("mistake", [keep_the_first_table, forget_evictions])
def test_a_stale_line_of_the_table_shows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[SlotStep, Tensor], None]
) -> None:
    """The host computes misses, and every one gets the slot of another expert."""
    monkeypatch.setattr(RecentUses, "worth_replacing", lambda *_: True)
    plain = load_model(folder)
    assert difference(hybrid(folder, "compute", GraphRecorder(), slots=CHOSEN), plain) <= TOLERANCE
    monkeypatch.setattr(SlotStep, "_write_table", mistake)
    wrong = difference(hybrid(folder, "compute", GraphRecorder(), slots=CHOSEN, spare=1), plain, steps=12)
    assert not wrong <= 100 * TOLERANCE  # not a number where memory is read that was never written


def test_an_expert_that_has_moved_is_found_at_its_new_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is compared with the slots by their buffers: the same expert in another one is another line."""
    written: list[Tensor] = []
    monkeypatch.setattr(slot_step, "addresses", lambda *args: written.append(ADDRESSES(*args)) or written[-1])
    model = hybrid(folder, "fetch", GraphRecorder())
    layer = cache_of(model).layers[0]
    step = next(one.mlp.experts for one in model.layers if one.index == layer)._step  # type: ignore[union-attr]
    read(model, new_cache(model, 8), [3])
    table = torch.zeros(EXPERTS, 4, dtype=torch.int64)
    step._write_table(table)
    resident = cache_of(model).resident(layer)
    expert, one = next(iter(resident.items()))
    number = cache_of(model)._free[0]
    moved = cache_of(model).source._form.views(cache_of(model).arena.buffer(number))  # type: ignore[attr-defined]
    resident[expert] = replace(one, buffer=number, mlp=moved)
    step._write_table(table)
    assert int(table[expert, 0]) == moved.tensors[0].data_ptr()


ADDRESSES = slot_step.addresses


class Failing(GraphRecorder):
    """Fails at the `at`th call of one of its functions from when `armed`."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__()
        self._what, self._left, self.armed, self.failed = what, at, False, False

    def _maybe(self, what: str) -> None:
        if self.armed and what == self._what:
            self._left -= 1
            if self._left == 0:
                self.failed = True
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def put(self, target: Tensor, values: Tensor) -> None:
        self._maybe("put")
        super().put(target, values)

    def bring(self, ids: Tensor, others: Any = ()) -> Any:
        self._maybe("bring")
        brought = super().bring(ids, others)

        def wait() -> Any:
            self._maybe("brought")
            return brought()

        return wait

    def record(self, launch: Launch) -> Launch:
        self._maybe("record")
        replay = super().record(launch)

        def failing() -> None:
            self._maybe("replay")
            replay()

        return failing


@pytest.mark.parametrize("miss", MISSES)
@pytest.mark.parametrize(
    ("what", "at"), [("put", 3), ("put", 7), ("bring", 2), ("brought", 3), ("record", 4), ("replay", 5)]
)
def test_whatever_fails_in_a_step_torchs_layers_compute_it_and_all_further_ones(
    folder: Path, miss: str, what: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Failing(what, at)
    model = hybrid(folder, miss, recorder)
    recorder.armed = True
    assert difference(model, load_model(folder)) <= TOLERANCE
    assert recorder.failed
    assert not recorded(model)
    assert ["recorded steps are switched off" in record.message for record in caplog.records].count(True) == 1


@pytest.mark.parametrize("when", [1, 2, 4])
def test_a_kernel_that_fails_for_fetched_experts_costs_no_buffer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    launched: list[bool] = []
    launch = DecodeBuffers.launch_slots

    def failing(self: DecodeBuffers, index: int, tokens: int, *, fetched: bool) -> None:
        launched.append(fetched)
        if fetched and launched.count(True) == when:
            raise RuntimeError("Triton Error [CUDA]: out of resources")
        launch(self, index, tokens, fetched=fetched)

    monkeypatch.setattr(DecodeBuffers, "launch_slots", failing)
    model = hybrid(folder, "fetch", GraphRecorder())
    cache = cache_of(model)
    assert difference(model, load_model(folder)) <= TOLERANCE
    assert launched.count(True) == when
    assert not recorded(model)
    cache.cancel_all()
    assert len(cache._free) + sum(len(cache.resident(layer)) for layer in cache.layers) == len(cache.arena.buffers)


def test_a_checkpoint_that_cannot_be_read_is_said_and_leaves_the_recording(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hybrid(folder, "fetch", GraphRecorder())
    read(model, new_cache(model, 8), [1])
    fetch = HostSource.fetch

    def damaged(*_: Any) -> Any:
        raise DsliteError("the file is damaged", "load it again")

    monkeypatch.setattr(HostSource, "fetch", damaged)
    with pytest.raises(DsliteError, match="damaged"):
        difference(model, load_model(folder), steps=12)
    monkeypatch.setattr(HostSource, "fetch", fetch)
    assert difference(model, load_model(folder)) <= TOLERANCE
    assert recorded(model)


@pytest.mark.parametrize("miss", MISSES)
def test_slots_that_no_kernel_reads_are_computed_between_recordings(
    folder: Path, monkeypatch: pytest.MonkeyPatch, miss: str
) -> None:
    """As quantized ones: attention of each layer is recorded, torch computes the experts."""
    monkeypatch.setattr(HostSource, "plain", False)
    recorder = GraphRecorder()
    model = hybrid(folder, miss, recorder)
    assert difference(model, load_model(folder), steps=3) <= TOLERANCE
    # The dense layer and the first attention, the second attention, and nothing behind the last experts.
    assert (recorder.recorded, recorder.replayed) == (2, 4)
