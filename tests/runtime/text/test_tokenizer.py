"""Text to ids and back, bytes by bytes."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.reference import reference_file
from support.tokenizers import BOS, BOS_ID, EOS, EOS_ID, N_TOKENS, tiny_tokenizer

from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.text.chat_template import ChatTemplate, Message
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
