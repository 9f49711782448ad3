"""`dslite chat --plain`: the chat line by line, with the terminal's own cursor and the same commands.

For screen readers, simple terminals and pipes: nothing is drawn twice and no escape sequence is written.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dslite.app import console
from dslite.app.chat_start import ChatStart
from dslite.app.dialogue import Dialogue, Node
from dslite.app.dialogue_export import export
from dslite.app.interruption import Interruption
from dslite.app.markdown_blocks import code_blocks
from dslite.app.opening import Opened
from dslite.app.plain_full_context import FullContext, NewChatWanted
from dslite.app.profiles import all_profiles, get_profile
from dslite.app.slash import COMMANDS, Command, parse, split_setting
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.errors import ContextFullError, ModelUnavailableError, UsageError
from dslite.runtime.events import Done, Loading, Prefilling, Token
from dslite.runtime.responder import Remembers

if TYPE_CHECKING:
    from dslite.app.sessions import SessionStore

_BLOCK = '"""'
_SHORT_LIST = 20


def run_plain(start: ChatStart) -> int:
    """Hold the chat on stdin and stdout; return the exit code."""
    chat = PlainChat(start)
    try:
        return chat.run()
    finally:
        start.recorder.close()
        chat.keep()


class PlainChat:
    """Each `do_NAME` is the command of that name in app/slash.py."""

    def __init__(self, start: ChatStart) -> None:
        self.start = start
        self.settings = start.settings
        self.recorder = start.recorder
        self.ref = start.ref
        self.opened: Opened | None = None
        self.dialogue = self._new_dialogue()
        self.full_context = FullContext(self)
        self._leaving: int | None = None

    def _new_dialogue(self) -> Dialogue:
        return Dialogue(model=self.ref.key, profile=self.settings.profile.name, system=self.settings.system_message)

    def run(self) -> int:
        """Read and answer until the input ends."""
        self.recorder.told = self._saving_changed
        for error in self.start.warnings:
            console.show_error(error)
        self._open_model(self.ref)
        if self.start.resume is not None:
            self._load(self.start.resume)
        print("Type a message; /help lists the commands, Ctrl+D ends.", flush=True)
        while self._leaving is None:
            try:
                text = self._read()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print("\n/quit or Ctrl+D ends the chat", flush=True)
                continue
            self._take(text)
        return self._leaving

    def _read(self) -> str:
        """One input: a line, or a block between three quotes. Raises EOFError."""
        text = input("> " if sys.stdin.isatty() else "")
        if not text.lstrip().startswith(_BLOCK):
            return text
        while text.count(_BLOCK) % 2:
            text += "\n" + input("… " if sys.stdin.isatty() else "")
        inner = text.strip()
        return inner[len(_BLOCK) : -len(_BLOCK)].strip("\n") if inner.endswith(_BLOCK) else text

    def _take(self, text: str) -> None:
        if not text.strip():
            return
        try:
            command = parse(text)
            if command is not None:
                self._run(*command)
                return
            self.say(text)
        except DsliteError as error:
            console.show_error(error)

    def say(self, text: str) -> None:
        """Put a message to the model. Raises DsliteError."""
        question = self.dialogue.add("user", text, parent=self.dialogue.leaf)
        self.recorder.append(self.dialogue, question)
        self._ask(question)

    def _run(self, command: Command, argument: str) -> None:
        deed: Callable[[str], None] = getattr(self, f"do_{command.name}")
        deed(argument)

    def _saving_changed(self, error: DsliteError | None) -> None:
        if error is not None:
            console.warn(f"this chat is not saved: {error.message}")
        else:
            console.warn("saving works again: nothing is missing")

    # Answers.

    def _open_model(self, ref: ModelRef) -> None:
        status = console.StatusLine()

        def report(event: Loading) -> None:
            status.show(f"loading weights {100 * event.done_bytes // max(event.total_bytes, 1)} %")

        self.opened = None
        try:
            self.opened = self.start.open_model(ref, report)
        except ModelUnavailableError as error:
            console.show_error(error)
            console.warn("no model is loaded: /model demo takes the one that ships with dslite")
        finally:
            status.clear()
        self.ref = ref

    def _ask(self, question: Node) -> None:
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

    def _answer(self, node: Node, end: Node, *, go_on: bool = False) -> None:
        """Print an answer as it comes; Ctrl+C stops it and keeps what came."""
        if self.opened is None:
            raise ModelUnavailableError("no model is loaded", "choose one with /model, such as /model demo")
        responder, messages = self.opened.responder, self.dialogue.messages(end, self.ref.key)
        params = replace(self.settings).params(self.opened.defaults)
        if self.dialogue.id is not None and isinstance(responder, Remembers):
            responder.recall(self.dialogue.id, messages, go_on=go_on)
        with Interruption() as interruption:
            try:
                events = responder.reply(messages, params, interruption.flag, go_on=go_on)
            except ContextFullError as error:
                self.full_context.make_room(error, messages)
                kept = responder.fit(messages, go_on=go_on)
                console.warn("the context is full: the model no longer sees the oldest messages of this chat")
                events = responder.reply(kept, params, interruption.flag, go_on=go_on)
            try:
                self._print(node, events, interruption.flag)
            except DsliteError:
                self._keep_broken(node)
                raise
        if interruption.exit_code == 143:
            self._leaving = 143

    def _keep_broken(self, node: Node) -> None:
        """What came of an answer that broke off stays, and /continue goes on from it."""
        print(flush=True)
        if node.content:
            node.growing, node.finish_reason = False, "interrupted"
            self.recorder.finish(self.dialogue, node)

    def keep(self) -> None:
        """Leave on disk what was computed of the conversation."""
        responder = self.opened.responder if self.opened is not None else None
        if self.dialogue.id is not None and isinstance(responder, Remembers):
            responder.keep(self.dialogue.id)

    def _print(self, node: Node, events: object, cancel: threading.Event) -> None:
        status, last = console.StatusLine(), "\n"
        before, ids = node.token_ids, list(node.token_ids or ())
        for event in events:  # type: ignore[attr-defined]
            if isinstance(event, Prefilling):
                status.show(f"reading {event.done:,.0f} of {event.total:,}")
                continue
            status.clear()
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

    # Commands.

    def do_help(self, _: str) -> None:
        for command in COMMANDS:
            words = " ".join(filter(None, (", ".join(command.words), command.hint)))
            print(f"{words}: {command.help}")
        print('Text between """ and """ may have several lines. Ctrl+C stops an answer.', flush=True)

    def do_quit(self, _: str) -> None:
        self._leaving = 0

    def do_regenerate(self, _: str) -> None:
        if self.dialogue.leaf is None:
            raise UsageError("there is nothing to answer again yet")
        self._ask(self.dialogue.question_of(self.dialogue.leaf))

    def do_go_on(self, _: str) -> None:
        node = self.dialogue.last_answer()
        node.growing = True
        try:
            self._answer(node, node, go_on=True)
        except NewChatWanted:
            self.full_context.go_over(None)
        finally:
            node.growing = False

    def do_edit(self, text: str) -> None:
        from dslite.app.editor import edit_text

        written = edit_text(text).strip("\n")
        if written:
            print(console.visible(written))
            self._take(written)

    def do_copy(self, which: str) -> None:
        from dslite.app.clipboard import copy_natively

        content = self.dialogue.last_answer().content
        if which:
            blocks = code_blocks(content)
            if not which.isdecimal() or not 1 <= int(which) <= len(blocks):
                raise UsageError(f"the answer has no code block {which}", f"it has {len(blocks)}")
            content = blocks[int(which) - 1]
        if copy_natively(content):
            print("copied to the clipboard", flush=True)
        else:
            print(console.visible(content), flush=True)

    def do_new(self, _: str) -> None:
        self.keep()
        self.dialogue = self._new_dialogue()
        self.full_context.begin()
        print("a new chat; the old one is saved" if self.recorder.saving else "a new chat", flush=True)

    def do_load(self, prefix: str) -> None:
        if prefix:
            self._load(lambda store: store.find(prefix).id)
            return
        for talk in self.recorder.ask(lambda store: store.conversations(limit=_SHORT_LIST)).result():
            print(f"{talk.id}  {console.visible(talk.title)}")
        print("/load ID opens one; the beginning of its id will do", flush=True)

    def _load(self, identify: "Callable[[SessionStore], str | None]") -> None:
        def load(store: "SessionStore") -> Dialogue | None:
            identity = identify(store)
            return Dialogue.load(store.get(identity), store.tree(identity)) if identity else None

        dialogue = self.recorder.ask(load).result()
        if dialogue is None:
            return
        self.dialogue = dialogue
        self.full_context.begin()
        self.settings.system = dialogue.system or ""
        print(f"{console.visible(dialogue.title)}\n")
        for node in dialogue.path():
            name = "You" if node.role == "user" else "Model"
            print(f"{name}: {console.visible(node.content)}\n", flush=True)

    def do_save(self, name: str) -> None:
        print(f"saved as {export(self.dialogue, Path(name).expanduser())}", flush=True)

    def do_title(self, title: str) -> None:
        self.dialogue.title = title
        self.recorder.rename(self.dialogue, title)

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
        self.dialogue.profile = name
        self._system_changed()
        model = self.settings.profile.model
        if model and model != self.settings.model:
            self.do_model(model)
        print(f"profile {name}", flush=True)

    def _system_changed(self) -> None:
        self.dialogue.system = self.settings.system_message
        self.recorder.configure(self.dialogue)

    def do_model(self, name: str) -> None:
        self._open_model(parse_model(name))
        self.settings.model = name
        self.dialogue.model = self.ref.key
        self.recorder.configure(self.dialogue)

    def do_inspect(self, _: str) -> None:
        if self.opened is None:
            raise UsageError("no model is loaded")
        facts = self.opened.responder.facts()
        for name, value in {**facts.memory, **facts.experts}.items():
            print(f"{name.replace('_', ' ')}: {value:,}", flush=True)

    def do_theme(self, _: str) -> None:
        print("line mode has no colours", flush=True)

    def do_mouse(self, _: str) -> None:
        print("line mode leaves the mouse to the terminal", flush=True)
