"""One line of a batch never touches another: whatever is wrong with it is said in its place."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.cli_process import Dslite
from support.scripted_server import HANG, ScriptedServer, delta, events

from dslite.app.completion.batch import complete_batch
from dslite.app.completion.output import OutputOptions
from dslite.app.completion.protocol import Answer, RequestSource
from dslite.app.terminal.line_reader import LineReader
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done, Token
from dslite.runtime.text.message import Message

GOOD = b'{"prompt": "hello", "id": "good"}'
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"prompt":"x","system":5}', "system is 5; it must be a text"),
        (b'{"prompt":"x","system":["a"]}', "system is ['a']"),
        (b'{"prompt":"x","profile":7}', "profile is 7"),
        (b'{"prompt":"x","profile":"absent"}', "absent"),
        (b'{"prompt":"x","model":1}', "model is 1"),
        (b'{"prompt":"x","model":"chat"}', "the model 'chat' is not the one that is loaded"),
        (b'{"prompt":"x","model":"/no/such/folder"}', "is not the one that is loaded"),
        (b'{"prompt":"x","temprature":1}', "'temprature' is unknown; did you mean 'temperature'?"),
        (b'{"prompt":"x","temp":1}', "'temp' is unknown; did you mean 'temperature'?"),
        (b'{"prompt":"x","max-tokens":1}', "'max-tokens' is unknown; did you mean 'max_tokens'?"),
        (b'{"prompt":"x","n":1}', "'n' is unknown"),
        (b'{"prompt":"x","nosuch":1}', "'nosuch' is unknown; known: id, prompt"),
        (b'{"promt":"x"}', "did you mean 'prompt'?"),
        (b'{"prompt":"x","temperature":"0"}', "temperature is '0'"),
        (b'{"prompt":"x","temperature":true}', "temperature is True"),
        (b'{"prompt":"x","temperature":[1]}', "temperature is [1]"),
        (b'{"prompt":"x","temperature":-1}', "from 0 to 2"),
        (b'{"prompt":"x","temperature":1e999}', "from 0 to 2"),
        (b'{"prompt":"x","top_p":0}', "top_p is 0"),
        (b'{"prompt":"x","top_k":1.5}', "top_k is 1.5"),
        (b'{"prompt":"x","max_tokens":-5}', "max_tokens is -5"),
        (b'{"prompt":"x","stop":5}', "stop is 5"),
        (b'{"prompt":"x","stop":[5]}', "stop is [5]"),
        (b'{"prompt":"x","stop_token_ids":5}', "stop_token_ids is 5; it must be a list"),
        (b'{"prompt":"x","stop_token_ids":[true]}', "stop_token_ids is [True]"),
        (b'{"prompt":"x","stop_token_ids":[1.0]}', "stop_token_ids is [1.0]"),
        (b'{"prompt":"x","stop_token_ids":[-1]}', "stop_token_ids has -1"),
        (b'{"prompt":"x","stop_token_ids":[99999]}', "99999, which no token has"),
        (b'{"prompt":"x","stop_token_id":[1]}', "did you mean 'stop_token_ids'?"),
        (b'{"prompt":"x","temperature":NaN}', "NaN is not a JSON number"),
        (b'{"prompt":"x","seed":Infinity}', "Infinity is not a JSON number"),
        (b'{"prompt":"x","prompt":"y"}', "'prompt' is given twice"),
        (b'{"prompt":"x","seed":' + b"9" * 5000 + b"}", "not valid JSON"),
        (DEEP, "not valid JSON"),
        (b'{"prompt":"caf\xe9"}', "not valid UTF-8 at byte 14"),
        (b"\xff", "not valid UTF-8"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"prompt":5}', "prompt"),
        (b'{"prompt":null}', "prompt"),
        (b'{"messages":[]}', "messages"),
        (b'{"messages":{}}', "messages"),
        (b'{"messages":[5]}', ""),
        (b'{"messages":[{"role":"user"}]}', ""),
        (b'{"messages":[{"role":"user","content":5}]}', ""),
        (b'{"messages":[{"role":5,"content":"x"}]}', ""),
        (b'{"prompt":"\\ud800"}', "surrogate"),
        (json.dumps({"prompt": "x" * 1_000_000}).encode(), "tokens"),
    ],
)
def test_a_wrong_line_has_its_error_and_the_others_are_answered(
    dslite: Dslite, greeter: Path, line: bytes, fault: str
) -> None:
    stdin = b"\r\n".join([GOOD, line, b"  ", GOOD])
    result = dslite("complete", "-m", str(greeter), "--batch", "-", "--ctx-size", "128", stdin=stdin)
    assert result.code == 0
    first, wrong, last = result.lines
    assert [first["text"], last["text"]] == ["hi", "hi"]
    assert set(wrong) == {"id", "error"}
    assert wrong["id"] == 2
    assert isinstance(wrong["error"], str)
    assert fault in wrong["error"]
    assert "1 of 3 lines failed" in result.err.decode()


def test_a_line_may_name_the_model_that_is_loaded(dslite: Dslite, greeter: Path) -> None:
    line = json.dumps({"prompt": "hello", "model": str(greeter), "system": None, "profile": None, "temperature": None})
    result = dslite("complete", "-m", str(greeter), "--batch", "-", stdin=line.encode())
    assert result.json["text"] == "hi"


class Backend:
    """A backend over a script: a text is answered by itself, an exception is raised where it stands."""

    name = key = "scripted"
    weights: str | None = "bfloat16"
    load_s = 0.0
    process = None
    ENDS: ClassVar[Mapping[str, BaseException]] = {
        "type": TypeError("of a request"),
        "memory": MemoryError(),
        "usage": DsliteError("known"),
    }

    def serves(self, model: str) -> bool:
        return True

    def request(self, prompt: str | Sequence[Message], overrides: Mapping[str, Any] | None = None) -> Any:
        assert isinstance(prompt, str)
        if prompt in self.ENDS:
            raise self.ENDS[prompt]
        return prompt

    def run_batch(
        self, requests: RequestSource[Any], cancel: threading.Event
    ) -> Iterator[tuple[int, Answer | DsliteError]]:
        while (taken := requests.take(wait=True)) is not None:
            key, text = taken
            if text == "lost":
                continue
            answer = Answer()
            answer.add(Token(None, text, text))
            answer.add(Done("stop", text, (), 1, 0))
            yield key, answer

    def memory(self) -> Mapping[str, int | None]:
        return {}

    experts = memory

    def check_fits(self, request: Any) -> None: ...

    def resume(self, conversation: str, request: Any) -> None: ...

    def keep(self, conversation: str) -> None: ...

    def stream(self, request: Any, cancel: threading.Event) -> Iterator[Token | Done]:
        raise NotImplementedError

    @property
    def params(self) -> SamplingParams:
        return SamplingParams()


def test_every_line_has_a_result_whatever_a_backend_raises_or_loses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["one", "type", "two", "memory", "usage", "lost", "three"]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    code = complete_batch(Backend(), LineReader.open(str(file), "the batch"), OutputOptions("text"), Interruption())
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0
    assert [line["id"] for line in shown] == [1, 2, 3, 4, 5, 6, 7]
    assert [line.get("text") for line in shown] == ["one", None, "two", None, None, None, "three"]
    assert [line["error"].split(":")[0] for line in shown if "error" in line] == [
        "unexpected TypeError",
        "unexpected MemoryError",
        "known",
        "no answer came",
    ]


def remote(dslite: Dslite, server: ScriptedServer, *args: str) -> list[str]:
    return ["complete", "--endpoint", server.url, "-m", "x", "--batch", "-", *args]


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": "x"}]},
        {"choices": [{"delta": {"content": {"a": 1}}}]},
        {"choices": {"a": 1}},
        {"choices": [{"delta": {}, "logprobs": {"content": [5]}}]},
        {"choices": [{"delta": {}, "logprobs": {"tokens": 5}}]},
        {"usage": 5, "choices": [7]},
        [],
        5,
    ],
)
def test_a_stream_of_any_shape_ends_its_line_and_the_others_are_answered(dslite: Dslite, chunk: Any) -> None:
    odd = [f"data: {json.dumps(chunk)}\n\n"]
    good = events(delta("fine"), delta(None, "stop"), "data: [DONE]\n\n")
    with ScriptedServer([events(*odd), good]) as server:
        lines = b'{"prompt": "a"}\n{"prompt": "b"}\n'
        result = dslite(*remote(dslite, server), stdin=lines)
    assert result.code == 0
    assert sorted(line["id"] for line in result.lines) == [1, 2]
    assert sum(line.get("text") == "fine" for line in result.lines) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_batch_over_a_silent_server_with_what_came(
    dslite: Dslite, number: signal.Signals, code: int
) -> None:
    with ScriptedServer([[*events(delta("came"), whole=False), HANG]]) as server:
        running = dslite.start(*remote(dslite, server))
        running.send(b'{"prompt": "a", "id": "only"}\n')
        while not server.asked:
            os.sched_yield()
        running.kill(number)
        result = running.wait()
        assert server.left.wait(60)
    assert result.code == code
    (line,) = result.lines
    assert line["id"] == "only"
    assert line["finish_reason"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_local_batch_with_a_result_for_every_line_that_was_taken(
    dslite: Dslite, babbler: Path, number: signal.Signals, code: int
) -> None:
    running = dslite.start("complete", "-m", str(babbler), "--batch", "-")
    short = b'{"prompt": "x", "max_tokens": 2}\n'
    running.send(short + b"not json\n" + b'{"prompt": "x"}\n' * 400)
    running.read(10)  # the first line is answered: the others are being decoded, wait, or were not taken yet
    running.kill(number)
    result = running.wait()
    assert result.code == code
    assert [line["id"] for line in result.lines] == list(range(1, len(result.lines) + 1))
    assert 17 <= len(result.lines) < 100
    first, wrong, *others = result.lines
    assert first["finish_reason"] == "length"
    assert "not valid JSON" in str(wrong["error"])
    stopped = [line for line in others if line.get("finish_reason") == "interrupted"]
    waiting = [line for line in others if "interrupted before" in str(line.get("error"))]
    assert stopped
    assert len(stopped) + len(waiting) == len(others)
    assert f"stopped after {len(result.lines)} lines; --resume answers the rest" in result.err.decode()
