"""--endpoint: chat and complete over `dslite serve`, and over a server that breaks."""

import json
import signal

import pytest
from support.cli_process import Dslite
from support.scripted_server import HANG, HEAD, ScriptedServer, delta, events, refusal
from support.serving import Server

QUESTION = "How do I save a profile?"
LOCAL = ("-m", "demo", "--dtype", "float32", "-t", "0")


def test_complete_over_a_server_prints_what_complete_prints(dslite: Dslite, demo_server: Server) -> None:
    inside = dslite("complete", *LOCAL, QUESTION, "--json").json
    over = dslite("complete", "--endpoint", demo_server.url, "-t", "0", QUESTION, "--json").json
    for key in ("text", "model", "finish_reason", "prompt_tokens"):
        assert over[key] == inside[key], key
    assert isinstance(over["session"], str)
    assert over["memory"] == dict.fromkeys(inside["memory"])  # type: ignore[call-overload]
    assert over["experts"] == dict.fromkeys(inside["experts"])  # type: ignore[call-overload]
    assert {token["id"] for token in over["tokens"]} == {None}  # type: ignore[attr-defined]


def test_a_conversation_goes_on_over_a_server(dslite: Dslite, demo_server: Server) -> None:
    first = dslite("complete", "--endpoint", demo_server.url, "-t", "0", QUESTION, "--json").json
    second = dslite("complete", "--endpoint", demo_server.url, "-t", "0", "-c", "And then?", "--json").json
    assert second["session"] == first["session"]
    alone = dslite("complete", "--endpoint", demo_server.url, "-t", "0", "And then?", "--json").json
    assert second["prompt_tokens"] > alone["prompt_tokens"] + 10  # type: ignore[operator]
    export = json.loads(dslite("session", "export", str(first["session"]), "-o", "json").out)
    assert [message["content"] for message in export["messages"]][:2] == [QUESTION, first["text"]]


def test_raw_text_and_a_batch_go_over_a_server(dslite: Dslite, demo_server: Server) -> None:
    raw = ("--raw", "-n", "5", "-t", "0", "How do I")
    inside = dslite("complete", "-m", "demo", "--dtype", "float32", *raw)
    assert dslite("complete", "--endpoint", demo_server.url, *raw).out == inside.out
    lines = "".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate([QUESTION, "", QUESTION]))
    batch = dslite("complete", "--endpoint", demo_server.url, "-t", "0", "--batch", "-", stdin=lines.encode())
    first, wrong, last = batch.lines
    assert first["text"] == last["text"] == dslite("complete", *LOCAL, QUESTION).text.rstrip("\n")
    assert (wrong["id"], "error" in wrong) == (1, True)


def test_a_lost_connection_keeps_what_came(dslite: Dslite) -> None:
    broken = events(delta("so "), delta("far"), whole=False)
    with ScriptedServer([broken]) as server:
        result = dslite("complete", "--endpoint", server.url, "-m", "m", "hello")
    assert (result.code, result.text) == (1, "so far\n")
    assert b"was lost in the middle of the answer: what came is kept" in result.err
    listed = json.loads(dslite("session", "list", "-o", "json").out)
    export = json.loads(dslite("session", "export", listed[0]["id"], "-o", "json").out)
    assert export["messages"][-1]["content"] == "so far"
    assert export["messages"][-1]["finish_reason"] == "interrupted"


def test_a_chat_goes_on_where_the_connection_broke(dslite: Dslite) -> None:
    broken = events(delta(" so "), delta("far"), whole=False)
    rest = events(delta(", so good", "stop"), "data: [DONE]\n\n")
    with ScriptedServer([broken, rest]) as server:
        chat = ("chat", "--plain", "--endpoint", server.url, "-m", "m", "--system", "Be brief.")
        result = dslite(*chat, stdin=b"hello\n/continue\n")
    assert result.code == 0, result.err
    assert "so far\n, so good" in result.text
    assert b"/continue in a chat goes on" in result.err
    first, second = (json.loads(asked.partition(b"\r\n\r\n")[2]) for asked in server.asked)
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert second["messages"][-1] == {"role": "assistant", "content": "so far"}
    assert second["continue_final_message"] is True


def test_the_key_comes_from_the_environment_alone(dslite: Dslite) -> None:
    with ScriptedServer([events(delta("x", "stop"), "data: [DONE]\n\n")]) as server:
        endpoint = ("--endpoint", server.url, "-m", "m", "--endpoint-key-env")
        missing = dslite("complete", *endpoint, "NO_KEY_HERE", "hello")
        assert (missing.code, b"NO_KEY_HERE" in missing.err) == (2, True)
        result = dslite("complete", *endpoint, "THE_KEY", "hello", "--debug", env={"THE_KEY": "k3y"})
    assert result.out == b"x\n"
    assert b"k3y" not in result.out + result.err
    assert b"Bearer k3y" in server.asked[0]
    assert not [file for file in dslite.folder.rglob("*") if file.is_file() and b"k3y" in file.read_bytes()]


