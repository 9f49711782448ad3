"""Text to ids and back, bytes by bytes."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference import reference_file
from support.tokenizers import BOS, BOS_ID, EOS, EOS_ID, N_TOKENS, tiny_tokenizer, write_tokenizer

from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message
from dslite.runtime.text.tokenizer import StopTexts, StreamDecoder, Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Spellings that stress the code: special tokens, their parts, and text whose merges span characters.
HARD_TEXT = st.lists(TEXT | st.sampled_from([BOS, EOS, "<｜", "▁of▁", "｜>", " the", "\n\n", "你好", "é"])).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def deepseek() -> Tokenizer:
    return Tokenizer.from_folder(reference_file("tokenizer.json").parent)


def test_published_encodings_of_the_real_tokenizer(deepseek: Tokenizer) -> None:
    entries = json.loads(reference_file("vectors/hf-tokenizers-encodings.json").read_text(encoding="utf-8"))["entries"]
    assert len(entries) == 98
    for entry in entries:
        assert deepseek.encode(entry["text"]) == entry["ids"]
        assert deepseek.decode(entry["ids"]) == entry["text"]


def test_published_encodings_of_llama_cpp(deepseek: Tokenizer) -> None:
    joined = reference_file("vectors/llama-cpp-deepseek-llm.inp").read_text(encoding="utf-8")
    rows = reference_file("vectors/llama-cpp-deepseek-llm.out").read_text(encoding="utf-8").splitlines()
    *texts, end = joined.split("\n__ggml_vocab_test__\n")
    assert end == ""
    expected = {text: [int(number) for number in row.split()] for text, row in zip(texts, rows, strict=True)}
    assert len(expected) == 46

    assert {text: deepseek.encode(text) for text in expected} == expected


def test_the_real_vocabulary_has_no_token_behind_the_end_of_sentence(deepseek: Tokenizer) -> None:
    assert deepseek.vocab_size == 100_002
    assert deepseek.special_tokens == {BOS: 100_000, EOS: 100_001}
    assert deepseek.token_bytes(102_399) == b""


def test_special_tokens_of_the_real_tokenizer_are_plain_characters_in_text(deepseek: Tokenizer) -> None:
    ids = deepseek.encode(f"{BOS}Hi{EOS}")

    assert max(ids) < 100_000
    assert deepseek.decode(ids) == f"{BOS}Hi{EOS}"


@given(HARD_TEXT)
def test_text_survives_and_no_special_token_comes_of_it(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)

    assert not {BOS_ID, EOS_ID} & set(ids)
    assert tokenizer.decode(ids) == text


def test_nothing_is_added_to_a_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode("A") == [ord("A")]


def test_nul_bytes_and_a_megabyte_are_text_like_any_other(tokenizer: Tokenizer) -> None:
    text = "x\0y " * (2**20 // 4)

    assert tokenizer.encode(text) == list(text.encode())


@pytest.mark.parametrize(("text", "place"), [("\ud800", 0), ("ab\udc80c", 2), ("😀\udfff", 1)])
def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer, text: str, place: int) -> None:
    with pytest.raises(UsageError, match=rf"lone surrogate \(U\+{ord(text[place]):04X}\) at character {place}"):
        tokenizer.encode(text)


def test_ids_without_a_token_and_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    for token_id in (BOS_ID, EOS_ID, N_TOKENS, 10**6):
        assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.token_text(EOS_ID) == EOS


@given(st.lists(st.integers(0, N_TOKENS + 3), max_size=30))
def test_a_stream_of_any_tokens_gives_the_text_of_all_of_them(tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = StreamDecoder(tokenizer)

    streamed = "".join(map(decoder.push, ids)) + decoder.flush()

    assert streamed == tokenizer.decode(ids)


@given(TEXT, st.data())
def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    """Bytes as tokens of their own (ids 0 to 255) split every character; merges are drawn in between."""
    decoder = StreamDecoder(tokenizer)
    ids = list(text.encode("utf-8")) if data.draw(st.booleans()) else tokenizer.encode(text)
    shown = ""

    for count, token_id in enumerate(ids, 1):
        shown += decoder.push(token_id)
        so_far = b"".join(map(tokenizer.token_bytes, ids[:count]))
        assert shown == so_far.decode("utf-8", errors="ignore"), "all whole characters, and nothing of the next one"
    assert decoder.flush() == ""
    assert shown == text


def test_a_character_that_never_becomes_whole_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push(byte) for byte in "é".encode()[:1]] == [""]
    assert decoder.flush() == "\ufffd"


@given(
    st.text("ab\n", max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_texts_are_found_over_any_split_and_nothing_of_them_is_shown(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    finder = StopTexts(stops)
    shown, stopped = "", False

    for start, end in itertools.pairwise(cuts):
        more, stopped = finder.push(text[start:end])
        shown += more
        # What is shown can never turn out to be the beginning of a stop text that comes first.
        assert text.startswith(shown)
        if stopped:
            seen = text[:end]
            break
        assert not any(stop in shown for stop in stops)
    else:
        seen = text
        shown += finder.flush()

    places = [place for stop in stops if (place := seen.find(stop)) >= 0]
    assert stopped == bool(places)
    assert shown == (seen[: min(places)] if places else text)


def test_what_cannot_begin_a_stop_text_is_shown_at_once() -> None:
    finder = StopTexts(["User:"])

    assert finder.push("Hello Us") == ("Hello ", False)
    assert finder.push("ual") == ("Usual", False)
    assert finder.push(" User") == (" ", False)
    assert finder.flush() == "User"


# Added tokens that are not special, as the coder models have them


FIM = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|EOT|>", "<｜User｜>"]


@pytest.fixture(scope="module")
def own_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One whose length of pieces a test may change."""
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("coder")
    write_tokenizer(folder, added=FIM)
    return Tokenizer.from_folder(folder)


