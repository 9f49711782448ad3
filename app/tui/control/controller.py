"""Leads a chat: what the user asks for, between the dialogue, the worker, the recorder and what is on screen.

listener.py takes what the worker says; full_context.py knows what to do at the context's limit.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dslite.app.chat import summary
from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.launch import WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.ids import title_of
from dslite.app.tui.control.context_overflow import ContextOverflow
from dslite.app.tui.control.engine_events import EngineEventHandler
from dslite.app.tui.control.engine_worker import EngineWorker, GenerationJob
from dslite.app.tui.control.reply import Reply
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.app.tui.transcript.items import GREETING, greeting, item_of, items_of, note_of
from dslite.app.tui.widgets.status import Status
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.errors import UsageError

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore
    from dslite.app.tui.screens.chat import ChatScreen

T = TypeVar("T")


class ChatController:
    """The state of the chat on screen."""

    def __init__(
        self,
        screen: "ChatScreen",
        worker: EngineWorker,
        recorder: ConversationWriter,
        settings: ChatSettings,
        ref: ModelRef,
        when_full: WhenFull = "ask",
    ) -> None:
        self.screen = screen
        self.worker = worker
        self.recorder = recorder
        self.settings = settings
        self.ref = ref
        self.status = Status(model=ref.name, profile=settings.profile.name)
        self.dialogue = self._new_dialogue()
        self.reply: Reply | None = None
        self.editing: Node | None = None
        self.queue: list[str] = []  # messages typed while an answer was made
        self.early: list[GenerationJob] = []  # asked for without a model so far
        self.absent: tuple[ModelRef, DsliteError] | None = None  # the model that could not be found
        self._unsaid: list[TranscriptItem] = []
        self.listener = EngineEventHandler(self)
        self.full = ContextOverflow(self, when_full)

    def _new_dialogue(self) -> MessageTree:
        return MessageTree(model=self.ref.key, profile=self.settings.profile.name, system=self.settings.system_message)

    @property
    def model_name(self) -> str:
        """What answers are signed with, and by what their tokens are known again."""
        return self.ref.key

    # Showing.

    def show(self) -> None:
        """Draw the branch anew."""
        self.screen.transcript.show(items_of(self.dialogue, self.model_name) or [self._greeting()])
        self.screen.refresh_lines()

    def say(self, text: str, *, warning: bool = False, above: bool = False) -> None:
        """A line of ours below the conversation: of an answer that grows, `above` it or once it is whole."""
        transcript = self.screen.transcript
        entry = TranscriptItem(-1, "notice", "", ("! " if warning else "") + text)
        grows = bool(transcript.items) and transcript.items[-1].growing
        if grows and above:
            transcript.add_before_last(entry)
        elif grows:
            self._unsaid.append(entry)
        else:
            transcript.add(entry)

    def say_what_waited(self) -> None:
        """The answer is whole: what was to be said meanwhile."""
        while self._unsaid:
            self.screen.transcript.add(self._unsaid.pop(0))

    def say_error(self, error: DsliteError) -> None:
        self.say(f"{error.message}\n{error.remedy}" if error.remedy else error.message, warning=True)

    # ParsedRequest.

    def send(self, text: str) -> None:
        """A message of the user: asked now, or after the answer that is being made."""
        if self.reply is not None:
            self.queue.append(text)
            self.show_waiting()
            return
        node, self.editing = self.editing, None
        if node is not None and node.role == "assistant":
            self._replace_answer(node, text)
            return
        self.dialogue.title = self.dialogue.title or title_of(text)
        question = self.dialogue.add("user", text, parent=node.parent if node else self.dialogue.leaf)
        self.recorder.append(self.dialogue, question)
        if node is not None:
            self.show()
        else:
            self._drop_greeting()
            self.screen.transcript.add(item_of(self.dialogue, question, self.model_name))
        self.ask(question)

    def _greeting(self) -> TranscriptItem:
        return greeting(self.model_name, self.status.facts, self.settings, demo=self.ref.name == "demo")

    def renew_greeting(self) -> None:
        """Model or profile have changed: an empty chat says so."""
        if (entry := self.screen.transcript.item(GREETING)) is not None:
            entry.text = self._greeting().text
            self.screen.transcript.redraw_item(entry)

    def _drop_greeting(self) -> None:
        for entry in list(self.screen.transcript.items):
            if entry.key == GREETING:
                self.screen.transcript.remove_item(entry)

    def _replace_answer(self, node: Node, text: str) -> None:
        """An answer that the user has rewritten, as a branch; /continue goes on from it."""
        answer = self.dialogue.add("assistant", text, parent=node.parent)
        answer.finish_reason = "interrupted"
        answer.info = {"model": self.model_name, "edited": True}
        self.recorder.append(self.dialogue, answer)
        self.show()

    def ask(self, question: Node, *, forget: bool = False) -> None:
        """Have a question answered."""
        self._begin(self.dialogue.add("assistant", "", parent=question, growing=True), question, forget=forget)

    def go_on(self, *, forget: bool = False) -> None:
        """Lengthen the last answer. Raises UsageError."""
        self._refuse_while_answering()
        node = self.dialogue.last_answer()
        if node is not self.dialogue.leaf:
            raise UsageError("the last message is a question", "/regen answers it")
        node.growing = True
        self._begin(node, node, go_on=True, forget=forget or node.finish_reason == "context")

    def _begin(self, node: Node, end: Node, *, go_on: bool = False, forget: bool = False) -> None:
        dialogue, name = self.dialogue, self.model_name
        settings = replace(self.settings, chosen=dict(self.settings.chosen))
        job = GenerationJob(
            lambda: dialogue.messages(end, name), settings, lambda: dialogue.id, go_on=go_on, forget=forget
        )
        entry = self.screen.transcript.item(node.key)
        if entry is None:
            entry = item_of(dialogue, node, name)
            self.screen.transcript.add(entry)
        self.screen.transcript.drop_behind(entry)  # lines of ours: an answer grows at the end
        entry.growing, entry.note, entry.splitter = True, "", None
        self.screen.transcript.redraw_item(entry)
        ids = list(node.token_ids or ()) if go_on else []
        self.answer(Reply(job, node, entry, end, before=node.content, ids=ids))

    def answer(self, reply: Reply) -> None:
        """Have a reply made, now or when there is a model."""
        self.reply = reply
        if self.status.doing == "nothing":
            self.early.append(reply.job)
            self._offer_model()
        else:
            self.worker.answer(reply.job)
            if self.status.doing == "idle":
                self.status.doing = "reading"
                self.status.reading = None
        self.show_waiting()

    def _offer_model(self) -> None:
        """A message waits, and no model is being opened."""
        if self.absent is not None:
            self.screen.offer_first_run(*self.absent)
        else:
            self.say("no model is open: /model NAME opens one, and it answers", above=True)

    def show_waiting(self) -> None:
        early = self.reply is not None and self.status.doing in ("starting", "loading", "nothing")
        self.status.waiting = len(self.queue) + early
        self.screen.refresh_lines()

    def abandon(self, reply: Reply) -> None:
        """Take back an answer of which nothing came, or one that belongs to no conversation."""
        self.reply = None
        if reply.then is not None:
            self.screen.transcript.remove_item(reply.entry)
        elif not reply.before and not reply.node.content:
            self.dialogue.remove(reply.node)
            self.screen.transcript.remove_item(reply.entry)
        self.show_waiting()

    def _refuse_while_answering(self) -> None:
        if self.reply is not None:
            raise UsageError("an answer is being made", "stop it first, with Esc")

    # Steering.

    def stop(self) -> bool:
        """Stop the answer at once and keep what came; return whether there was one."""
        reply = self.reply
        if reply is None or reply.stopped:
            return False
        reply.stopped = True
        reply.job.cancel.set()
        self.queue.clear()
        self.listener.tick()
        if self.reply is reply:
            self.status.doing = "stopping" if self.status.doing in ("reading", "writing") else self.status.doing
            if reply.job in self.early or self.status.doing in ("starting", "loading", "nothing"):
                self.early = [job for job in self.early if job is not reply.job]
                self.abandon(reply)
            else:
                reply.entry.note = note_of("interrupted")
                self.screen.transcript.redraw_item(reply.entry)
        self.screen.refresh_lines()
        return True

    def regenerate(self, node: Node | None = None) -> None:
        """Answer again; the earlier answer stays as a branch. Raises UsageError."""
        self._refuse_while_answering()
        leaf = node or self.dialogue.leaf
        if leaf is None:
            raise UsageError("there is nothing to answer again yet")
        question = self.dialogue.question_of(leaf)
        self.dialogue.leaf = question
        self.show()
        self.ask(question)

    def edit(self, node: Node | None = None) -> None:
        """Put a message into the prompt; sending it begins a branch. Raises UsageError."""
        self._refuse_while_answering()
        questions = [message for message in self.dialogue.path() if message.role == "user"]
        node = node or (questions[-1] if questions else None)
        if node is None:
            raise UsageError("there is no message to edit yet")
        self.editing = node
        self.screen.prompt.put(node.content)
        self.screen.prompt.focus()
        self.screen.flash("editing: Enter makes a branch, Esc leaves it as it was")

    def walk(self, key: int, step: int) -> None:
        """Show the branch beside a message."""
        node = self.dialogue.node(key)
        if node is None or self.reply is not None:
            return
        siblings = self.dialogue.siblings(node)
        place = siblings.index(node) + step
        if not self.dialogue.walk(node, step):
            return
        self.recorder.set_leaf(self.dialogue)
        self.show()
        self.screen.transcript.choose(self.screen.transcript.item(siblings[place].key))

    # Models, and questions to the store.

    def use_model(self, name: str) -> None:
        """Load another model; a message that waits for one is answered by it. Raises UsageError."""
        if self.reply is not None and self.reply.job not in self.early:
            self._refuse_while_answering()
        self.ref = parse_model(name)
        self.settings.model = name
        self.dialogue.model = self.ref.key
        self.status.model, self.status.doing = self.ref.name, "starting"
        self.recorder.configure(self.dialogue)
        self.worker.open(self.ref)
        self.screen.refresh_lines()

    def lookup(self, question: Callable[["SessionStore"], T], then: Callable[[T], None]) -> None:
        """Ask the store, and go on with its answer on the screen's thread."""

        def finished(future: "Future[T]") -> None:
            error = future.exception()
            if isinstance(error, DsliteError):
                self.screen.call_later(self.say_error, error)
            elif error is None:
                self.screen.call_later(then, future.result())

        self.recorder.ask(question).add_done_callback(finished)

    def begin(self, dialogue: MessageTree | None = None) -> None:
        """Go over to a new or an opened conversation; the one on screen stays saved."""
        self.stop()
        self.reply, self.editing = None, None
        self._unsaid.clear()
        self.full.begin()
        self.queue.clear()
        if dialogue is None:
            self.settings.system = summary.without(self.settings.system)
        self.dialogue = dialogue or self._new_dialogue()
        info = self.dialogue.leaf.info if self.dialogue.leaf else {}
        self.status.used = info.get("prompt_tokens", 0) + info.get("completion_tokens", 0)
        self.listener.rates.clear()
        self.worker.count_anew()
        self.show()
        self.screen.call_after_refresh(self.screen.app.collect)
