"""What the user enters: messages, and slash commands that do the same in both front ends."""

from collections.abc import Callable, Mapping

from dslite.app.chat.controller import ChatController
from dslite.app.chat.markdown_blocks import code_blocks
from dslite.app.chat.message_tree import Node
from dslite.app.chat.overview import overview
from dslite.app.chat.slash_commands import parse, split_setting
from dslite.app.settings import sampling
from dslite.app.settings.profiles import save_profile
from dslite.app.settings.snippets import INPUT, all_snippets, filled, get_snippet
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home

Handler = Callable[[str], None]


class ChatCommands:
    """Handlers by the names of COMMANDS. They take the text behind the command, and raise DsliteError."""

    def __init__(
        self,
        controller: ChatController,
        own: Mapping[str, Handler],
        chosen: Callable[[], Node | None] = lambda: None,
        selected: Callable[[], str] = lambda: "",
    ) -> None:
        """`own` are the front end's handlers; `chosen` returns the marked message, and `selected` the selected text, if
        a front end has such."""
        self._controller, self._chosen, self._selected = controller, chosen, selected
        self.handlers: dict[str, Handler] = {
            "regenerate": self.regenerate,
            "continue": lambda _: controller.continue_answer(),
            "file": self.file,
            "revise": lambda _: controller.edit(),
            "branch": self.branch,
            "compare": lambda words: controller.compare(words.split(), chosen()),
            "tokens": lambda _: controller.score(chosen()),
            "copy": self.copy,
            "quote": self.quote,
            "snippet": self.snippet,
            "new": lambda _: controller.begin(),
            "load": self.load,
            "save": self.save,
            "import": self.import_chats,
            "title": controller.rename,
            "show": lambda _: controller.view.notice(overview(controller)),
            "set": self.set,
            "system": self.system,
            "profile": lambda name: controller.use_profile(name) if name else controller.view.show_profiles(),
            "save-profile": self.save_profile,
            "model": controller.use_model,
            "quit": lambda _: controller.view.quit(),
            **own,
        }

    def enter(self, text: str) -> None:
        """Send a message or run a command. Raises DsliteError."""
        command = None if self._controller.editing is not None else parse(text)
        if command is None:
            self._controller.send(text)
        else:
            self.handlers[command[0].name](command[1])

    def file(self, words: str) -> None:
        attachments = self._controller.attachments
        if words != "-":
            attachments.attach(words)
        elif not attachments.remove_last():
            raise UsageError("no file is attached", "/file PATH attaches one")

    def regenerate(self, temperature: str) -> None:
        values = sampling.chosen(temperature=_number(temperature)) if temperature else {}
        self._controller.regenerate(self._chosen(), temperature=values.get("temperature"))

    def branch(self, number: str) -> None:
        tree = self._controller.tree
        node = next((node for node in reversed(tree.path()) if len(tree.siblings(node)) > 1), None)
        if node is None:
            raise UsageError("this chat has no branches yet", "/regen and /revise make one")
        siblings = tree.siblings(node)
        place, count = siblings.index(node) + 1, len(siblings)
        if not number:
            self._controller.view.notice(f"branch {place} of {count}: /branch N shows another")
            return
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise UsageError(f"there is no branch {number}", f"there are {count}")
        self._controller.show_branch(node, int(number) - place)

    def copy(self, number: str) -> None:
        """The answer, or its N-th code block: the front end shows numbers beside the blocks of this answer alone."""
        node = self._chosen() or self._controller.tree.last_answer()
        copy = self._controller.view.copy_text
        if not number:
            copy(node.content, "the message" if node.role == "user" else "the answer")
            return
        blocks = code_blocks(node.content)
        if not number.isdecimal() or not 1 <= int(number) <= len(blocks):
            has = f"it has {len(blocks)}" if blocks else "it has none"
            raise UsageError(f"the answer has no code block {number}", f"{has}; /copy alone copies the whole answer")
        copy(blocks[int(number) - 1].text, f"code block {number}")

    def quote(self, _: str) -> None:
        """Put the selected text, the marked message or the answer into the input, each line behind `> `."""
        text = self._selected() or (self._chosen() or self._controller.tree.last_answer()).content
        lines = text.strip("\n").split("\n")
        self._controller.view.put_into_input("\n".join(f"> {line}".rstrip() for line in lines) + "\n\n")

    def snippet(self, argument: str) -> None:
        """Send a snippet. Where it has a place for a text and none was typed, it comes into the input instead."""
        name, _, text = argument.partition(" ")
        if not name:
            names = ", ".join(all_snippets())
            self._controller.view.notice(names or 'there are no snippets: write NAME = "TEXT" below [snippets]')
            return
        snippet, text = get_snippet(name), text.strip()
        if INPUT in snippet and not text:
            self._controller.view.put_into_input(filled(snippet, ""), caret=snippet.index(INPUT))
        else:
            self._controller.send(filled(snippet, text))

    def save_profile(self, name: str) -> None:
        """Save what is set as a profile, and use it: then nothing differs from it."""
        settings = self._controller.settings
        profile = settings.as_profile(name)
        save_profile(profile)
        settings.use(profile)
        settings.chosen = {}
        self._controller.tree.profile = name
        self._controller.configure()
        self._controller.view.notice(f"saved as profile {name}; it is used now")

    def load(self, prefix: str) -> None:
        if prefix:
            self._controller.load(lambda store: store.find(prefix).id)
        else:
            self._controller.view.show_chats()

    def save(self, name: str) -> None:
        from dslite.app.chat.export import export  # imported late: SQLite comes with it

        self._controller.view.notice(f"saved as {export(self._controller.tree, expand_home(name))}")

    def import_chats(self, name: str) -> None:
        from dslite.app.sessions.importer import ImportResult, import_path  # imported late: SQLite comes with it

        path, view = expand_home(name), self._controller.view

        def imported(result: ImportResult) -> None:
            count = len(result.imported)
            view.notice(f"imported {count} chat{'s' * (count != 1)}: Ctrl+O or /load opens one")
            for fault in result.skipped:
                view.notice(f"not imported: {fault}", warning=True)

        self._controller.saved.lookup(lambda store: import_path(store, path), imported)

    def set(self, argument: str) -> None:
        controller = self._controller
        if not argument:
            controller.view.notice(controller.settings.describe())
            return
        changed = controller.settings.set(*split_setting(argument))
        controller.configure()
        controller.view.notice(changed)

    def system(self, text: str) -> None:
        controller = self._controller
        if not text:
            controller.view.notice(controller.settings.system_message or "there is no system message")
            return
        changed = controller.settings.set_system(text)
        controller.configure()
        controller.view.notice(changed)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"temperature is {text!r}; it must be a number", "write it as /regen 0.7") from None