def test_a_server_that_is_not_there_is_exit_3(dslite: Dslite) -> None:
    result = dslite("complete", "--endpoint", "http://127.0.0.1:9/v1", "hello")
    assert (result.code, result.out) == (3, b"")
    assert b"cannot be reached" in result.err


SOCKS = {"ALL_PROXY": "socks5://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("url", "env", "code", "words"),
    [
        ("http://127.0.0.1:1/v1", SOCKS, 3, b"connection refused"),
        ("http://[::1]:1/v1", {"HTTP_PROXY": "http://127.0.0.1:2"}, 3, b"cannot be reached"),
        ("http://10.255.255.1/v1", SOCKS, 3, b"the proxy that ALL_PROXY names"),
        ("http://10.255.255.1/v1", {"http_proxy": "http://127.0.0.1:1"}, 3, b"through the proxy that http_proxy names"),
        ("http://10.255.255.1/v1", {"HTTPS_PROXY": "nonsense://", **SOCKS}, 3, b"_PROXY names"),
        ("http://127.0.0.1:port/v1", {}, 2, b"--endpoint is not the address of a server"),
        ("http://127.0.0.1:99999/v1", {}, 2, b"--endpoint is not the address of a server"),
        ("http://[::1/v1", {}, 2, b"--endpoint is not the address of a server"),
        ("http://a..b/v1", {}, 2, b"--endpoint is not the address of a server"),
        (f"http://{'a' * 64}.example/v1", {}, 2, b"--endpoint is not the address of a server"),
        ("https://127.0.0.1:1/v1", {"SSL_CERT_FILE": "/no/such/file"}, 3, b"SSL_CERT_FILE"),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_what_cannot_be_connected_is_an_error_with_a_remedy(
    dslite: Dslite, url: str, env: dict[str, str], code: int, words: bytes, batch: bool
) -> None:
    asked = ("--batch", "-") if batch else ("hi",)
    result = dslite("complete", "--endpoint", url, "-m", "x", *asked, stdin=b'{"prompt": "hi"}\n', env=env)
    if batch and code == 3:
        (line,) = result.lines
        assert words in json.dumps(line).encode()
        return
    assert (result.code, result.out) == (code, b"")
    assert words in result.err
    assert len(result.err.splitlines()) == 2  # the fact and the remedy


def test_a_proxy_gets_nothing_that_is_meant_for_this_machine(dslite: Dslite) -> None:
    with ScriptedServer([[HEAD]]) as proxy, ScriptedServer([events(delta("yes", "stop"))]) as server:
        env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), proxy.url.removesuffix("/v1"))
        result = dslite("complete", "--endpoint", server.url, "-m", "m", "hi", env=env)
    assert (result.text, proxy.asked) == ("yes\n", [])


ODD = [
    events(delta("so"), {"error": {"message": "boom"}}),
    events(delta("so"), "data: nonsense\n\n"),
    events(delta("so"), whole=False),
    refusal(500, "<html>"),
    refusal(400, '{"error": {"type": "exceed_context_size_error", "message": "too long", "n_ctx": 5}}'),
    [b"nonsense\r\n\r\n"],
]


def test_a_line_with_an_odd_answer_fails_alone(dslite: Dslite) -> None:
    good = events({"choices": [{"delta": "x"}]}, delta(None, "stop"), "data: [DONE]\n\n")
    with ScriptedServer([good, *ODD, good]) as server:
        lines = b'{"prompt": "hi"}\n' * (len(ODD) + 2)
        result = dslite("complete", "--endpoint", server.url, "-m", "m", "--batch", "-", stdin=lines)
    assert len(result.lines) == len(ODD) + 2
    assert [line["text"] for line in result.lines if "error" not in line] == ["x", "x"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("said", [[HANG], [HEAD, HANG]])
@pytest.mark.parametrize("batch", [False, True])
def test_a_signal_ends_the_wait_for_a_silent_server(
    dslite: Dslite, number: signal.Signals, code: int, said: list[bytes], batch: bool
) -> None:
    asked = ("--batch", "-") if batch else ("hi",)
    with ScriptedServer([said]) as server:
        running = dslite.start("complete", "--endpoint", server.url, "-m", "m", *asked)
        running.send(b'{"prompt": "hi"}\n' if batch else b"")
        assert server.received.wait(60)
        running.kill(number)
        assert running.wait().code == code
        assert server.left.wait(60)


def test_a_signal_ends_the_wait_for_a_server_that_is_overloaded(dslite: Dslite) -> None:
    busy = b"HTTP/1.1 429 No\r\nRetry-After: 50\r\nContent-Length: 0\r\n\r\n"
    with ScriptedServer([[busy]]) as server:
        running = dslite.start("complete", "--endpoint", server.url, "-m", "m", "--batch", "-")
        running.send(b'{"prompt": "hi"}\n')
        assert server.received.wait(60)
        running.kill(signal.SIGTERM)
        assert running.wait().code == 143


def test_batch_lines_wait_for_a_server_that_is_overloaded(dslite: Dslite) -> None:
    busy = b"HTTP/1.1 503 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"
    good = events(delta("x", "stop"), "data: [DONE]\n\n")
    with ScriptedServer([[busy], [busy], good, [busy], good]) as server:
        result = dslite(
            "complete", "--endpoint", server.url, "-m", "m", "--batch", "-", stdin=b'{"prompt": "hi"}\n' * 2
        )
    assert [line.get("text") for line in result.lines] == ["x", "x"]
    assert b"is busy: trying again" in result.err


def reasoning(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"reasoning_content": text}}]}


