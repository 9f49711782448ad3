"""What commands and keys do: each `do_NAME` is the command of that name in app/chat/slash_commands.py."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dslite.app.chat.markdown_blocks import code_blocks
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.slash_commands import Command, split_setting
from dslite.app.settings.profiles import all_profiles, get_profile
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore
    from dslite.app.tui.control.controller import ChatController
    from dslite.app.tui.screens.chat import ChatScreen


class SlashCommands:
    """The commands of the screen. They raise DsliteError, which the screen shows."""

    def __init__(self, screen: "ChatScreen", conductor: "ChatController") -> None:
        self.screen = screen
        self.conductor = conductor

    def run(self, command: Command, argument: str = "") -> None:
        deed: Callable[[str], None] = getattr(self, f"do_{command.name}")
        try:
            deed(argument)
        except DsliteError as error:
            self.conductor.say_error(error)

    @property
    def _chosen(self) -> Node | None:
        """The message that is marked, while the messages have the focus."""
        transcript = self.screen.transcript
        if transcript.has_focus and transcript.chosen is not None:
            return self.conductor.dialogue.node(transcript.chosen.key)
        return None

    def do_help(self, _: str) -> None:
        self.screen.show_help()

    def do_quit(self, _: str) -> None:
        self.screen.quit()

    def do_regenerate(self, _: str) -> None:
        self.conductor.regenerate(self._chosen)

    def do_go_on(self, _: str) -> None:
        self.conductor.go_on()

    def do_edit(self, text: str) -> None:
        from dslite.app.terminal.editor import edit_text

        prompt = self.screen.prompt
        written = self.screen.app_suspended(lambda: edit_text(text or prompt.text).rstrip("\n"))
        if written is not None:
            prompt.put(written)
            prompt.focus()

    def do_copy(self, which: str) -> None:
        node = self._chosen or self.conductor.dialogue.last_answer()
        if not which:
            self.screen.copy_text(node.content, "the message" if node.role == "user" else "the answer")
            return
        blocks = code_blocks(node.content)
        if not which.isdecimal() or not 1 <= int(which) <= len(blocks):
            has = f"it has {len(blocks)}" if blocks else "it has none"
            raise UsageError(f"the answer has no code block {which}", f"{has}; /copy alone copies the whole answer")
        self.screen.copy_text(blocks[int(which) - 1].text, f"code block {which}")

    def do_new(self, _: str) -> None:
        self.conductor.begin()

    def do_load(self, prefix: str) -> None:
        if not prefix:
            self.screen.show_sessions()
            return
        self.open(lambda store: store.find(prefix).id)

    def open(self, identify: "Callable[[SessionStore], str | None]") -> None:
        """Open the conversation that a question to the store names."""

        def load(store: "SessionStore") -> MessageTree | None:
            identity = identify(store)
            return MessageTree.load(store.get(identity), store.tree(identity)) if identity else None

        self.conductor.lookup(load, self._opened)

    def _opened(self, dialogue: MessageTree | None) -> None:
        if dialogue is None:
            return
        settings = self.conductor.settings
        if dialogue.profile and dialogue.profile != settings.profile.name:
            try:
                settings.use(get_profile(dialogue.profile))
            except DsliteError as error:
                self.conductor.say_error(error)
        settings.system = dialogue.system or ""
        self.conductor.status.profile = settings.profile.name
        self.conductor.begin(dialogue)

    def do_save(self, name: str) -> None:
        from dslite.app.chat.export import export  # not above: SQLite comes with it

        path = export(self.conductor.dialogue, expand_home(name))
        self.conductor.say(f"saved as {path}")

    def do_title(self, title: str) -> None:
        dialogue = self.conductor.dialogue
        dialogue.title = title
        self.conductor.recorder.rename(dialogue, title)
        self.screen.refresh_lines()

    def do_set(self, argument: str) -> None:
        key, value = split_setting(argument)
        said = self.conductor.settings.set(key, value)
        self._system_changed()
        self.conductor.say(said)

    def do_system(self, text: str) -> None:
        if not text:
            self.conductor.say(self.conductor.settings.system_message or "there is no system message")
            return
        said = self.conductor.settings.set_system(text)
        self._system_changed()
        self.conductor.say(said)

    def do_profile(self, name: str) -> None:
        if not name:
            self.screen.show_profiles()
            return
        self.use_profile(name)

    def use_profile(self, name: str) -> None:
        """Answer with a profile from now on. Raises NotFoundError."""
        conductor = self.conductor
        profile = get_profile(name)
        conductor.settings.use(profile)
        conductor.status.profile = conductor.dialogue.profile = name
        self._system_changed()
        if profile.model and profile.model != conductor.settings.model:
            conductor.use_model(profile.model)
        conductor.renew_greeting()
        conductor.say(f"profile {name}" + (f": {profile.description}" if profile.description else ""))

    def _system_changed(self) -> None:
        dialogue = self.conductor.dialogue
        dialogue.system = self.conductor.settings.system_message
        self.conductor.recorder.configure(dialogue)
        self.screen.refresh_lines()

    def do_model(self, name: str) -> None:
        self.conductor.use_model(name)

    def do_inspect(self, _: str) -> None:
        self.screen.toggle_inspector()

    def do_theme(self, name: str) -> None:
        self.screen.use_theme(name)

    def do_mouse(self, _: str) -> None:
        self.screen.toggle_mouse()

    def profile_names(self) -> list[str]:
        return list(all_profiles())
