"""The prefix cache over its three levels, against a plain model of what each token's latent entry must be."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.checkpoints import tiny_config

from dslite.model.config import ModelConfig
from dslite.runtime.cache.branch_cache import common_prefix
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.cache.prefix_cache import CachedTokens, PrefixCache

CONFIG = ModelConfig.from_dict(tiny_config())
CONTEXT = 400
TURN = 20  # tokens; shorter suffixes than 16 are not kept in host memory


def make_cache() -> LatentKVCache:
    return LatentKVCache(CONFIG, CONTEXT, dtype=torch.float32)


def new_prefix_cache(
    most_tokens: int = CONTEXT, host_bytes: int = 10_000_000, folder: Path | None = None
) -> PrefixCache:
    store = None if folder is None else (lambda: LatentDiskCache(folder, "fingerprint"))
    return PrefixCache(make_cache, most_tokens=most_tokens, host_bytes=host_bytes, open_disk=store)


def right_entries(path: list[int]) -> torch.Tensor:
    """What the entries of a path must be: each depends on every token up to its own. (layers, T, C+R)"""
    values, value = [], 0.0
    for token in path:
        value = (value * 31 + token + 1) % 9973
        values.append(value)
    layers = torch.arange(CONFIG.num_hidden_layers, dtype=torch.float32)[:, None, None] * 10_000
    return layers + torch.tensor(values)[None, :, None].expand(-1, -1, CONFIG.latent_width)


def compute(entry: CachedTokens, path: list[int]) -> int:
    """Compute what an entry lacks of a path; returns how many tokens that was."""
    missing = len(path) - len(entry.ids)
    entry.cache.put(right_entries(path)[:, len(entry.ids) :])
    entry.ids = list(path)
    return missing


def check(entry: CachedTokens) -> None:
    assert entry.cache.length == len(entry.ids)
    assert torch.equal(entry.cache.entries(0, len(entry.ids)), right_entries(entry.ids))


def path_of(turns: list[int]) -> list[int]:
    return [turn for turn in turns for _ in range(TURN)]


def answered(cache: PrefixCache, turns: list[int]) -> int:
    """Compute a path and release it; returns how many tokens were computed."""
    entry = cache.acquire(path_of(turns))
    computed = compute(entry, path_of(turns))
    cache.release(entry)
    return computed


def test_a_continued_path_computes_only_what_is_new_and_copies_nothing() -> None:
    cache = new_prefix_cache()
    answered(cache, [1, 2])
    before = cache.newest
    assert answered(cache, [1, 2, 3]) == TURN
    assert cache.newest is before


def test_a_branch_and_the_way_back_compute_each_turn_once() -> None:
    cache = new_prefix_cache()
    assert answered(cache, [1, 2, 3]) == 3 * TURN
    assert answered(cache, [1, 2, 4]) == TURN
    assert answered(cache, [1, 2, 3]) == 0
    assert answered(cache, [1, 2, 4]) == 0


def test_another_conversation_leaves_a_long_one_where_it_is() -> None:
    cache = new_prefix_cache()
    answered(cache, [1, 2, 3, 4, 5])
    answered(cache, [1, 9])  # a shared system message, little in common
    assert cache.tokens == 7 * TURN
    assert answered(cache, [1, 2, 3, 4, 5]) == 0


def test_a_prefix_that_only_a_running_sequence_holds_is_copied() -> None:
    cache = new_prefix_cache()
    running = cache.acquire(path_of([1, 2]))
    compute(running, path_of([1, 2]))
    other = cache.acquire(path_of([1, 2, 3]), [running])
    assert other.ids == path_of([1, 2])
    check(other)
    check(running)
    assert other.cache is not running.cache


def test_the_device_level_never_holds_more_than_its_tokens_and_evicts_to_the_host() -> None:
    cache = new_prefix_cache(most_tokens=4 * TURN)
    for first in range(6):
        answered(cache, [first, 7, 8])
        assert cache.tokens <= 4 * TURN
    assert answered(cache, [4, 7, 8]) == 0, "evicted from the device, found in host memory"


def test_a_dropped_entry_is_computed_again() -> None:
    cache = new_prefix_cache()
    answered(cache, [1, 2])
    assert cache.evict(drop=True)
    assert not cache.evict(drop=True)
    assert answered(cache, [1, 2]) == 2 * TURN


def test_a_saved_conversation_is_found_after_a_restart(tmp_path: Path) -> None:
    before = new_prefix_cache(folder=tmp_path)
    answered(before, [1, 2])
    before.save("chat")
    after = new_prefix_cache(folder=tmp_path)
    assert after.resume("chat", path_of([1, 2, 3])) == 2 * TURN
    assert answered(after, [1, 2, 3]) == TURN


def test_a_resumed_conversation_is_not_written_again(tmp_path: Path) -> None:
    before = new_prefix_cache(folder=tmp_path)
    answered(before, [1, 2])
    before.save("chat")
    (file,) = tmp_path.glob("*.safetensors")
    after = new_prefix_cache(folder=tmp_path)
    after.resume("chat", path_of([1, 2]))
    file.unlink()
    after.save("chat")
    assert not file.exists()


def test_a_conversation_that_begins_like_another_is_written_for_itself(tmp_path: Path) -> None:
    cache = new_prefix_cache(folder=tmp_path)
    answered(cache, [1])
    cache.save("one")
    assert cache.resume("two", path_of([1])) == TURN  # of the device level: the disk has no "two"
    cache.save("two")
    assert new_prefix_cache(folder=tmp_path).resume("two", path_of([1])) == TURN


SMALL = 8 * TURN  # tokens of the device level in random orders, and of their longest path


class Levels(RuleBasedStateMachine):
    """Sequences that begin, grow, fork, end, are saved and resumed, while memory is short now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.cache = new_prefix_cache(most_tokens=SMALL, host_bytes=200_000, folder=Path(self.folder.name))
        self.running: list[CachedTokens] = []
        self.saved: dict[str, list[int]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    paths = st.lists(st.integers(0, 2), min_size=1, max_size=8)

    @rule(turns=paths, cut=st.integers(0, TURN - 1))
    def begin(self, turns: list[int], cut: int) -> None:
        path = path_of(turns)[cut:]
        entry = self.cache.acquire(path, self.running)
        assert common_prefix(entry.ids, path) == len(entry.ids)
        longest = max((common_prefix(other.ids, path) for other in self.running), default=0)
        assert len(entry.ids) >= longest
        check(entry)
        self.running.append(entry)
        compute(entry, path)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), turns=st.lists(st.integers(0, 2), max_size=2))
    def grow(self, data: st.DataObject, turns: list[int]) -> None:
        entry = data.draw(st.sampled_from(self.running))
        compute(entry, (entry.ids + path_of(turns))[:SMALL])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.running))
        self.running.remove(entry)
        self.cache.release(entry)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.running.remove(data.draw(st.sampled_from(self.running)))

    @rule(drop=st.booleans())
    def evict(self, drop: bool) -> None:
        self.cache.evict(drop=drop)

    @rule(name=st.sampled_from(["one", "two"]))
    def save(self, name: str) -> None:
        self.cache.save(name)
        if self.cache.newest is not None and self.cache.newest.ids:
            self.saved[name] = list(self.cache.newest.ids)

    @rule(name=st.sampled_from(["one", "two"]), turns=st.lists(st.integers(0, 2), max_size=2))
    def resume(self, name: str, turns: list[int]) -> None:
        path = (self.saved.get(name, []) + path_of(turns))[:SMALL]
        if path:
            assert self.cache.resume(name, path) >= len(self.saved.get(name, []))

    @rule()
    def restart(self) -> None:
        self.running.clear()
        self.cache = new_prefix_cache(most_tokens=SMALL, host_bytes=200_000, folder=Path(self.folder.name))

    @invariant()
    def entries_are_those_of_their_tokens(self) -> None:
        for entry in self.running:
            check(entry)
        assert self.cache.tokens <= 8 * TURN or self.cache.tokens == len(
            self.cache.newest.ids if self.cache.newest else []
        )


