"""Values that a chat sets: the shape of an answer among them."""

import re
import threading
from pathlib import Path

import pytest

from dslite.app.chat.settings import ChatSettings
from dslite.app.settings.profiles import Profile
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done
from dslite.runtime.text.message import Message


def test_a_shape_is_set_from_a_file_replaces_another_and_is_taken_away(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_text('{ "type": "object" }')
    settings = ChatSettings("demo", profile=Profile("p", sampling={"grammar": 'start: "x"', "seed": 3}))
    settings.set("json-schema", str(file))
    assert dict(settings.sampling()) == {"seed": 3, "json_schema": '{"type":"object"}'}
    settings.set("regex", "a+ b")
    assert dict(settings.sampling()) == {"seed": 3, "regex": "a+ b"}
    settings.set("regex", "none")
    assert settings.sampling()["grammar"] == 'start: "x"'
    with pytest.raises(UsageError, match="cannot be read"):
        settings.set("grammar", str(tmp_path / "nowhere"))


def test_answers_of_a_chat_have_the_shape_and_are_continued_in_it(demo_engine: Engine) -> None:
    backend = LocalChatBackend(demo_engine, "demo")
    asked = [Message("user", "How do I save a profile?")]
    params = SamplingParams(regex="[a-c]{4}", seed=1)

    def last(messages: list[Message], params: SamplingParams, **more: bool) -> Done:
        *_, done = backend.reply(messages, params, threading.Event(), **more)  # type: ignore[arg-type]
        assert isinstance(done, Done)
        return done

    assert re.fullmatch("[a-c]{4}", last(asked, params).text)
    cut = last(asked, SamplingParams(regex="[a-c]{4}", seed=1, max_tokens=1))
    assert cut.finish_reason == "length"
    answer = Message("assistant", cut.text, cut.token_ids)
    rest = last([*asked, answer], params, continue_final_message=True)
    assert re.fullmatch("[a-c]{4}", cut.text + rest.text)
    with pytest.raises(UsageError, match="does not follow"):
        last([*asked, Message("assistant", "xyz")], params, continue_final_message=True)
