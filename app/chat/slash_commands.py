"""Slash commands: one table for both front ends and their help, and the parser."""

from dataclasses import dataclass

from dslite.runtime.errors import UsageError


@dataclass(frozen=True)
class Command:
    """`name` is the key of its handler; `words` are the ways to type it; `hint` stands for its argument."""

    name: str
    words: tuple[str, ...]
    help: str
    hint: str = ""
    needs_argument: bool = False


COMMANDS = (
    Command("help", ("/help", "/?"), "Show the keys and commands."),
    Command("regenerate", ("/regen",), "Answer again; the earlier answer stays as a branch.", "[TEMPERATURE]"),
    Command("continue", ("/continue",), "Go on with an answer that was cut."),
    Command("file", ("/file",), "Attach a file, a folder or a pattern; - takes the last one away.", "PATH", True),
    Command("edit", ("/edit",), "Write in $EDITOR.", "[TEXT]"),
    Command("revise", ("/revise",), "Edit your last message; sending it makes a branch."),
    Command("branch", ("/branch",), "Show the N-th branch of the last message that has several.", "[N]"),
    Command(
        "compare", ("/compare",), "Two branches side by side, or answers at two temperatures or profiles.", "[A B]"
    ),
    Command("tokens", ("/tokens",), "How likely each token of the answer was; go on from another one."),
    Command("copy", ("/copy",), "Copy the answer, or its N-th code block.", "[N]"),
    Command("quote", ("/quote",), "Quote the selected text, or the answer, in the input."),
    Command("snippet", ("/p",), "Send a text of [snippets]; TEXT stands for {input}.", "[NAME TEXT]"),
    Command("new", ("/clear", "/new"), "Begin a new chat; the old one stays saved."),
    Command("find", ("/find",), "Find in this chat.", "[TEXT]"),
    Command("load", ("/load",), "Open a saved chat.", "[ID]"),
    Command("save", ("/save",), "Export this chat as Markdown or JSON.", "FILE", needs_argument=True),
    Command("import", ("/import",), "Import chats: dslite's export, or ChatGPT's archive.", "FILE", True),
    Command("title", ("/title",), "Rename this chat.", "TEXT", needs_argument=True),
    Command("show", ("/show",), "Show what is set: model, profile, system message, sampling."),
    Command("set", ("/set",), "Change a value, such as /set temperature 0.7; alone, show them.", "[KEY VALUE]"),
    Command("system", ("/system",), "Change the system message; - removes it.", "[TEXT]"),
    Command("profile", ("/profile",), "Use a profile.", "[NAME]"),
    Command("save-profile", ("/save-profile",), "Save what is set as a profile.", "NAME", needs_argument=True),
    Command("model", ("/model",), "Use another model.", "M", needs_argument=True),
    Command("inspect", ("/inspect",), "Show or hide what the model is doing."),
    Command("theme", ("/theme",), "Change the colours.", "[NAME]"),
    Command("mouse", ("/mouse",), "Leave the mouse to the terminal, or take it back."),
    Command("quit", ("/exit", "/bye", "/quit"), "Quit."),
)
_BY_WORD = {word: command for command in COMMANDS for word in command.words}


def parse(text: str) -> tuple[Command, str] | None:
    """The command and argument of an input; None for a message. Raises UsageError for what looks like a command."""
    if not text.startswith("/") or "\n" in text.strip():
        return None
    word, _, argument = text.strip().partition(" ")
    if "/" in word[1:]:
        return None  # a path
    command = _BY_WORD.get(word.lower())
    if command is None:
        import difflib

        near = difflib.get_close_matches(word.lower(), _BY_WORD, n=1)
        raise UsageError(
            f"there is no command {word}", f"did you mean {near[0]}?" if near else "F1 or /help lists them"
        )
    argument = argument.strip()
    if command.needs_argument and not argument:
        raise UsageError(f"{word} needs {command.hint}", f"write it as {word} {command.hint}")
    if argument and not command.hint:
        raise UsageError(f"{word} takes nothing behind it", f"write {word} alone")
    return command, argument


def split_setting(argument: str) -> tuple[str, str]:
    """KEY VALUE, also with the word parameter before it. Raises UsageError."""
    words = argument.split(None, 1)
    if words and words[0] == "parameter":
        words = words[1].split(None, 1) if len(words) > 1 else []
    if len(words) < 2:
        raise UsageError("/set needs KEY VALUE", "write it as /set temperature 0.7, or /set system TEXT")
    return words[0], words[1].strip()
