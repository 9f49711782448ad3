"""--endpoint: chat and complete over `dslite serve`, and over a server that breaks."""

import json

from support.cli_process import Dslite
from support.scripted_server import ScriptedServer, delta, events
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
