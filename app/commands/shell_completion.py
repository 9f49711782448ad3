"""Tab in bash, zsh and fish: the scripts, their installation, and what they ask for.

A script calls `dslite` with the words of the line as arguments and the shell's name in _DSLITE_COMPLETE, and gets one
completion a line; without any the shell completes file names. Of Typer's own scripts, that of
zsh defines a function at the first Tab and does not call it, and each installation appends a line to the start file.
"""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer._click.shell_completion import CompletionItem, ShellComplete  # Typer's copy of Click has no public name

from dslite.runtime.atomic_file import write_file
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.system.folders import require_home

if TYPE_CHECKING:
    from typer._click.core import Command

VARIABLE = "_DSLITE_COMPLETE"
_TIP = 60  # characters of a description

_BASH = r"""_dslite_completion() {
    local IFS=$'\n'
    COMPREPLY=($(_DSLITE_COMPLETE=bash "$1" "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _dslite_completion dslite
"""

_ZSH = r"""#compdef dslite
_dslite() {
    local -a found
    found=("${(@f)$(_DSLITE_COMPLETE=zsh ${(Q)words[1]} "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then
        _describe 'dslite' found
    else
        _files
    fi
}
# The completion system runs this file as the function's first call; `source` runs it to define the function.
if [[ "$funcstack[1]" == "_dslite" ]]; then
    _dslite "$@"
else
    compdef _dslite dslite
fi
"""

_FISH = r"""function __dslite_complete
    set -l found (_DSLITE_COMPLETE=fish dslite (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command dslite --no-files --arguments '(__dslite_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def install(shell: str | None = None) -> Path:
    """Install the script of a shell, by default of the one that runs this; return its path. Again changes nothing.

    Raises UsageError for an unknown shell, DsliteError where a file cannot be written.
    """
    shell = shell or detected_shell()
    home = require_home("~")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    script, start, line = {
        "bash": (home / ".bash_completions" / "dslite.sh", home / ".bashrc", "source '{}'"),
        "zsh": (
            home / ".zfunc" / "_dslite",
            Path(os.environ.get("ZDOTDIR") or home) / ".zshrc",
            "fpath+=~/.zfunc; autoload -Uz compinit; compinit",
        ),
        "fish": (config / "fish" / "completions" / "dslite.fish", None, ""),
    }[checked_shell(shell)]
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_file(script, SCRIPTS[shell].encode())
        if start is not None:
            with file_lock(start):
                _add_line(start, line.format(script))
    except LockTimeoutError:
        raise DsliteError(f"another dslite is changing {start}", "try again") from None
    except OSError as error:
        raise DsliteError(f"{error.filename or script} cannot be written: {error.strerror}") from None
    return script


def checked_shell(name: str) -> str:
    """Raises UsageError for a shell without a script."""
    if name not in SCRIPTS:
        raise UsageError(f"there is no completion for the shell {name!r}", f"name one: {', '.join(SCRIPTS)}")
    return name


def detected_shell() -> str:
    """The shell that started this process, or the user's own. Raises UsageError."""
    import shellingham  # type: ignore[import-untyped]

    try:
        found: str = shellingham.detect_shell()[0]
        return found
    except shellingham.ShellDetectionFailure:
        return checked_shell(Path(os.environ.get("SHELL", "")).name)


def _add_line(file: Path, line: str) -> None:
    """Append a line to a shell's start file, unless it has it."""
    text = file.read_text(encoding="utf-8", errors="surrogateescape") if file.exists() else ""
    if line not in text.splitlines():
        end = "" if not text or text.endswith("\n") else "\n"
        write_file(file, f"{text}{end}{line}\n".encode("utf-8", "surrogateescape"))


def answer(command: "Command", shell: str, words: list[str]) -> None:
    """Print the completions of the last word, one a line; none where the shell should complete file names."""
    # bash splits --model=demo into three words.
    words = [word for word in words if word != "="] or [""]
    found = _Lines(command, shell, words).complete()
    if found:
        print(found)


class _Lines(ShellComplete):
    """Completions as lines: the value, and its description where the shell shows one."""

    name = "lines"

    def __init__(self, command: "Command", shell: str, words: list[str]) -> None:
        super().__init__(command, {}, "dslite", VARIABLE)
        self._shell, self._words = shell, words

    def get_completion_args(self) -> tuple[list[str], str]:
        return self._words[:-1], self._words[-1]

    def source_vars(self) -> dict[str, Any]:
        return {}

    def complete(self) -> str:
        items = self.get_completions(*self.get_completion_args())
        files = any(item.type != "plain" for item in items)
        return "" if files else "\n".join(map(self.format_completion, items))

    def format_completion(self, item: CompletionItem) -> str:
        tip = _plain(item.help or "")[:_TIP]
        value = item.value.replace(":", r"\:") if self._shell == "zsh" else item.value
        separator = {"zsh": ":", "fish": "\t"}.get(self._shell)
        return f"{value}{separator}{tip}" if tip and separator else value


def _plain(text: str) -> str:
    """Titles and descriptions without what a shell or a terminal could act on."""
    return " ".join(re.sub(r"[^\w .,;!?/=@+-]", " ", text).split())


def _named(flag: str) -> str | None:
    """The word after a flag of the command line, where it names a shell."""
    place = sys.argv.index(flag) + 1 if flag in sys.argv else len(sys.argv)
    return sys.argv[place] if place < len(sys.argv) and sys.argv[place] in (*SCRIPTS, "powershell", "pwsh") else None


def install_callback(wanted: bool) -> None:
    """--install-completion [SHELL]"""
    if wanted:
        script = install(_named("--install-completion"))
        print(f"completion is installed in {script}; it works in shells that start from now on")
        raise typer.Exit


def show_callback(wanted: bool) -> None:
    """--show-completion [SHELL]"""
    if wanted:
        print(SCRIPTS[checked_shell(_named("--show-completion") or detected_shell())], end="")
        raise typer.Exit