@pytest.mark.parametrize(
    ("said", "out", "code", "words"),
    [
        (events(delta("a", "length"), "data: [DONE]\n\n"), b"a\n", 0, b"cut at a limit of"),
        (events(reasoning("so"), reasoning("so"), delta(None, "length")), b"", 0, b"only reasoning came"),
        (events({"choices": [{"delta": {"refusal": "No."}, "finish_reason": "stop"}]}), b"No.\n", 0, b"refuses"),
        (
            events(
                {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f"}}]}, "finish_reason": "tool_calls"}]}
            ),
            b"",
            0,
            b"asks to call f",
        ),
        (
            events({"choices": [{"delta": {"content": [{"text": "a"}, {"text": "b"}]}}]}, delta(None, "stop")),
            b"ab\n",
            0,
            b"",
        ),
        (
            refusal(400, '{"error": {"message": "request exceeds the available context size", "n_ctx": 8192}}'),
            b"",
            4,
            b"exceeds the available context size",
        ),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n<html></html>\n"], b"", 3, b"a web page"),
    ],
)
def test_nothing_of_an_answer_is_lost_in_silence(
    dslite: Dslite, said: list[bytes], out: bytes, code: int, words: bytes
) -> None:
    with ScriptedServer([said]) as server:
        result = dslite("complete", "--endpoint", server.url, "-m", "m", "hi")
    assert (result.out, result.code) == (out, code)
    assert words in result.err
    assert result.out or result.err
    assert b"the context of" not in result.err


def test_an_answer_that_fills_the_context_of_the_server_is_exit_4(dslite: Dslite) -> None:
    full = {
        "choices": [{"delta": {"content": "a"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 99, "completion_tokens": 1},
    }
    with ScriptedServer([events(full)], models=[{"id": "m", "max_model_len": 100}]) as server:
        result = dslite("complete", "--endpoint", server.url, "hi")
    assert (result.out, result.code) == (b"a\n", 4)
    assert b"the context of 100 tokens is full" in result.err


def test_a_chat_goes_on_with_a_cut_answer_and_drops_no_turn(dslite: Dslite) -> None:
    script = [
        events(delta(text, finish), "data: [DONE]\n\n")
        for text, finish in (("one", "stop"), ("so ", "length"), ("far", "stop"))
    ]
    with ScriptedServer(script) as server:
        result = dslite("chat", "--plain", "--endpoint", server.url, "-m", "m", stdin=b"first\nsecond\n/continue\n")
    assert result.code == 0, result.err
    messages = json.loads(server.asked[2].partition(b"\r\n\r\n")[2])["messages"]
    assert [message["content"] for message in messages] == ["first", "one", "second", "so "]


def test_a_context_that_a_chat_overflows_is_no_other_error(dslite: Dslite) -> None:
    full = refusal(400, '{"object": "error", "message": "longer than the model\'s context length (10 tokens)"}')
    good = events(delta("one", "stop"), "data: [DONE]\n\n")
    with ScriptedServer([good, full, good]) as server:
        chat = ("chat", "--plain", "--endpoint", server.url, "-m", "m")
        (dslite.folder / "config").mkdir(exist_ok=True)
        (dslite.folder / "config" / "config.toml").write_text('[chat]\nwhen_full = "forget"\n')
        result = dslite(*chat, stdin=b"first\nsecond\n", env={"DSLITE_CONFIG_DIR": str(dslite.folder / "config")})
    assert result.code == 0, result.err
    sent = [json.loads(asked.partition(b"\r\n\r\n")[2])["messages"] for asked in server.asked]
    assert [len(messages) for messages in sent] == [1, 3, 1]  # forgotten only where the server says that it is full
