"""The life of a reply: queued, prefilling, decoding, stopping, done. Events of the backend move it on."""

from collections.abc import Callable
from typing import Any

from dslite.app.chat import summary
from dslite.app.chat.engine_worker import GenerationEvent, GenerationFailed, GenerationJob, PrefillStarted
from dslite.app.chat.message_tree import Node
from dslite.app.chat.reply import Reply
from dslite.app.chat.settings import ChatSettings
from dslite.app.chat.state import ChatState
from dslite.app.chat.status import ModelState, ReplyState
from dslite.model.errors import DsliteError
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import ChatEvent, Done, Notice, Prefilling, Thinking, Token, Waiting


class ReplyLifecycle:
    """Starts, stops and ends the reply of a chat: one at a time.

    `on_finished` is called with a reply whose text is final, `on_context_full` with the error of one that did not fit.
    """

    def __init__(
        self,
        chat: ChatState,
        on_finished: Callable[[Reply], None],
        on_context_full: Callable[[DsliteError], None],
    ) -> None:
        self._chat = chat
        self._on_finished, self._on_context_full = on_finished, on_context_full

    # From a message to a job.

    def ask(
        self,
        question: Node,
        *,
        trim: bool = False,
        changes: dict[str, Any] | None = None,
        settings: ChatSettings | None = None,
    ) -> Reply:
        """Answer a question. `trim` leaves out turns that do not fit. For this answer alone, `settings` take the place
        of the chat's, and `changes` are sampling values on top."""
        node = self._chat.tree.add("assistant", "", parent=question, growing=True)
        reply = Reply(node, question, trim=trim, changes=changes or {}, settings=settings)
        self.start(reply)
        return reply

    def continue_answer(self, *, trim: bool = False) -> None:
        """Lengthen the last answer. Raises UsageError."""
        self._chat.refuse_while_answering()
        node = self._chat.tree.last_answer()
        if node is not self._chat.tree.leaf:
            raise UsageError("the last message is a question", "/regen answers it")
        node.growing = True
        trim = trim or node.finish_reason == "context"
        self.start(Reply(node, node, continues=True, trim=trim, ids=list(node.token_ids or ())))

    def start(self, reply: Reply) -> None:
        """Submit a reply now, or once a model is loaded."""
        chat = self._chat
        chat.reply = reply
        chat.view.answer_started(reply)
        if chat.status.model is ModelState.READY:
            self._submit(reply)
        elif chat.status.model is ModelState.NONE and chat.absent is not None:
            chat.view.offer_model(*chat.absent)
        elif chat.status.model is ModelState.NONE:
            chat.view.notice("no model is open: /model NAME opens one, and it answers", above=True)
        chat.changed()

    def submit_waiting(self) -> None:
        """A model is loaded: submit the reply that waits for one."""
        if self._chat.reply is not None and self._chat.reply.state is ReplyState.QUEUED:
            self._submit(self._chat.reply)

    def _submit(self, reply: Reply) -> None:
        """Give the engine's thread an immutable job."""
        chat = self._chat
        messages = chat.tree.messages(reply.end, chat.ref.key)
        if reply.is_summary:
            context = chat.status.stats.context if chat.status.stats else 0
            sampling = chat.settings.sampling(**summary.sampling(context))
            job = GenerationJob(summary.request(messages), sampling, trim=True)
        else:
            settings = reply.settings or chat.settings
            sampling = settings.sampling(**reply.changes)
            if reply.settings is not None:
                messages = chat.tree.messages(reply.end, chat.ref.key, system=settings.system_message or "")
            job = GenerationJob(messages, sampling, chat.tree.key, chat.tree.id, reply.continues, reply.trim)
        reply.job, reply.state = job, ReplyState.PREFILLING
        chat.status.prefilling, chat.status.thinking = None, 0
        chat.worker.generate(job)

    # Events.

    def take(self, event: GenerationEvent | GenerationFailed | PrefillStarted) -> None:
        """An event of the engine's thread. Those of an older reply are dropped."""
        reply = self._chat.reply
        if reply is None or reply.job is not event.job:
            return
        match event:
            case GenerationEvent(event=inner):
                self._on_event(reply, inner)
            case GenerationFailed(error=error):
                self._on_failed(reply, error)
            case PrefillStarted(left_out=count) if count:
                self._on_left_out(reply, count)

    def _on_event(self, reply: Reply, event: ChatEvent) -> None:
        status = self._chat.status
        match event:
            case Prefilling():
                reply.take(event)
                status.prefilling, status.used = event, round(event.done)
            case Token():
                reply.take(event)
                status.used += 1
                status.thinking = 0
            case Thinking():
                reply.take_reasoning(event)
                status.thinking = event.tokens
            case Waiting(reason=text) | Notice(message=text):
                self._chat.view.notice(text, above=True)
            case Done():
                reply.pending.append(event.delta)
                self.show_text(reply)
                self._finish(reply, event)

    def _on_failed(self, reply: Reply, error: DsliteError) -> None:
        """A reply ended in an error; its text is kept."""
        reply.failed = True
        self._keep_text(reply)
        if isinstance(error, ContextFullError) and not reply.trim:  # with `trim` no older turn is left to leave out
            self._on_context_full(error)
        else:
            self._chat.view.error(error)
            self._chat.return_queue()

    def _on_left_out(self, reply: Reply, count: int) -> None:
        """The oldest `count` messages did not fit."""
        if reply.is_summary:
            text = f"the summary leaves out the first {count} messages: they do not fit with the others"
            self._chat.view.notice(text, above=True)
        elif reply.end is not None:
            self._chat.view.messages_left_out(self._chat.tree.forget(reply.end, count))

    def show_text(self, reply: Reply) -> None:
        """Bring the view and the message up to the tokens that came."""
        if reply.take_pending_reasoning():
            self._chat.view.reasoning_appended(reply)
        if text := reply.take_pending():
            self._chat.view.text_appended(reply, text)
            if (rate := reply.rate) is not None:
                self._chat.status.add_rate(rate)

    # The end.

    def stop(self) -> bool:
        """Stop the reply and keep its text; return whether there was one. Waiting messages return to the input.

        The engine ends it with a Done event; a reply that waits for a model is removed at once.
        """
        reply = self._chat.reply
        if reply is None or reply.state is ReplyState.STOPPING:
            return False
        self._chat.return_queue()
        if reply.state is ReplyState.QUEUED:
            self._remove(reply)
        else:
            reply.stop()
        return True

    def cut(self) -> None:
        """End the reply without waiting for the engine; its text is kept."""
        if (reply := self._chat.reply) is not None:
            self._keep_text(reply)

    def _keep_text(self, reply: Reply) -> None:
        self.show_text(reply)
        if reply.count and not reply.is_summary:
            self._finish(reply, reply.cut())
        else:
            self._remove(reply)

    def _finish(self, reply: Reply, done: Done) -> None:
        """Fill the message with what came, show it and save it."""
        chat, node = self._chat, reply.node
        reply.finish(done, chat.ref.key, chat.status.stats.weights if chat.status.stats else None)
        chat.status.used = done.prompt_tokens + done.completion_tokens
        if done.timing.decode_s > 0:
            chat.status.add_rate(done.completion_tokens / done.timing.decode_s)
        if reply.is_summary or (not node.content and node.finish_reason == "interrupted"):
            self._remove(reply)
        else:
            chat.reply = None
            chat.view.answer_finished(reply)
            chat.writer.finish(chat.tree, node)
        self._on_finished(reply)

    def _remove(self, reply: Reply) -> None:
        """Remove a reply without text, or one that is no part of the conversation."""
        chat = self._chat
        chat.reply = None
        reply.node.growing = False
        if reply.continues:
            chat.view.answer_finished(reply)
            return
        if not reply.is_summary:
            chat.tree.remove(reply.node)
        chat.view.answer_removed(reply)
