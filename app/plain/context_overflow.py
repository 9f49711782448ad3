"""What `chat --plain` does when a conversation fills the context: config.toml says it, or the user, once for each."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dslite.app.chat import summary
from dslite.app.chat.launch import WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.terminal import console
from dslite.app.terminal.signals import Interruption
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import Done, Token

if TYPE_CHECKING:
    from dslite.app.plain.chat import PlainChat
    from dslite.runtime.text.chat_template import Message

_QUESTION = "Forget the oldest turns (f), go on from a summary in a new chat (s), or stop (Enter)? "
_ANSWERS: dict[str, WhenFull] = {"f": "forget", "s": "summary"}


class NewChatWanted(Exception):
    """The chat is to go on from a summary."""


class ContextOverflow:
    """The limit of the conversation."""

    def __init__(self, chat: "PlainChat") -> None:
        self._chat = chat
        self.begin()

    def begin(self) -> None:
        """Another conversation is held."""
        self._choice: WhenFull = self._chat.start.looks.when_full

    def make_room(self, error: ContextFullError, messages: "Sequence[Message]") -> None:
        """Return where the oldest turns are to be forgotten. Raises NewChatWanted, or the error."""
        if sum(message.role == "user" for message in messages) < 2:
            raise error  # there is no older turn to give away
        if self._choice == "ask" and sys.stdin.isatty():
            console.show_error(error)
            self._choice = _ANSWERS.get(input(_QUESTION).strip().lower()[:1], "ask")
        if self._choice == "summary":
            raise NewChatWanted
        if self._choice != "forget":
            raise error

    def go_over(self, question: Node | None) -> None:
        """Have the model sum up what stands before a question, and ask it in a new chat. Raises DsliteError."""
        chat, choice = self._chat, self._choice
        old = chat.dialogue
        text = self._summarise(old.messages(question.parent if question is not None else old.leaf, chat.ref.key))
        if not text:
            console.warn(summary.NONE_CAME)
            return
        chat.keep()
        system = summary.system_message(old.system, text)
        chat.settings.system = system
        chat.dialogue = MessageTree(model=old.model, profile=old.profile, system=system, title=old.title)
        self._choice = choice
        saved = "; the one before is saved" if chat.recorder.saving else ""
        console.warn(f"a new chat goes on from this summary{saved}")
        if question is not None:
            chat.say(question.content)

    def _summarise(self, messages: "Sequence[Message]") -> str:
        """The model's summary, printed as it comes; empty where it was stopped."""
        opened, settings = self._chat.opened, self._chat.settings
        assert opened is not None
        responder = opened.responder
        chosen = summary.chosen(settings.chosen, responder.stats().context or 0)
        params = replace(settings, chosen=chosen).params(opened.defaults)
        print("Summary: ", end="", flush=True)
        text = ""
        with Interruption() as interruption:
            for event in responder.reply(responder.trim_to_fit(summary.request(messages)), params, interruption.flag):
                if isinstance(event, Token | Done):
                    print(console.visible(event.delta), end="", flush=True)
                    text += event.delta
        print(flush=True)
        return "" if interruption.flag.is_set() else text.strip()
