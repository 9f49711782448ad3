"""Every key of the chat: one table for the bindings, the help, the palette and the [keys] of config.toml."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.binding import Binding


@dataclass(frozen=True)
class Key:
    """`name` is its name in config.toml. `everywhere`: it works wherever the focus is."""

    name: str
    keys: str
    action: str
    help: str
    everywhere: bool = True
    in_palette: bool = True


KEYS = (
    Key("stop", "escape", "stop", "Stop the answer at once, keep what came", everywhere=False),
    Key("interrupt", "ctrl+c", "interrupt", "Copy the selection; stop; clear the input; twice: quit", in_palette=False),
    Key("editor", "ctrl+g", "command('edit')", "Write in $EDITOR"),
    Key("regenerate", "ctrl+r", "command('regenerate')", "Answer again; the earlier answer stays as a branch"),
    Key("edit", "ctrl+e", "edit_chosen", "Edit a message: the chosen one, or your last", everywhere=False),
    Key("copy", "ctrl+y", "command('copy')", "Copy the answer"),
    Key("new", "ctrl+n", "command('new')", "New chat; the old one stays saved"),
    Key("find", "ctrl+f", "command('find')", "Find in this chat"),
    Key("open", "ctrl+o", "command('load')", "Open, search, rename or delete chats"),
    Key("profiles", "f3", "profiles", "Profiles: choose, edit, add"),
    Key("help", "f1", "command('help')", "Help"),
    Key("palette", "ctrl+p", "app.command_palette", "Command palette", in_palette=False),
    Key("inspect", "f2", "command('inspect')", "Inspector: experts, cache, speed, memory"),
    Key("tokens", "f6", "command('tokens')", "How likely each token of the answer was"),
    Key("earlier", "ctrl+up,alt+up", "choose_question(-1)", "Choose the question before", in_palette=False),
    Key("later", "ctrl+down,alt+down", "choose_question(1)", "Choose the next question", in_palette=False),
    Key("top", "ctrl+home", "scroll_to_start", "To the top of the chat"),
    Key("bottom", "ctrl+end", "scroll_to_end", "To the bottom; so does End on empty input"),
    Key("mouse", "f4", "command('mouse')", "Leave the mouse to the terminal, or take it back"),
    Key("suspend", "ctrl+z", "app.suspend_process", "Suspend; fg in the shell comes back", in_palette=False),
    Key("theme", "f5", "command('theme')", "Next theme"),
)

# Keys that belong to a widget; shown in the help.
PROMPT_KEYS = (
    ("Enter", "Send"),
    ("Shift+Enter, Ctrl+J, Alt+Enter", "New line"),
    ('""" … """', "A typed block: Enter is a new line in it"),
    ("Up / Down at the input's edge", "Earlier inputs"),
    ("@ and a file's name, then Tab", "Attach it; so does dropping files on the terminal"),
    ("Backspace on empty input", "Take the last attached file away"),
    ("Ctrl+_", "Undo typing; in a panel, the last removal"),
    ("Ctrl+D on empty input", "Quit"),
    ("PageUp / PageDown", "Scroll"),
)
MESSAGE_KEYS = (
    ("Shift+Tab", "From the input to the messages; Esc or typing goes back"),
    ("Up / Down", "The message above or below"),
    ("Left / Right on a message", "Walk its branches"),
    ("Ctrl+E on a message", "Edit it and branch from there"),
    ("Enter on a message", "Show or hide what the model thought, or a question's files"),
    ("Ctrl+R, Ctrl+Y on a message", "Answer it again, copy it"),
)

# For the palette. Commands that need an argument: it writes their beginning into the input.
PREFILLED_COMMANDS = (
    ("Save this chat", "/save ", "/save FILE · Markdown or JSON"),
    ("Import chats", "/import ", "/import FILE · dslite's export, or ChatGPT's archive"),
    ("Attach a file", "/file ", "/file PATH · or @ and Tab, or drop it"),
    ("Rename this chat", "/title ", "/title TEXT"),
    ("Model", "/model ", "/model M · use another model"),
    ("System message", "/system ", "/system TEXT"),
    ("Temperature", "/set temperature ", "/set temperature X · 0 is greedy"),
    ("Use a profile", "/profile ", "/profile NAME"),
    ("Make a profile of what is set", "/save-profile ", "/save-profile NAME"),
    ("Answer again at another temperature", "/regen ", "/regen TEMPERATURE"),
    ("Send a snippet", "/p ", "/p NAME TEXT · from [snippets] in config.toml"),
    ("Change a sampling value", "/set ", "/set KEY VALUE"),
    ("Show a branch", "/branch ", "/branch N"),
)

# Commands without a key.
KEYLESS_COMMANDS = (
    ("Continue the answer", "continue", "/continue"),
    ("Show what is set", "show", "/show"),
    ("Quote the answer or the selected text", "quote", "/quote"),
    ("Edit your last message", "revise", "/revise"),
    ("Compare two answers", "compare", "/compare · /compare 0.2 0.9 · /compare PROFILE PROFILE"),
)


def bindings() -> "list[Binding]":
    """Bindings of the chat's screen. Those that work everywhere come before the keys of the input."""
    from textual.binding import Binding  # here: config.toml is checked without Textual

    return [Binding(key.keys, key.action, key.help, show=False, priority=key.everywhere, id=key.name) for key in KEYS]


def label(keys: str) -> str:
    """A key as it is shown: `Ctrl+Z`."""
    first = keys.split(",")[0]
    return "+".join(part.capitalize() if len(part) > 1 else part.upper() for part in first.split("+")).replace(
        "Escape", "Esc"
    )
