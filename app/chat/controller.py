"""The chat behind both front ends: the conversation, the answer that is generated, what waits, and what is saved.

No Textual, no Rich, no printing. A front end implements `ChatView`, forwards what the user does to the methods here,
and calls `tick` from its loop. The engine's thread (`EngineWorker`) and the writer's (`ConversationWriter`) get
immutable jobs and report by events, which `tick` takes; so everything here runs on the front end's thread.
"""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from dslite.app.chat import autosave, summary
from dslite.app.chat import engine_worker as engine
from dslite.app.chat.context_overflow import ContextOverflow, OverflowDecision
from dslite.app.chat.engine_worker import EngineWorker, GenerationJob
from dslite.app.chat.launch import ChatLaunch, WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import Reply
from dslite.app.chat.status import ChatStatus, ModelState, ReplyState
from dslite.app.chat.view import ChatView
from dslite.app.errors import SessionsError, unexpected_error
from dslite.app.sessions.ids import title_of
from dslite.app.settings.profiles import get_profile
from dslite.model.errors import DsliteError
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import ChatEvent, Done, Loading, Notice, Prefilling, Thinking, Token, Waiting

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore

T = TypeVar("T")


class ChatController:
    """One chat at a time, and the model that answers in it."""

    def __init__(self, launch: ChatLaunch, view: ChatView, worker: EngineWorker) -> None:
        self.view, self.worker = view, worker
        self.writer, self.settings, self.ref = launch.writer, launch.settings, launch.ref
        self.status = ChatStatus(unsaved="" if launch.writer.saving else "not saved (--no-save)")
        self.tree = self._new_tree()
        self.reply: Reply | None = None
        self.editing: Node | None = None
        self.queue: list[str] = []  # messages that wait for the end of the answer
        self.removed_chats: list[tuple[str, str]] = []  # ids and titles, for undo
        self.removed_profiles: list[tuple[str, str]] = []  # names and texts, for undo
        self._loader = launch.loader
        self._absent: tuple[ModelRef, DsliteError] | None = None  # the model that was not found
        self._was_ready = False
        self._overflow = ContextOverflow(launch.config.when_full)
        self._overflow_error: DsliteError | None = None
        self._lookups = 0
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # of the store
        worker.load(self.ref)

    def _new_tree(self) -> MessageTree:
        return MessageTree(model=self.ref.key, profile=self.settings.profile.name, system=self.settings.system_message)

    @property
    def busy(self) -> bool:
        """Whether events will come without the user: a model is loaded, an answer made, a question answered."""
        loading = self.status.model in (ModelState.STARTING, ModelState.LOADING)
        return loading or self._lookups > 0 or (self.reply is not None and self.reply.state is not ReplyState.QUEUED)

    # Messages.

    def send(self, text: str) -> None:
        """A message of the user: asked now, or after the answer that is being made."""
        if self.reply is not None:
            self.queue.append(text)
            self._changed()
            return
        edited = self.editing
        self.cancel_edit()
        if edited is not None and edited.role == "assistant":
            self._replace_answer(edited, text)
            return
        self.tree.title = self.tree.title or title_of(text)
        question = self.tree.add("user", text, parent=edited.parent if edited else self.tree.leaf)
        self.writer.append(self.tree, question)
        if edited is not None:
            self.view.show_conversation()
        else:
            self.view.message_added(question)
        self._ask(question)

    def _replace_answer(self, node: Node, text: str) -> None:
        """An answer that the user has rewritten becomes a branch; `continue_answer` goes on from it."""
        answer = self.tree.add("assistant", text, parent=node.parent)
        answer.finish_reason = "interrupted"
        answer.info = {"model": self.ref.key, "edited": True}
        self.writer.append(self.tree, answer)
        self.view.show_conversation()

    def _ask(self, question: Node, *, trim: bool = False, changes: dict[str, Any] | None = None) -> None:
        node = self.tree.add("assistant", "", parent=question, growing=True)
        self._start(Reply(node, question, trim=trim, changes=changes or {}))

    def continue_answer(self, *, trim: bool = False) -> None:
        """Lengthen the last answer. Raises UsageError."""
        self._refuse_while_answering()
        node = self.tree.last_answer()
        if node is not self.tree.leaf:
            raise UsageError("the last message is a question", "/regen answers it")
        node.growing = True
        trim = trim or node.finish_reason == "context"
        self._start(Reply(node, node, continues=True, trim=trim, ids=list(node.token_ids or ())))

    def _start(self, reply: Reply) -> None:
        """Have a reply generated, now or once there is a model."""
        self.reply = reply
        self.view.answer_started(reply)
        if self.status.model is ModelState.READY:
            self._submit(reply)
        elif self.status.model is ModelState.NONE and self._absent is not None:
            self.view.offer_model(*self._absent)
        elif self.status.model is ModelState.NONE:
            self.view.notice("no model is open: /model NAME opens one, and it answers", above=True)
        self._changed()

    def _submit(self, reply: Reply) -> None:
        """Give the engine's thread an immutable job."""
        tree = self.tree
        messages = tree.messages(reply.end, self.ref.key)
        sampling = self.settings.sampling(**reply.changes)
        if reply.is_summary:
            context = self.status.stats.context if self.status.stats else 0
            job = GenerationJob(
                summary.request(messages), self.settings.sampling(**summary.sampling(context)), trim=True
            )
        else:
            job = GenerationJob(messages, sampling, tree.key, tree.id, reply.continues, reply.trim)
        reply.job, reply.state = job, ReplyState.PREFILLING
        self.status.prefilling, self.status.thinking = None, 0
        self.worker.generate(job)

    def stop(self) -> bool:
        """Stop the answer at once and keep what came; return whether there was one. What waited is in the input."""
        reply = self.reply
        if reply is None or reply.state is ReplyState.STOPPING:
            return False
        self._return_queue()
        if reply.state is ReplyState.QUEUED:
            self._remove(reply)
        else:
            reply.stop()
            self.tick()
            if self.reply is reply:
                self.view.answer_stopping(reply)
        self._changed()
        return True

    def regenerate(self, node: Node | None = None, *, temperature: float | None = None) -> None:
        """Answer again; the earlier answer stays as a branch. Raises UsageError."""
        self._refuse_while_answering()
        leaf = node or self.tree.leaf
        if leaf is None:
            raise UsageError("there is nothing to answer again yet")
        question = self.tree.question_of(leaf)
        self.tree.leaf = question
        self.view.show_conversation()
        self._ask(question, changes={} if temperature is None else {"temperature": temperature})

    def edit(self, node: Node | None = None) -> None:
        """Put a message into the input; sending it begins a branch. Raises UsageError."""
        self._refuse_while_answering()
        questions = [message for message in self.tree.path() if message.role == "user"]
        node = node or (questions[-1] if questions else None)
        if node is None:
            raise UsageError("there is no message to edit yet")
        self.editing = node
        self.view.put_into_input(node.content)
        self.view.hint("editing: Enter makes a branch, Esc leaves it as it was")

    def cancel_edit(self) -> None:
        """Leave the message as it was."""
        if self.editing is not None:
            self.editing = None
            self.view.hint("")

    def walk(self, node: Node, step: int) -> Node | None:
        """Show the branch `step` beside a message; return the message in its place, None where there is none."""
        if self.reply is not None:
            return None
        siblings = self.tree.siblings(node)
        place = siblings.index(node) + step
        if not self.tree.walk(node, step):
            return None
        self.writer.set_leaf(self.tree)
        self.view.show_conversation()
        return siblings[place]

    def _refuse_while_answering(self) -> None:
        if self.reply is not None:
            raise UsageError("an answer is being made", "stop it first, with Esc or Ctrl+C")

    # Conversations.

    def begin(self, tree: MessageTree | None = None, *, keep_choice: bool = False) -> None:
        """Go over to a new or a loaded conversation; the active one stays saved."""
        self._cut()
        self._return_queue()
        self.editing = self._overflow_error = None
        self.view.hint("")
        self._overflow.begin(keep_choice=keep_choice)
        if tree is None:
            self.settings.system = summary.without(self.settings.system)
        self.tree = tree or self._new_tree()
        info = self.tree.leaf.info if self.tree.leaf else {}
        self.status.used = info.get("prompt_tokens", 0) + info.get("completion_tokens", 0)
        self.status.rates.clear()
        self.worker.reset_stats()
        self.view.show_conversation()
        self._changed()

    def load(self, identify: Callable[["SessionStore"], str | None]) -> None:
        """Open the conversation that a question to the store names, with its profile and system message."""

        def find(store: "SessionStore") -> MessageTree | None:
            identity = identify(store)
            return MessageTree.load(store.get(identity), store.tree(identity)) if identity else None

        self.lookup(find, self._loaded)

    def _loaded(self, tree: MessageTree | None) -> None:
        if tree is None:
            return
        if tree.profile and tree.profile != self.settings.profile.name:
            try:
                self.settings.use(get_profile(tree.profile))
            except DsliteError as error:
                self.view.error(error)
        self.settings.system = tree.system or ""
        self.begin(tree)

    def lookup(self, question: Callable[["SessionStore"], T], then: Callable[[T], None]) -> None:
        """Ask the store on the writer's thread; `then` gets the answer in a later `tick`."""
        self._lookups += 1

        def answered(future: "Future[T]") -> None:
            self._lookups -= 1
            error = future.exception()
            if error is None:
                then(future.result())
            else:
                self.view.error(error if isinstance(error, DsliteError) else unexpected_error(error))  # type: ignore[arg-type]

        self.writer.ask(question).add_done_callback(lambda future: self._answers.put(partial(answered, future)))

    def rename(self, title: str) -> None:
        self.tree.title = title
        self.writer.rename(self.tree, title)
        self._changed()

    def rename_chat(self, identity: str, title: str, then: Callable[[], None]) -> None:
        """Rename any saved chat."""
        if identity == self.tree.id:
            self.tree.title = title
            self._changed()
        self.lookup(lambda store: store.rename(identity, title), lambda _: then())

    def delete_chat(self, identity: str, title: str, then: Callable[[], None]) -> None:
        """Delete a saved chat; `restore_chat` takes it back as long as the program runs."""
        if identity == self.tree.id:
            self.begin()

        def deleted(_: object) -> None:
            self.removed_chats.append((identity, title))
            then()

        self.lookup(lambda store: store.delete(identity), deleted)

    def restore_chat(self, then: Callable[[str], None]) -> bool:
        """Take back the last deletion; `then` gets the chat's title. False where nothing was deleted."""
        if not self.removed_chats:
            return False
        identity, title = self.removed_chats.pop()
        self.lookup(lambda store: store.restore(identity), lambda _: then(title))
        return True

    # Settings and models.

    def configure(self) -> None:
        """Settings have changed: later answers are made, and the chat is saved, with them."""
        self.tree.system = self.settings.system_message
        self.writer.configure(self.tree)
        self.view.model_changed()
        self._changed()

    def use_profile(self, name: str) -> None:
        """Answer with a profile from now on. Raises NotFoundError, UsageError."""
        profile = get_profile(name)
        self.settings.use(profile)
        self.tree.profile = name
        self.configure()
        if profile.model and profile.model != self.settings.model:
            self.use_model(profile.model)
        self.view.notice(f"profile {name}" + (f": {profile.description}" if profile.description else ""))

    def use_model(self, name: str) -> None:
        """Load another model; a message that waits for one is answered by it. Raises UsageError.

        Until it is found the one before stays, and until it is loaded nothing is saved under its name.
        """
        if self.reply is not None and self.reply.state is not ReplyState.QUEUED:
            self._refuse_while_answering()
        ref = self._loader.parse(name)
        self.status.model = ModelState.STARTING
        self.worker.load(ref)
        self._changed()

    def choose_overflow(self, choice: WhenFull | None) -> None:
        """The user's answer to `ask_overflow_choice`; None leaves the question without an answer."""
        error, self._overflow_error = self._overflow_error, None
        if error is not None:
            self._decide_overflow(OverflowDecision.REFUSE if choice is None else self._overflow.choose(choice), error)

    def close(self) -> None:
        """Keep what came of the answer; the caller then closes worker and writer."""
        self._cut()

    # Events.

    def tick(self, *, draw: bool = True, timeout: float = 0.0) -> None:
        """Take what other threads report. Without `draw` text waits; with no event, wait `timeout` seconds for one."""
        while not self._answers.empty():
            self._answers.get()()
        for saved in self.writer.drain():
            self._on_writer_event(saved)
        for event in self.worker.drain(timeout):
            self._on_engine_event(event)
        if draw and (reply := self.reply) is not None:
            self._show_text(reply)
            if not reply.is_summary:  # text and tokens are those of one moment only now
                self.writer.update_now_and_then(self.tree, reply.node, reply.ids)
        self._changed()

    def _changed(self) -> None:
        self.status.reply = self.reply.state if self.reply is not None else ReplyState.DONE
        self.status.waiting = tuple(self.queue)
        self.view.status_changed()

    def _on_writer_event(self, event: autosave.WriterEvent) -> None:
        match event:
            case autosave.ConversationStored(key, identity):
                if key == self.tree.key:
                    self.tree.id = identity
                self.worker.conversation_saved(key, identity)
            case autosave.SavingFailed(error):
                self.status.unsaved = "not saved"
                self.view.error(SessionsError(f"this chat is not saved: {error.message}", error.remedy))
            case autosave.SavingResumed():
                self.status.unsaved = ""
                self.view.notice("saving works again: nothing is missing")

    def _on_engine_event(self, event: engine.WorkerEvent) -> None:
        status, reply = self.status, self.reply
        match event:
            case engine.GenerationEvent(job, inner):
                if reply is not None and reply.job is job:
                    self._on_generation(reply, inner)
            case engine.GenerationFailed(job, error):
                if reply is not None and reply.job is job:
                    self._on_failed(reply, error)
            case engine.PrefillStarted(job, left_out):
                if reply is not None and reply.job is job and left_out:
                    self._on_left_out(reply, left_out)
            case engine.LoadingStarted():
                status.model, status.loading, status.stats = ModelState.LOADING, None, None
            case Loading():
                status.model, status.loading = ModelState.LOADING, event
            case engine.ModelReady(ref, stats):
                self._on_ready(ref, stats)
            case engine.StatsUpdated(stats):
                status.stats = stats
            case engine.ModelUnavailable(ref, error, absent, kept):
                self._on_unavailable(ref, error, absent=absent, kept=kept)

    def _on_generation(self, reply: Reply, event: ChatEvent) -> None:
        status = self.status
        match event:
            case Prefilling():
                reply.take(event)
                status.prefilling, status.used = event, round(event.done)
            case Token():
                reply.take(event)
                status.used += 1
                status.thinking = 0
            case Thinking():
                reply.think()
                status.thinking = event.tokens
            case Waiting(reason=text) | Notice(message=text):
                self.view.notice(text, above=True)
            case Done():
                reply.pending.append(event.delta)
                self._show_text(reply)
                self._finish(reply, event)
                self._send_next()

    def _show_text(self, reply: Reply) -> None:
        """Bring the view and the message up to the tokens that came."""
        if text := reply.take_pending():
            self.view.text_appended(reply, text)
            if (rate := reply.rate) is not None:
                self.status.rate = rate
                self.status.rates.append(rate)

    def _finish(self, reply: Reply, done: Done) -> None:
        """The one end of an answer of which something came: its message is filled, shown and saved."""
        status, node = self.status, reply.node
        reply.finish(done, self.ref.key)
        status.used = done.prompt_tokens + done.completion_tokens
        if done.timing.decode_s > 0:
            status.rate = done.completion_tokens / done.timing.decode_s
            status.rates.append(status.rate)
        if reply.is_summary:
            self._remove(reply)
            self._begin_from_summary(reply)
        elif not node.content and node.finish_reason == "interrupted":
            self._remove(reply)
        else:
            self.reply = None
            self.view.answer_finished(reply)
            self.writer.finish(self.tree, node)
        if (warning := self._overflow.warning(status)) is not None:
            self.view.notice(warning, warning=True)

    def _remove(self, reply: Reply) -> None:
        """Take back an answer of which nothing came, or one that is no part of the conversation."""
        self.reply = None
        reply.node.growing = False
        if reply.continues:
            self.view.answer_finished(reply)
            return
        if not reply.is_summary:
            self.tree.remove(reply.node)
        self.view.answer_removed(reply)

    def _cut(self) -> None:
        """End the answer without waiting for the engine, and keep what came."""
        if self.stop() and self.reply is None:
            return
        if (reply := self.reply) is not None:
            self._show_text(reply)
            if reply.count and not reply.is_summary:
                self._finish(reply, reply.cut())
            else:
                self._remove(reply)

    def _on_failed(self, reply: Reply, error: DsliteError) -> None:
        self._show_text(reply)
        if reply.count and not reply.is_summary:
            self._finish(reply, reply.cut())
        else:
            self._remove(reply)
        if isinstance(error, ContextFullError) and not reply.trim:  # with `trim` no older turn is left to leave out
            self._decide_overflow(self._overflow.decide(self.tree), error)
        else:
            self.view.error(error)
            self._return_queue()

    def _on_left_out(self, reply: Reply, count: int) -> None:
        """The oldest messages did not fit."""
        if reply.is_summary:
            text = f"the summary leaves out the first {count} messages: they do not fit with the others"
            self.view.notice(text, above=True)
        elif reply.end is not None:
            self.view.messages_left_out(self.tree.forget(reply.end, count))

    def _send_next(self) -> None:
        if self.reply is None and self._overflow_error is None and self.queue:
            self.send(self.queue.pop(0))

    def _return_queue(self) -> None:
        """Messages that will not be sent go back into the input, before what is written there."""
        if self.queue:
            texts = [*self.queue, self.view.input_text()]
            self.queue.clear()
            self.view.put_into_input("\n".join(filter(None, texts)))

    # The model.

    def _on_ready(self, ref: ModelRef, stats: ModelStats) -> None:
        self.status.stats, self.status.model, self._was_ready, self._absent = stats, ModelState.READY, True, None
        if ref.key != self.ref.key:
            self.tree.model = ref.key
            self.writer.configure(self.tree)
        self.ref, self.settings.model = ref, ref.name
        self.view.model_changed()
        self._submit_waiting()

    def _on_unavailable(self, ref: ModelRef, error: DsliteError, *, absent: bool, kept: bool) -> None:
        """A message that waits for a model goes on waiting: the user may choose another one."""
        self.status.model = ModelState.READY if kept else ModelState.NONE
        self._absent = (ref, error) if absent else None
        if absent:
            self.view.offer_model(ref, error)
        else:
            self.view.error(error)
        if kept:
            self._submit_waiting()
        elif self._was_ready and ref.key != self.ref.key:
            self.view.notice(f"loading {self.ref.name} again")
            self.status.model = ModelState.STARTING
            self.worker.load(self.ref)

    def _submit_waiting(self) -> None:
        if self.reply is not None and self.reply.state is ReplyState.QUEUED:
            self._submit(self.reply)

    # The limit of the context.

    def _decide_overflow(self, decision: OverflowDecision, error: DsliteError) -> None:
        leaf = self.tree.leaf
        match decision:
            case OverflowDecision.ASK:
                self._overflow_error = error
                self.view.ask_overflow_choice(error)
            case OverflowDecision.FORGET if leaf is not None and leaf.role == "user":
                self._ask(leaf, trim=True)
            case OverflowDecision.FORGET if leaf is not None:
                self.continue_answer(trim=True)
            case OverflowDecision.SUMMARIZE if leaf is not None:
                question = leaf if leaf.role == "user" else None
                end = leaf.parent if question is not None else leaf
                node = Node("assistant", "", growing=True)
                self._start(Reply(node, end, trim=True, is_summary=True, question=question))
            case _:
                self.view.error(error)
                self._return_queue()

    def _begin_from_summary(self, reply: Reply) -> None:
        """Begin the new chat, and ask there what did not fit."""
        text = reply.node.content.strip()
        if reply.node.finish_reason == "interrupted" or not text:
            self.view.notice(summary.NONE_CAME)
            return
        old, system = self.tree, summary.system_message(self.tree.system, text)
        waiting = [*([reply.question.content] if reply.question is not None else []), *self.queue]
        self.queue.clear()
        self.settings.system = system
        new = MessageTree(model=old.model, profile=old.profile, system=system, title=old.title)
        self.begin(new, keep_choice=True)
        saved = "; it is saved" if self.writer.saving else ""
        self.view.summary_used(text, f"this chat goes on from a summary of the one before{saved}")
        self.queue += waiting
