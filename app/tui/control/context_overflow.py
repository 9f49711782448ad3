"""What is done when a conversation fills the context: the user chooses once for each, or config.toml for all."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dslite.app.chat import summary
from dslite.app.chat.launch import WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.tui.control.engine_worker import GenerationJob
from dslite.app.tui.control.reply import Reply
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.app.tui.transcript.items import short_name
from dslite.app.tui.widgets.status import WARN_AT
from dslite.model.errors import DsliteError

if TYPE_CHECKING:
    from dslite.app.tui.control.controller import ChatController


class ContextOverflow:
    """The limit of the conversation on screen."""

    def __init__(self, conductor: "ChatController", when_full: WhenFull) -> None:
        self._conductor = conductor
        self._of_config = self._choice = when_full
        self._warned = False

    def begin(self) -> None:
        """Another conversation is on screen."""
        self._choice, self._warned = self._of_config, False

    def warn(self) -> None:
        """Say, once for each conversation, that the limit is near."""
        status = self._conductor.status
        if not self._warned and status.fullness >= WARN_AT:
            self._warned = True
            at_its_limit = {
                "ask": "at its limit you may forget the oldest turns, or go on in a new chat with a summary",
                "forget": "at its limit the oldest turns are forgotten",
                "summary": "at its limit a new chat begins with a summary of this one",
                "stop": "at its limit this chat ends",
            }
            self._conductor.say(
                f"the context is {status.fullness:.0%} full: {at_its_limit[self._choice]}", warning=True
            )

    def handle(self, error: DsliteError) -> None:
        """A question, or an answer that was to go on, does not fit."""
        if sum(node.role == "user" for node in self._conductor.dialogue.path()) < 2:
            self._conductor.say_error(error)  # there is no older turn to give away
        elif self._choice == "ask":
            self._conductor.screen.offer_context_overflow(error)
        else:
            self.do(self._choice, error)

    def choose(self, choice: WhenFull, error: DsliteError) -> None:
        """What holds for this conversation from now on; who stops may choose again at the next question."""
        self._choice = choice if choice != "stop" else self._choice
        self.do(choice, error)

    def do(self, choice: WhenFull, error: DsliteError) -> None:
        """Make room in one of the ways. Raises UsageError."""
        conductor = self._conductor
        leaf = conductor.dialogue.leaf
        if choice == "forget" and leaf is not None:
            if leaf.role == "user":
                conductor.ask(leaf, forget=True)
            else:
                conductor.go_on(forget=True)
        elif choice == "summary" and leaf is not None:
            self._summarise(leaf)
        else:
            conductor.say_error(error)

    # A new chat with a summary.

    def _summarise(self, leaf: Node) -> None:
        """Have the model write a summary of all before the question that does not fit; it grows below the chat."""
        conductor = self._conductor
        dialogue, name, settings = conductor.dialogue, conductor.model_name, conductor.settings
        question = leaf if leaf.role == "user" else None
        end = leaf.parent if question is not None else leaf
        context = conductor.status.facts.context if conductor.status.facts else 0
        job = GenerationJob(
            lambda: summary.request(dialogue.messages(end, name)),
            replace(settings, chosen=summary.chosen(settings.chosen, context)),
            forget=True,
        )
        entry = TranscriptItem(0, "assistant", f"{short_name(name)} · summary for a new chat", growing=True)
        conductor.screen.transcript.add(entry)
        then = partial(self._go_over, dialogue, question)
        conductor.answer(Reply(job, Node("assistant", ""), entry, end, then=then))

    def _go_over(self, old: MessageTree, question: Node | None, written: Node) -> None:
        """Begin the new chat, and ask there what did not fit."""
        conductor = self._conductor
        text = written.content.strip()
        if written.finish_reason == "interrupted" or not text:
            conductor.say(summary.NONE_CAME)
            return
        system, choice = summary.system_message(old.system, text), self._choice
        waiting = [question.content] if question is not None else []
        waiting += conductor.queue
        conductor.settings.system = system
        conductor.begin(MessageTree(model=old.model, profile=old.profile, system=system, title=old.title))
        self._choice = choice
        saved = "; it is saved" if conductor.recorder.saving else ""
        conductor.say(f"this chat goes on from a summary of the one before{saved}:\n{text}")
        conductor.queue += waiting
        if conductor.queue:
            conductor.send(conductor.queue.pop(0))
