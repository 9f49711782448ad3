"""`dslite chat --plain`: the chat line by line, with the terminal's own cursor and the same commands.

For screen readers, simple terminals and pipes: nothing is drawn twice and no escape sequence is written.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.model_loading import LoadedModel
from dslite.app.chat.slash_commands import parse
from dslite.app.plain.commands import PlainCommands
from dslite.app.plain.context_overflow import ContextOverflow, NewChatWanted
from dslite.app.terminal import console
from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import ContextFullError, ModelUnavailableError
from dslite.runtime.events import ChatEvent, Done, Loading, Notice, Prefilling, Thinking, Token, Waiting

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore

_BLOCK = '"""'


def run_plain(start: ChatLaunch) -> int:
    """Hold the chat on stdin and stdout; return the exit code."""
    chat = PlainChat(start)
    try:
        return chat.run()
    finally:
        start.recorder.close()
        chat.keep()


class PlainChat:
    """One conversation at a time, and the model that answers in it."""

    def __init__(self, start: ChatLaunch) -> None:
        self.start = start
        self.settings = start.settings
        self.recorder = start.recorder
        self.ref = start.ref
        self.opened: LoadedModel | None = None
        self.dialogue = self.new_dialogue()
        self.full_context = ContextOverflow(self)
        self.deeds = PlainCommands(self)
        self.leaving: int | None = None  # the exit code, once the chat is to end

    def new_dialogue(self) -> MessageTree:
        return MessageTree(model=self.ref.key, profile=self.settings.profile.name, system=self.settings.system_message)

    def run(self) -> int:
        """Read and answer until the input ends."""
        self.recorder.told = self._saving_changed
        for error in self.start.warnings:
            console.show_error(error)
        self.open_model(self.ref)
        if self.start.resume is not None:
            self.load(self.start.resume)
        print("Type a message; /help lists the commands, Ctrl+D ends.", flush=True)
        while self.leaving is None:
            try:
                text = self._read()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print("\n/quit or Ctrl+D ends the chat", flush=True)
                continue
            self.take(text)
        return self.leaving

    def _read(self) -> str:
        """One input: a line, or a block between three quotes. Raises EOFError."""
        text = input("> " if sys.stdin.isatty() else "")
        if not text.lstrip().startswith(_BLOCK):
            return text
        while text.count(_BLOCK) % 2:
            text += "\n" + input("… " if sys.stdin.isatty() else "")
        inner = text.strip()
        return inner[len(_BLOCK) : -len(_BLOCK)].strip("\n") if inner.endswith(_BLOCK) else text

    def take(self, text: str) -> None:
        if not text.strip():
            return
        try:
            command = parse(text)
            if command is not None:
                self.deeds.run(*command)
                return
            self.say(text)
        except DsliteError as error:
            console.show_error(error)

    def say(self, text: str) -> None:
        """Put a message to the model. Raises DsliteError."""
        question = self.dialogue.add("user", text, parent=self.dialogue.leaf)
        self.recorder.append(self.dialogue, question)
        self.ask(question)

    def _saving_changed(self, error: DsliteError | None) -> None:
        if error is not None:
            console.warn(f"this chat is not saved: {error.message}")
        else:
            console.warn("saving works again: nothing is missing")

    # Conversations.

    def begin(self, dialogue: MessageTree) -> None:
        """Hold another conversation."""
        self.dialogue = dialogue
        self.full_context.begin()

    def load(self, identify: "Callable[[SessionStore], str | None]") -> None:
        """Go on with a saved conversation, and print it. Raises DsliteError."""

        def load(store: "SessionStore") -> MessageTree | None:
            identity = identify(store)
            return MessageTree.load(store.get(identity), store.tree(identity)) if identity else None

        dialogue = self.recorder.ask(load).result()
        if dialogue is None:
            return
        self.begin(dialogue)
        self.settings.system = dialogue.system or ""
        print(f"{console.visible(dialogue.title)}\n")
        for node in dialogue.path():
            name = "You" if node.role == "user" else "Model"
            print(f"{name}: {console.visible(node.content)}\n", flush=True)

    # Answers.

    def open_model(self, ref: ModelRef) -> None:
        """Load a model; that it is not here is told."""
        status = console.TerminalStatus()

        def report(event: Loading) -> None:
            status.show(loading_text(event))

        self.opened = None
        try:
            self.opened = self.start.open_model(ref, report)
        except ModelUnavailableError as error:
            console.show_error(error)
            console.warn("no model is loaded: /model demo takes the one that ships with dslite")
        finally:
            status.clear()
        self.ref = ref

    def ask(self, question: Node) -> None:
        """Have a question of the conversation answered. Raises DsliteError."""
        node = self.dialogue.add("assistant", "", parent=question, growing=True)
        try:
            self._answer(node, question)
        except NewChatWanted:
            self.dialogue.remove(node)
            self.full_context.go_over(question)
        finally:
            node.growing = False
            if not node.content and node in question.children:
                self.dialogue.remove(node)

    def go_on(self, node: Node) -> None:
        """Have an answer grow that was cut. Raises DsliteError."""
        node.growing = True
        try:
            self._answer(node, node, go_on=True)
        except NewChatWanted:
            self.full_context.go_over(None)
        finally:
            node.growing = False

    def _answer(self, node: Node, end: Node, *, go_on: bool = False) -> None:
        """Print an answer as it comes; Ctrl+C stops it and keeps what came."""
        if self.opened is None:
            raise ModelUnavailableError("no model is loaded", "choose one with /model, such as /model demo")
        responder, messages = self.opened.responder, self.dialogue.messages(end, self.ref.key)
        params = replace(self.settings).params(self.opened.defaults)
        if self.dialogue.id is not None:
            responder.restore_cache(self.dialogue.id, messages, continue_final_message=go_on)
        with Interruption() as interruption:
            try:
                events = responder.reply(messages, params, interruption.flag, continue_final_message=go_on)
            except ContextFullError as error:
                self.full_context.make_room(error, messages)
                kept = responder.trim_to_fit(messages, continue_final_message=go_on)
                console.warn("the context is full: the model no longer sees the oldest messages of this chat")
                events = responder.reply(kept, params, interruption.flag, continue_final_message=go_on)
            try:
                self._print(node, events, interruption.flag)
            except DsliteError:
                self._keep_broken(node)
                raise
        if interruption.exit_code not in (None, 130):  # SIGTERM, SIGHUP
            self.leaving = interruption.exit_code

    def _keep_broken(self, node: Node) -> None:
        """What came of an answer that broke off stays, and /continue goes on from it."""
        print(flush=True)
        if node.content:
            node.growing, node.finish_reason = False, "interrupted"
            self.recorder.finish(self.dialogue, node)

    def keep(self) -> None:
        """Leave on disk what was computed of the conversation."""
        responder = self.opened.responder if self.opened is not None else None
        if self.dialogue.id is not None and responder is not None:
            responder.save_cache(self.dialogue.id)

    def _print(self, node: Node, events: Iterable[ChatEvent], cancel: threading.Event) -> None:
        status, last = console.TerminalStatus(), "\n"
        before, ids = node.token_ids, list(node.token_ids or ())
        for event in events:
            if isinstance(event, Prefilling):
                status.show(reading_text(event))
                continue
            if isinstance(event, Thinking):
                status.show(f"thinking · {event.tokens:,} tokens")
                continue
            status.clear()
            if isinstance(event, Waiting | Notice):
                console.warn(event.reason if isinstance(event, Waiting) else event.message)
                continue
            if event.delta:
                print(console.visible(event.delta), end="", flush=True)
                node.content += event.delta
                last = event.delta[-1]
            if isinstance(event, Token):
                if event.id is not None:
                    ids.append(event.id)
                self.recorder.update_now_and_then(self.dialogue, node, ids)
            else:
                self._end(node, event, before, len(ids) - len(before or ()))
        print("" if last == "\n" else "\n", end="", flush=True)
        if cancel.is_set():
            print("[stopped; /continue goes on]", flush=True)

    def _end(self, node: Node, done: Done, before: tuple[int, ...] | None, made: int) -> None:
        node.growing, node.finish_reason = False, done.finish_reason
        told = done.counted is None  # a server counts its tokens, and does not tell their ids
        cut_by_text = done.finish_reason == "stop" and len(done.token_ids) <= made
        node.token_ids = None if cut_by_text or not told else (*(before or ()), *done.token_ids)
        node.info = {"model": self.ref.key, "completion_tokens": done.completion_tokens}
        self.recorder.finish(self.dialogue, node)