@given(st.lists(TEXT | st.sampled_from([BOS, EOS, *FIM])).map("".join))
def test_no_added_token_comes_of_a_text_special_or_not(tokenizer: Tokenizer, coder: Tokenizer, text: str) -> None:
    assert coder.encode(text) == tokenizer.encode(text), "as if the tokens had not been added"
    assert coder.decode(coder.encode(text)) == text


@given(st.lists(TEXT | st.sampled_from([BOS, EOS, *FIM])))
def test_where_it_is_asked_for_every_added_token_comes_of_its_spelling(coder: Tokenizer, parts: list[str]) -> None:
    text = "".join(parts)

    ids = coder.encode(text, parse_special=True)

    names = {coder.added[name]: name for name in coder.added}
    assert [token for token in ids if token in names] == [
        coder.added[found] for found in re.findall("|".join(map(re.escape, coder.added)), text)
    ]
    assert b"".join(names[token].encode() if token in names else coder.token_bytes(token) for token in ids) == (
        text.encode()
    )


def test_fill_in_the_middle_is_three_tokens_around_text(coder: Tokenizer) -> None:
    begin, hole, end = (N_TOKENS + place for place in range(3))
    ids = coder.encode("<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>", parse_special=True)
    assert ids == [begin, ord("a"), hole, ord("b"), end]
    assert coder.decode(ids) == "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>"


def test_a_template_may_write_added_tokens_that_a_message_may_not(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}<｜User｜>{{ message['content'] }}{% endfor %}<|EOT|>"
    write_tokenizer(tmp_path, added=FIM, chat_template=template)
    tokenizer = Tokenizer.from_folder(tmp_path)

    ids = ChatTemplate(tokenizer).encode([Message("user", "<｜User｜><|EOT|><｜fim▁hole｜>" + EOS)])

    assert [token for token in ids if token >= BOS_ID] == [
        BOS_ID,
        tokenizer.added["<｜User｜>"],
        tokenizer.added["<|EOT|>"],
    ]


# Long texts


def in_one_piece(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer._backend.encode(text, add_special_tokens=False).ids
    return ids


WORDS = [" the", "Assist", "\n", "\n\n", "  ", " ", "é", "你好", "123", "4", "!", "，", "\t", "'s", "\r\n", " x", "9 "]


def long_text(words: list[str], seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(words, k=rng.randrange(800)))


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.integers(0, 2**32), st.integers(1, 200))
def test_a_long_text_has_the_tokens_that_it_has_in_one_piece(
    own_tokenizer: Tokenizer, words: list[str], seed: int, characters: int
) -> None:
    text = long_text(words, seed)
    own_tokenizer.piece_characters = characters
    assert own_tokenizer.encode(text) == in_one_piece(own_tokenizer, text)


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.integers(0, 2**32), st.integers(1, 200))
def test_so_has_one_for_the_real_tokenizer(deepseek: Tokenizer, words: list[str], seed: int, characters: int) -> None:
    text = long_text(words, seed)
    deepseek.piece_characters = characters
    assert deepseek.encode(text) == in_one_piece(deepseek, text)


def test_a_long_text_is_encoded_in_pieces(own_tokenizer: Tokenizer) -> None:
    """What the library holds of a text, 200 bytes a byte, is bounded by the longest piece."""
    own_tokenizer.piece_characters = 1000
    for text in ("one word after another, 3 times. " * 3000, "line\n" * 20_000, "你好，" * 20_000, "12 " * 20_000):
        ends = [0]
        while ends[-1] < len(text):
            ends.append(own_tokenizer._piece_end(text, ends[-1]))
        assert max(end - start for start, end in itertools.pairwise(ends)) <= 1000


def test_a_lone_surrogate_far_inside_is_named_by_its_place(own_tokenizer: Tokenizer) -> None:
    own_tokenizer.piece_characters = 100
    with pytest.raises(UsageError, match=r"U\+D800\) at character 5000,"):
        own_tokenizer.encode("word " * 1000 + "\ud800")


@given(st.lists(st.integers(0, N_TOKENS - 1)))
def test_no_token_has_more_bytes_than_the_longest(coder: Tokenizer, ids: list[int]) -> None:
    assert max((len(coder.token_bytes(token)) for token in ids), default=0) <= coder.bounds.longest
    assert coder.bounds.longest == max(len(name.encode()) for name in [*FIM, BOS, EOS])


def test_the_longest_token_of_the_real_tokenizer(deepseek: Tokenizer) -> None:
    assert deepseek.bounds.longest == max(len(deepseek.token_bytes(token)) for token in range(100_002))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_tokenizer_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    tiny_tokenizer(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)

    with pytest.raises(CheckpointError, match=name) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["chat_template", "bos_token", "eos_token"])
@pytest.mark.parametrize("value", [None, 3, ["x"], {"content": 3}])
def test_a_tokenizer_config_with_odd_values_never_ends_in_another_error(
    tmp_path: Path, key: str, value: object
) -> None:
    tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")

    tokenizer = Tokenizer.from_folder(tmp_path)
    if key == "chat_template":
        with pytest.raises(CheckpointError, match="template"):
            ChatTemplate(tokenizer)
    else:
        assert ChatTemplate(tokenizer).encode([Message("user", "A")])
