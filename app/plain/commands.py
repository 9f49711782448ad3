"""What the commands of the line mode do: each `do_NAME` is the command of that name in app/chat/slash_commands.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dslite.app.chat.export import export
from dslite.app.chat.markdown_blocks import code_blocks
from dslite.app.chat.slash_commands import COMMANDS, Command, split_setting
from dslite.app.settings.profiles import all_profiles, get_profile
from dslite.app.terminal import console
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home

if TYPE_CHECKING:
    from dslite.app.plain.chat import PlainChat

_SHORT_LIST = 20


class PlainCommands:
    """The commands of a chat by lines. They raise DsliteError."""

    def __init__(self, chat: "PlainChat") -> None:
        self.chat, self.settings, self.recorder = chat, chat.settings, chat.recorder

    def run(self, command: Command, argument: str) -> None:
        deed: Callable[[str], None] = getattr(self, f"do_{command.name}")
        deed(argument)

    def do_help(self, _: str) -> None:
        for command in COMMANDS:
            words = " ".join(filter(None, (", ".join(command.words), command.hint)))
            print(f"{words}: {command.help}")
        print('Text between """ and """ may have several lines. Ctrl+C stops an answer.', flush=True)

    def do_quit(self, _: str) -> None:
        self.chat.leaving = 0

    def do_regenerate(self, _: str) -> None:
        if self.chat.dialogue.leaf is None:
            raise UsageError("there is nothing to answer again yet")
        self.chat.ask(self.chat.dialogue.question_of(self.chat.dialogue.leaf))

    def do_go_on(self, _: str) -> None:
        self.chat.go_on(self.chat.dialogue.last_answer())

    def do_edit(self, text: str) -> None:
        from dslite.app.terminal.editor import edit_text

        written = edit_text(text).strip("\n")
        if written:
            print(console.visible(written))
            self.chat.take(written)

    def do_copy(self, which: str) -> None:
        from dslite.app.terminal.clipboard import copy_natively

        content = self.chat.dialogue.last_answer().content
        if which:
            blocks = code_blocks(content)
            if not which.isdecimal() or not 1 <= int(which) <= len(blocks):
                raise UsageError(f"the answer has no code block {which}", f"it has {len(blocks)}")
            content = blocks[int(which) - 1].text
        if copy_natively(content):
            print("copied to the clipboard", flush=True)
        else:
            print(console.visible(content), flush=True)

    def do_new(self, _: str) -> None:
        self.chat.keep()
        self.chat.begin(self.chat.new_dialogue())
        print("a new chat; the old one is saved" if self.recorder.saving else "a new chat", flush=True)

    def do_load(self, prefix: str) -> None:
        if prefix:
            self.chat.load(lambda store: store.find(prefix).id)
            return
        for talk in self.recorder.ask(lambda store: store.conversations(limit=_SHORT_LIST)).result():
            print(f"{talk.id}  {console.visible(talk.title)}")
        print("/load ID opens one; the beginning of its id will do", flush=True)

    def do_save(self, name: str) -> None:
        print(f"saved as {export(self.chat.dialogue, expand_home(name))}", flush=True)

    def do_title(self, title: str) -> None:
        self.chat.dialogue.title = title
        self.recorder.rename(self.chat.dialogue, title)

    def do_set(self, argument: str) -> None:
        print(self.settings.set(*split_setting(argument)), flush=True)
        self._system_changed()

    def do_system(self, text: str) -> None:
        said = self.settings.set_system(text) if text else self.settings.system_message or "there is no system message"
        print(console.visible(said), flush=True)
        self._system_changed()

    def do_profile(self, name: str) -> None:
        if not name:
            for profile in all_profiles().values():
                print(f"{profile.name}: {console.visible(profile.description)}", flush=True)
            return
        self.settings.use(get_profile(name))
        self.chat.dialogue.profile = name
        self._system_changed()
        model = self.settings.profile.model
        if model and model != self.settings.model:
            self.do_model(model)
        print(f"profile {name}", flush=True)

    def do_model(self, name: str) -> None:
        self.chat.open_model(parse_model(name))
        self.settings.model = name
        self.chat.dialogue.model = self.chat.ref.key
        self.recorder.configure(self.chat.dialogue)

    def do_inspect(self, _: str) -> None:
        if self.chat.opened is None:
            raise UsageError("no model is loaded")
        facts = self.chat.opened.responder.stats()
        for name, value in {**facts.memory, **facts.experts}.items():
            print(f"{name.replace('_', ' ')}: {value:,}", flush=True)

    def do_theme(self, _: str) -> None:
        print("line mode has no colours", flush=True)

    def do_mouse(self, _: str) -> None:
        print("line mode leaves the mouse to the terminal", flush=True)

    def _system_changed(self) -> None:
        self.chat.dialogue.system = self.settings.system_message
        self.recorder.configure(self.chat.dialogue)
