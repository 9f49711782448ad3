"""Tab in real shells: the first one already completes, values too, and installing twice changes nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from support.paths import path_variables

from dslite.app.sessions.store import SessionStore

SHELLS = ("bash", "zsh", "fish")
START = {"bash": ".bashrc", "zsh": ".zshrc"}
needs = {name: pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed") for name in SHELLS}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home of its own, with `dslite` on the path."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "dslite").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dslite.app "$@"\n')
    (tools / "dslite").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    folders = path_variables(tmp_path)
    return {"PATH": path, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TERM": "dumb", **folders}


def dslite(env: dict[str, str], *words: str) -> str:
    done = subprocess.run(["dslite", *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def completions(env: dict[str, str], *words: str) -> list[str]:
    """What a shell's script gets for a line of these words, the last one incomplete."""
    return dslite(env | {"_DSLITE_COMPLETE": "bash"}, *words).splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_installing_again_changes_no_file(shell: str, env: dict[str, str]) -> None:
    home = Path(env["HOME"])
    if shell in START:
        (home / START[shell]).write_text("alias x=y")  # without a line end
    found = []
    for _ in range(3):
        dslite(env, "--install-completion", shell)
        files = [file for file in sorted(home.rglob("*")) if file.is_file() and "bin" not in file.parts]
        found.append({file: file.read_bytes() for file in files})
    assert found[0] == found[1] == found[2]
    if shell in START:
        assert (home / START[shell]).read_text().startswith("alias x=y\n")
        assert (home / START[shell]).read_text().count("\n") == 2


def test_many_installations_at_once_add_one_line_and_lose_none(env: dict[str, str]) -> None:
    start = Path(env["HOME"]) / ".bashrc"
    start.write_text("".join(f"alias a{number}=b\n" for number in range(200)))
    command = [sys.executable, "-c", "from dslite.app.cli import main; main()", "--install-completion", "bash"]
    installing = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait() for process in installing] == [0] * 6
    lines = start.read_text().splitlines()
    assert len(lines) == 201
    assert lines[-1].startswith("source ")


def test_a_start_file_that_is_a_link_stays_one(env: dict[str, str]) -> None:
    home = Path(env["HOME"])
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "bashrc").write_text("set -o vi\n")
    (home / ".bashrc").symlink_to("dotfiles/bashrc")
    dslite(env, "--install-completion", "bash")
    assert (home / ".bashrc").is_symlink()
    assert "dslite.sh" in (home / "dotfiles" / "bashrc").read_text()


def test_an_unknown_shell_is_a_usage_error(env: dict[str, str]) -> None:
    done = subprocess.run(["dslite", "--install-completion", "pwsh"], env=env, capture_output=True, text=True)
    assert (done.returncode, "bash, zsh, fish" in done.stderr) == (2, True)


@needs["bash"]
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dslite complete -m d", ["demo"]),
        ("dslite complete --model = cod", ["coder", "coder-base"]),
        ("dslite complete --miss f", ["fetch"]),
        ("dslite prof", ["profile"]),
    ],
)
def test_bash_completes(words: str, expected: list[str], env: dict[str, str]) -> None:
    dslite(env, "--install-completion", "bash")
    script = f"""source "$HOME/.bashrc"
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _dslite_completion dslite; printf '%s\\n' "${{COMPREPLY[@]}}"; complete -p dslite"""
    done = subprocess.run(["bash", "--norc", "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == [*expected, "complete -o default -F _dslite_completion dslite"]


@needs["zsh"]
def test_the_first_tab_in_zsh_completes(env: dict[str, str]) -> None:
    dslite(env, "--install-completion", "zsh")
    start = Path(env["HOME"]) / ".zshrc"
    start.write_text(start.read_text() + "PS1='ready> '\n")
    shell = pexpect.spawn("zsh", ["-d", "-i"], env=env, timeout=60, encoding="utf-8", dimensions=(30, 100))
    shell.expect("ready> ")
    shell.send("dslite complete -m de\t")
    shell.expect("-m demo")
    shell.sendcontrol("c")
    shell.close(force=True)


@needs["fish"]
def test_fish_completes(env: dict[str, str]) -> None:
    dslite(env, "--install-completion", "fish")
    line = 'complete -C "dslite complete -m de"'
    done = subprocess.run(["fish", "-c", line], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["demo"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["complete", "-o", ""], ["text", "json", "jsonl"]),
        (["session", "export", "-o", ""], ["md", "json"]),
        (["plan", "--output", "j"], ["json"]),
        (["chat", "--device", "cu"], ["cuda", "cuda:0"]),
        (["serve", "--dtype", ""], ["bfloat16", "float32"]),
        (["bench", "--miss", ""], ["auto", "fetch", "compute"]),
        (["chat", "--profile", "co"], ["coder"]),
        (["profile", "edit", "te"], ["terse"]),
        (["model", "verify", "ba"], ["base"]),
        (["complete", "--file", "a"], []),
        (["complete", "--nosuch-flag-of-all", ""], []),
    ],
)
def test_values_are_completed(words: list[str], expected: list[str], env: dict[str, str]) -> None:
    assert completions(env, *words) == expected


def test_conversations_and_own_profiles_are_completed_without_what_a_shell_acts_on(
    env: dict[str, str], tmp_path: Path
) -> None:
    with SessionStore.open(tmp_path / "data" / "sessions.db") as store:
        talk = store.create(title="a `touch here` $(touch there) \\$(x)\t\x1b[2J", model="demo")
        store.append(talk.id, "user", "x", parent=None)
    dslite(env, "profile", "add", "mine", "--description", "it's $(mine)")
    for command in (["session", "show"], ["session", "rm"], ["complete", "--session"]):
        assert completions(env, *command, talk.id[:5]) == [talk.id]
    [line] = dslite(env | {"_DSLITE_COMPLETE": "zsh"}, "chat", "--session", "").splitlines()
    assert line == f"{talk.id}:a touch here touch there x 2J"
    assert completions(env, "chat", "--profile", "mi") == ["mine"]


@pytest.mark.parametrize("words", [["complete", "-m", ""], ["chat", "--profile", ""], ["chat", "--session", ""], [""]])
def test_completing_imports_no_torch_and_no_textual(words: list[str], env: dict[str, str]) -> None:
    code = f"import sys; sys.argv = ['dslite', *{words}]\nfrom dslite.app import cli\ntry: cli.main()\nfinally:\n"
    code += "    assert not {'torch', 'textual', 'rich', 'huggingface_hub.hf_api'} & set(sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=env | {"_DSLITE_COMPLETE": "bash"}, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
