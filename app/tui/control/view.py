"""The full screen's ChatView: the conversation as items of the transcript, hints in the status line."""

from collections.abc import Callable
from typing import Any

from textual.screen import Screen
from textual.timer import Timer

from dslite.app.chat.comparison import AnswerComparison
from dslite.app.chat.controller import ChatController
from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.markdown_blocks import Block, code_blocks
from dslite.app.chat.message_tree import Node
from dslite.app.chat.reply import NOTES, Reply, finish_note
from dslite.app.chat.token_scores import ScoredAnswer
from dslite.app.terminal.console import error_text
from dslite.app.tui import messages
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.app.tui.transcript.items import GREETING, greeting, item_of, items_of, short_name
from dslite.app.tui.transcript.sanitize import inert, one_line
from dslite.app.tui.transcript.transcript import Transcript
from dslite.app.tui.widgets.prompt import Prompt
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

HINT_S = 4.0


class ScreenView:
    """Draws the chat of a controller, which it owns."""

    def __init__(
        self,
        screen: Screen[Any],
        transcript: Transcript,
        prompt: Prompt,
        refresh_lines: Callable[[], None],
        show_attachments: Callable[[], None],
        launch: ChatLaunch,
        worker: EngineWorker,
    ) -> None:
        self._screen, self._transcript, self._prompt = screen, transcript, prompt
        self._refresh_lines, self._show_attachments = refresh_lines, show_attachments
        self._item: TranscriptItem | None = None  # of the answer that grows
        self._delayed: list[TranscriptItem] = []  # notices that wait for its end
        self._hint_timer: Timer | None = None
        self._shown = 0  # key of the tree on screen
        self.controller = ChatController(launch, self, worker)

    # The conversation.

    def show_conversation(self) -> None:
        controller = self.controller
        self._item = None
        self._delayed.clear()
        self._transcript.show(items_of(controller.tree, controller.ref.key) or [self._greeting()])
        self._label_code()
        self._refresh_lines()
        if self._shown != controller.tree.key:
            self._shown = controller.tree.key
            self._screen.post_message(messages.ConversationChanged())

    def _greeting(self) -> TranscriptItem:
        controller = self.controller
        return greeting(controller.ref, controller.status.stats, controller.settings)

    def model_changed(self) -> None:
        if (item := self._transcript.item(GREETING)) is not None:
            item.text = self._greeting().text
            self._transcript.redraw_item(item)
        self._screen.post_message(messages.ModelLoaded())

    def message_added(self, node: Node) -> None:
        if (item := self._transcript.item(GREETING)) is not None:
            self._transcript.remove_item(item)
        self._transcript.add(item_of(self.controller.tree, node, self.controller.ref.key))

    def answer_started(self, reply: Reply) -> None:
        model = self.controller.ref.key
        item = self._transcript.item(reply.node.key)
        if item is None:
            item = item_of(self.controller.tree, reply.node, model) if not reply.is_summary else _summary(reply, model)
            self._transcript.add(item)
        self._transcript.drop_behind(item)  # notices: an answer grows at the end
        item.growing, item.note, item.splitter = True, "", None
        self._transcript.redraw_item(item)
        self._item = item
        self._label_code()

    def text_appended(self, reply: Reply, text: str) -> None:
        if self._item is not None:
            self._transcript.extend(self._item, text)

    def reasoning_appended(self, reply: Reply) -> None:
        if (item := self._item) is not None:
            item.reasoning, item.reasoning_tokens = reply.node.reasoning, reply.node.reasoning_tokens
            self._transcript.redraw_item(item)

    def answer_stopping(self, reply: Reply) -> None:
        if self._item is not None:
            self._item.note = NOTES["interrupted"]
            self._transcript.redraw_item(self._item)

    def answer_finished(self, reply: Reply) -> None:
        if (item := self._item) is not None:
            item.note = finish_note(reply.node)
            self._transcript.finish(item)
            info = reply.node.info
            seconds = float(info.get("prefill_s", 0.0)) + float(info.get("decode_s", 0.0))
            self._screen.post_message(messages.AnswerFinished(seconds))
        self._end_answer()
        self._label_code()

    def answer_removed(self, reply: Reply) -> None:
        if self._item is not None:
            self._transcript.remove_item(self._item)
        self._end_answer()
        self._label_code()

    def _end_answer(self) -> None:
        self._item = None
        while self._delayed:
            self._transcript.add(self._delayed.pop(0))

    def _label_code(self) -> None:
        """Number the code blocks of the last answer, which are those that `/copy N` copies."""
        answers = [item for item in self._transcript.messages if item.speaker == "assistant"]
        for item in answers:
            fences = [block for block in item.splitter.blocks if block.kind == "fence"] if item.splitter else []
            if item.growing or not fences:
                continue
            numbers = _code_numbers(item, fences) if item is answers[-1] else [0] * len(fences)
            if numbers != [block.number for block in fences]:
                for block, number in zip(fences, numbers, strict=True):
                    block.number = number
                self._transcript.redraw_item(item)

    # Notices.

    def notice(self, text: str, *, warning: bool = False, above: bool = False) -> None:
        item = TranscriptItem(-1, "notice", "", ("! " if warning else "") + text)
        if self._item is None:
            self._transcript.add(item)
        elif above:
            self._transcript.add_before_last(item)
        else:
            self._delayed.append(item)

    def error(self, error: DsliteError) -> None:
        self.notice(error_text(error), warning=True)

    def messages_left_out(self, count: int) -> None:
        self.notice(f"the model no longer sees the first {count} messages of this chat", above=True)

    def summary_used(self, text: str, note: str) -> None:
        self.notice(f"{note}:\n{text}")

    def hint(self, text: str) -> None:
        if self._hint_timer is not None:
            self._hint_timer.stop()
            self._hint_timer = None
        self.controller.status.hint = one_line(text)
        if text:
            self._hint_timer = self._screen.set_timer(HINT_S, self._end_hint)
        self._refresh_lines()

    def _end_hint(self) -> None:
        self.hint("")

    def status_changed(self) -> None:
        self._refresh_lines()

    # What the controller asks of the application.

    def copy_text(self, text: str, what: str) -> None:
        self._screen.post_message(messages.CopyText(text, what))

    def show_comparison(self, comparison: AnswerComparison) -> None:
        self._screen.post_message(messages.ShowComparison(comparison))

    def show_scores(self, answer: ScoredAnswer) -> None:
        self._screen.post_message(messages.ShowScores(answer))

    def show_chats(self) -> None:
        self._screen.post_message(messages.ShowSessions())

    def show_profiles(self) -> None:
        self._screen.post_message(messages.ShowProfiles())

    def quit(self) -> None:
        self._screen.post_message(messages.Quit())

    def put_into_input(self, text: str, caret: int | None = None) -> None:
        self._prompt.put(text, caret)
        self._prompt.focus()

    def attachments_changed(self) -> None:
        self._show_attachments()

    def confirm(self, question: str, then: Callable[[], None]) -> None:
        self._screen.post_message(messages.Confirm(question, then))

    def input_text(self) -> str:
        return self._prompt.text

    def ask_overflow_choice(self, error: DsliteError) -> None:
        self._screen.post_message(messages.AskOverflowChoice(error))

    def offer_model(self, ref: ModelRef, error: DsliteError) -> None:
        self._screen.post_message(messages.OfferModel(ref, error))


def _code_numbers(item: TranscriptItem, fences: list[Block]) -> list[int]:
    """For each fence the number of its code among those that `/copy` counts, nested fences included."""
    codes = [code.text for code in code_blocks(inert(item.text))]
    numbers, place = [], 0
    for source in (inert(fence.source) + "\n" for fence in fences):  # a block keeps its tabs, inert text has none
        found = codes.index(source, place) + 1 if source in codes[place:] else 0
        numbers.append(found)
        place = found or place
    return numbers


def _summary(reply: Reply, model: str) -> TranscriptItem:
    return TranscriptItem(reply.node.key, "assistant", f"{short_name(model)} · summary for a new chat", growing=True)