def test_any_order_of_sequences_leaves_the_entries_of_their_tokens() -> None:
    run_state_machine_as_test(Levels, settings=settings(max_examples=40, stateful_step_count=30))


@pytest.mark.long
def test_any_long_order_of_sequences_leaves_the_entries_of_their_tokens() -> None:
    run_state_machine_as_test(Levels, settings=settings(max_examples=400, stateful_step_count=60))


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8))
def test_with_room_for_all_no_turn_is_computed_twice(walk: list[list[int]]) -> None:
    cache, seen = new_prefix_cache(most_tokens=10_000), {()}
    for turns in walk:
        new = [turns[: end + 1] for end in range(len(turns)) if tuple(turns[: end + 1]) not in seen]
        assert answered(cache, turns) == TURN * len(new)
        seen |= {tuple(part) for part in new}


def with_prompts(folder: Path) -> PrefixCache:
    prompts = LatentDiskCache(folder, "fingerprint")
    return PrefixCache(make_cache, most_tokens=CONTEXT, host_bytes=0, prompts=prompts)


def test_prompts_are_found_by_their_tokens_after_a_restart(tmp_path: Path) -> None:
    before = with_prompts(tmp_path)
    for turns in ([1, 2, 3, 4], [1, 2, 3, 5, 6], [9, 9]):
        answered(before, turns)
    while before.write_prompt():
        pass
    after = with_prompts(tmp_path)
    entry = after.acquire(path_of([1, 2, 3, 5, 7]))
    assert entry.ids == path_of([1, 2, 3, 5])
    check(entry)
    assert after.acquire(path_of([9, 9])).ids == [], "too short to be worth a file"


def test_a_prompt_is_written_once_and_again_when_it_has_grown(tmp_path: Path) -> None:
    cache = with_prompts(tmp_path)
    answered(cache, [1, 2, 3, 4])
    assert cache.write_prompt()
    assert not cache.write_prompt()
    answered(cache, [1, 2, 3, 4, 5])
    assert cache.write_prompt()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_without_room_on_disk_no_prompt_is_written(tmp_path: Path) -> None:
    cache = new_prefix_cache(folder=tmp_path)
    answered(cache, [1, 2, 3, 4])
    assert not cache.write_prompt()
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_a_prompt_is_computed_again(tmp_path: Path) -> None:
    before = with_prompts(tmp_path)
    answered(before, [1, 2, 3, 4])
    assert before.write_prompt()
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5000])
    after = with_prompts(tmp_path)
    assert answered(after, [1, 2, 3, 4]) == 4 * TURN
