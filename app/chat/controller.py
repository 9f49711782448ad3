"""The chat behind both front ends. No Textual, no Rich, no printing.

A front end implements `ChatView`, forwards what the user does to the methods here, and calls `tick` from its loop. The
engine's thread (`EngineWorker`) and the writer's (`ConversationWriter`) get immutable jobs and report by events, which
`tick` takes; so everything here runs on the front end's thread. The parts of the chat share one `ChatState`, which
the controller extends by what the user can do.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dslite.app.chat import autosave, summary
from dslite.app.chat import engine_worker as engine
from dslite.app.chat.attachments import Attachments
from dslite.app.chat.auto_title import AutoTitle
from dslite.app.chat.comparison import AnswerComparison, ComparedAnswer, compared
from dslite.app.chat.context_overflow import ContextOverflow
from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.launch import ChatLaunch, WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.model_switch import ModelSwitch
from dslite.app.chat.reply import Reply
from dslite.app.chat.reply_lifecycle import ReplyLifecycle
from dslite.app.chat.saved_chats import SavedChats
from dslite.app.chat.state import ChatState, UnsentMessage
from dslite.app.chat.status import ModelState, ReplyState
from dslite.app.chat.token_scores import ScoredAnswer
from dslite.app.chat.view import ChatView
from dslite.app.errors import SessionsError
from dslite.app.sessions.attachments import with_attachments
from dslite.app.sessions.ids import title_of
from dslite.app.settings.profiles import get_profile
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Candidate, Compiling, Loading

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore


_CANDIDATES = 5


class ChatController(ChatState):
    """One conversation at a time, and the model that answers in it."""

    def __init__(self, launch: ChatLaunch, view: ChatView, worker: EngineWorker) -> None:
        super().__init__(launch, view, worker)
        self.saved = SavedChats(self)
        self._comparison: AnswerComparison | None = None  # the last one
        self._scoring: tuple[Node, engine.ScoreJob] | None = None
        self._titles = AutoTitle(self, launch.config.auto_title)
        self.attachments = Attachments(self, self.saved, launch.loader.remote_host)
        self.removed_profiles: list[tuple[str, str]] = []  # names and texts, for undo
        self._replies = ReplyLifecycle(
            self,
            on_finished=self._on_reply_finished,
            on_context_full=lambda error: self._overflow.on_full(error),
        )
        self._models = ModelSwitch(self, self._replies, launch.loader)
        begin = partial(self.begin, keep_choice=True)
        self._overflow = ContextOverflow(self, self._replies, begin, launch.config.when_full)
        self._models.load(self.ref)

    @property
    def busy(self) -> bool:
        """Whether events will come without the user: of loading, of a reply, of a query to the store."""
        loading = self.status.model in (ModelState.STARTING, ModelState.LOADING)
        return (
            loading
            or self._scoring is not None
            or self.saved.pending > 0
            or self._titles.running
            or (self.reply is not None and self.reply.state != ReplyState.QUEUED)
        )

    # Messages.

    def send(self, text: str) -> None:
        """Ask a question of the user, with the attached files: now, or after the answer that is being generated."""
        self._send(UnsentMessage(text, tuple(self.attachments.take())))

    def _send(self, message: UnsentMessage) -> None:
        self._titles.cancel()
        if self.reply is not None:
            self.queue.append(message)
            self.changed()
            return
        text, info = with_attachments(message.files, message.text)
        edited = self.editing
        self.cancel_edit()
        if edited is not None and edited.role == "assistant":
            self._replace_answer(edited, text)
            return
        self.tree.title = self.tree.title or title_of(message.shown)
        question = self.tree.add("user", text, parent=edited.parent if edited else self.tree.leaf)
        question.info = info
        self.writer.append(self.tree, question)
        if edited is not None:
            self.view.show_conversation()
        else:
            self.view.message_added(question)
        self._replies.ask(question)

    def _replace_answer(self, node: Node, text: str, ids: tuple[int, ...] | None = None) -> None:
        """Add an answer that the user has rewritten as a branch; `continue_answer` goes on from it.

        `ids` are its tokens, where they are known.
        """
        answer = self.tree.add("assistant", text, parent=node.parent)
        answer.finish_reason, answer.token_ids = "interrupted", ids
        answer.info = {"model": self.ref.key, "edited": True}
        self.writer.append(self.tree, answer)
        self.view.show_conversation()

    def continue_answer(self) -> None:
        """Lengthen the last answer. Raises UsageError."""
        self._replies.continue_answer()

    def stop(self) -> bool:
        """Stop the reply at once and keep its text; return whether there was one. Waiting messages return to the
        input."""
        if not self._replies.stop():
            return False
        if (reply := self.reply) is not None:
            self.tick()
            if self.reply is reply:
                self.view.answer_stopping(reply)
        self.changed()
        return True

    def regenerate(self, node: Node | None = None, *, temperature: float | None = None) -> None:
        """Answer again; the earlier answer stays as a branch. Raises UsageError."""
        self.refuse_while_answering()
        leaf = node or self.tree.leaf
        if leaf is None:
            raise UsageError("there is nothing to answer again yet")
        question = self.tree.question_of(leaf)
        self.tree.leaf = question
        self.view.show_conversation()
        self._replies.ask(question, changes={} if temperature is None else {"temperature": temperature})

    def compare(self, words: Sequence[str], node: Node | None = None) -> None:
        """Show two answers to a question beside each other; see `compared`. Raises UsageError, NotFoundError."""
        self.refuse_while_answering()
        node = self._answer(node)
        sides = compared(self.tree, self.settings, words, node)
        question, tree = self.tree.question_of(node), self.tree

        def ask(side: ComparedAnswer) -> Node:
            self.tree.leaf = question
            self.view.show_conversation()
            return self._replies.ask(question, changes=dict(side.changes), settings=side.settings).node

        def show(node: Node) -> None:
            if self.tree is tree and self.reply is None and node in tree.siblings(node):
                tree.end_in(node)
                self.writer.set_leaf(tree)
                self.view.show_conversation()

        self._comparison = AnswerComparison(sides, tree.leaf, ask, show)
        self.view.show_comparison(self._comparison)
        self._comparison.start()

    def _answer(self, node: Node | None) -> Node:
        """A message where it is an answer, else the last answer. Raises UsageError."""
        return node if node is not None and node.role == "assistant" else self.tree.last_answer()

    def _on_reply_finished(self, reply: Reply) -> None:
        self._overflow.on_finished(reply)
        if self._comparison is not None:
            self._comparison.on_finished(reply)
        if not reply.is_summary:
            self._titles.on_finished(reply)

    def score(self, node: Node | None = None) -> None:
        """Find how likely each token of an answer was; `view.show_scores` gets them. Raises UsageError."""
        self.refuse_while_answering()
        node = self._answer(node)
        if self.status.model is not ModelState.READY:
            raise UsageError("no model is loaded", "/model NAME opens one")
        self._scoring = node, engine.ScoreJob(self.tree.messages(node, self.ref.key), _CANDIDATES)
        self.worker.score(self._scoring[1])
        self.view.hint("computing the probabilities …")

    def _on_scored(self, event: engine.TokensScored) -> None:
        if self._scoring is None or self._scoring[1] is not event.job:
            return
        node, self._scoring = self._scoring[0], None
        self.view.hint("")
        if event.error is not None:
            self.view.error(event.error)
        elif not event.tokens:
            self.view.notice("probabilities need the model in this process: they are not known here")
        else:
            self.view.show_scores(ScoredAnswer(node, event.tokens))

    def branch_at(self, answer: ScoredAnswer, place: int, candidate: Candidate) -> None:
        """Go on from another token in an answer, as a branch. Raises UsageError."""
        self.refuse_while_answering()
        self._replace_answer(answer.node, *answer.with_candidate(place, candidate))
        self._replies.continue_answer()

    def edit(self, node: Node | None = None) -> None:
        """Put a message, or the last question, into the input; sending it makes a branch. Raises UsageError."""
        self.refuse_while_answering()
        questions = [message for message in self.tree.path() if message.role == "user"]
        node = node or (questions[-1] if questions else None)
        if node is None:
            raise UsageError("there is no message to edit yet")
        message = UnsentMessage.of(node)
        self.editing = node
        self.attachments.put(message.files)
        self.view.put_into_input(message.text)
        self.view.hint("editing: Enter makes a branch, Esc leaves it as it was")

    def cancel_edit(self) -> None:
        """Leave the message that is edited as it was."""
        if self.editing is not None:
            self.editing = None
            self.attachments.clear()
            self.view.hint("")

    def show_branch(self, node: Node, step: int) -> Node | None:
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

    # Conversations.

    def begin(self, tree: MessageTree | None = None, *, keep_choice: bool = False) -> None:
        """Make a new or a loaded conversation the active one; the one before stays saved."""
        self._cut()
        self.return_queue()
        self.editing = None
        self.view.hint("")
        self._overflow.reset(keep_choice=keep_choice)
        if tree is None:
            self.settings.system = summary.without(self.settings.system)
        self.tree = tree or self.new_tree()
        self.attachments.clear()
        info = self.tree.leaf.info if self.tree.leaf else {}
        self.status.used = info.get("prompt_tokens", 0) + info.get("completion_tokens", 0)
        self.status.rates.clear()
        self.worker.reset_stats()
        self.view.show_conversation()
        self.changed()

    def load(
        self,
        identify: Callable[["SessionStore"], str | None],
        *,
        message: int | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the conversation whose id a query returns, with its profile and system message.

        `message` is the id of one in the database: a branch that has it is shown. `then` is called once it is.
        """

        def find(store: "SessionStore") -> MessageTree | None:
            identity = identify(store)
            return MessageTree.load(store.get(identity), store.tree(identity)) if identity else None

        def loaded(tree: MessageTree | None) -> None:
            if tree is not None:
                tree.show(message)
                self._on_loaded(tree)
                then()

        self.saved.lookup(find, loaded)

    def _on_loaded(self, tree: MessageTree) -> None:
        if tree.profile and tree.profile != self.settings.profile.name:
            try:
                self.settings.use(get_profile(tree.profile))
            except DsliteError as error:
                self.view.error(error)
        self.settings.system = tree.system or ""
        self.begin(tree)

    def rename(self, title: str) -> None:
        self.tree.title = title
        self.writer.rename(self.tree, title)
        self.changed()

    def delete_chat(self, identity: str, title: str, then: Callable[[], None]) -> None:
        """Delete a saved chat; a new one begins where it is the active one."""
        if identity == self.tree.id:
            self.begin()
        self.saved.delete(identity, title, then)

    # Settings and models.

    def configure(self) -> None:
        """Apply changed settings to later answers, and save them with the chat."""
        self.tree.system = self.settings.system_message
        self.writer.configure(self.tree)
        self.view.model_changed()
        self.changed()

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
        """Load another model. Raises UsageError."""
        self._models.use(name)

    def choose_overflow(self, choice: WhenFull | None) -> None:
        """The user's answer to `ask_overflow_choice`; None leaves the question without an answer."""
        self._overflow.answer(choice)

    def close(self) -> None:
        """End the reply and keep its text; the caller then closes worker and writer."""
        self._cut()

    def _cut(self) -> None:
        self.stop()
        self._replies.cut()

    # Events.

    def tick(self, *, draw: bool = True, timeout: float = 0.0) -> None:
        """Take the events of other threads. Without `draw` text waits; with no event, wait `timeout` s for one."""
        self.saved.deliver()
        for saved in self.writer.drain():
            self._on_writer_event(saved)
        for event in self.worker.drain(timeout):
            self._on_engine_event(event)
            if self.reply is None and self.queue and not self._overflow.asks:
                self._send(self.queue.pop(0))
        if draw and (reply := self.reply) is not None:
            self._replies.show_text(reply)
            if not reply.is_summary:  # text and tokens are those of one moment only now
                self.writer.update_now_and_then(self.tree, reply.node, reply.ids)
        self.changed()

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
        match event:
            case engine.GenerationEvent() | engine.GenerationFailed() | engine.PrefillStarted():
                self._replies.take(event)
                self._titles.take(event)
            case engine.LoadingStarted():
                self._models.on_loading(None)
            case Loading() | Compiling():
                self._models.on_loading(event)
            case engine.ModelReady(ref, stats):
                self._models.on_ready(ref, stats)
            case engine.TokensScored():
                self._on_scored(event)
            case engine.StatsUpdated(stats):
                self.status.stats = stats
            case engine.ModelUnavailable(ref, error, absent, kept):
                self._models.on_unavailable(ref, error, absent=absent, kept=kept)
