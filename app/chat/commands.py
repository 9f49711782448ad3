"""What the user enters: messages, and slash commands that do the same in both front ends."""

from collections.abc import Callable, Mapping

from dslite.app.chat.controller import ChatController
from dslite.app.chat.markdown_blocks import code_blocks
from dslite.app.chat.message_tree import Node
from dslite.app.chat.slash_commands import parse, split_setting
from dslite.app.settings import sampling
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
    ) -> None:
        """`own` are the front end's handlers; `chosen` returns the marked message, if a front end can mark one."""
        self._controller, self._chosen = controller, chosen
        self.handlers: dict[str, Handler] = {
            "regenerate": self.regenerate,
            "continue": lambda _: controller.continue_answer(),
            "revise": lambda _: controller.edit(),
            "branch": self.branch,
            "copy": self.copy,
            "new": lambda _: controller.begin(),
            "load": self.load,
            "save": self.save,
            "title": controller.rename,
            "set": self.set,
            "system": self.system,
            "profile": lambda name: controller.use_profile(name) if name else controller.view.show_profiles(),
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

    def load(self, prefix: str) -> None:
        if prefix:
            self._controller.load(lambda store: store.find(prefix).id)
        else:
            self._controller.view.show_chats()

    def save(self, name: str) -> None:
        from dslite.app.chat.export import export  # imported late: SQLite comes with it

        self._controller.view.notice(f"saved as {export(self._controller.tree, expand_home(name))}")

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
