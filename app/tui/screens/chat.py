"""The chat's screen: its widgets, its keys, and the handlers of its widgets' messages."""

from functools import partial
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Rule, Static

from dslite.app.chat.command_completion import CommandCandidate, CommandCompletion
from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.message_tree import Node
from dslite.app.chat.reply import facts
from dslite.app.tui import messages
from dslite.app.tui.control.commands import ScreenCommands
from dslite.app.tui.control.view import ScreenView
from dslite.app.tui.style import keys
from dslite.app.tui.textual_fixes.drag import DragWithinScreen
from dslite.app.tui.transcript.items import short_name
from dslite.app.tui.transcript.sanitize import one_line
from dslite.app.tui.transcript.transcript import Transcript
from dslite.app.tui.widgets.attachment_line import AttachmentLine
from dslite.app.tui.widgets.command_hints import CommandHints
from dslite.app.tui.widgets.find_bar import FindBar
from dslite.app.tui.widgets.inspector import Inspector
from dslite.app.tui.widgets.lower_rule import LowerRule
from dslite.app.tui.widgets.prompt import Prompt
from dslite.app.tui.widgets.status import StatusLine, TitleLine
from dslite.app.tui.widgets.waiting import WaitingMessages

NARROW = 80  # columns under which a panel takes the whole screen
LOW = 14  # lines under which the title is hidden


class ChatScreen(DragWithinScreen):
    """The conversation, the messages that wait, the prompt, the status line; the inspector beside them."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.bindings()]
    AUTO_FOCUS = "#prompt"

    def __init__(self, launch: ChatLaunch, worker: EngineWorker) -> None:
        super().__init__()
        self.title_line = TitleLine(id="title")
        self.transcript = self.drag_widget = Transcript(id="transcript")
        self.waiting = WaitingMessages(id="waiting")
        self.attachment_line = AttachmentLine(id="attached")
        self.find_bar = FindBar(id="find")
        self.hints = CommandHints(self._candidates, id="hints")
        self.prompt = Prompt(id="prompt")
        self.prompt.hints = self.hints
        self.status_line = StatusLine(id="status")
        self.inspector: Inspector | None = None
        self.lower_rule = LowerRule(classes="rule")
        self._title = ""
        self.view = ScreenView(
            self, self.transcript, self.prompt, self.refresh_lines, self.show_attachments, launch, worker
        )
        self.controller = self.view.controller
        self.commands = ScreenCommands(
            self.controller,
            self.post_message,
            self.chosen_message,
            lambda: self.get_selected_text() or "",
            self.open_find,
        )

        self._completion = CommandCompletion(self.controller, self._values_came)

    def compose(self) -> ComposeResult:
        with Horizontal(id="body"), Vertical(id="conversation"):
            yield self.title_line
            yield Rule(classes="rule", id="title-rule")
            yield self.transcript
            yield self.waiting
            yield self.attachment_line
            yield self.find_bar
            yield self.hints
            yield self.lower_rule
            with Horizontal(id="ask"):
                yield Static("› ", classes="mark")
                yield self.prompt
            yield Rule(classes="rule")
        yield self.status_line

    def on_mount(self) -> None:
        self.view.show_conversation()

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < NARROW, "narrow")
        self.set_class(event.size.height < LOW, "low")
        self.call_after_refresh(self._align)

    def _align(self) -> None:
        """Put the prompt below the text, which stands in the middle of a wide screen."""
        self.query_one("#ask").styles.padding = (0, 1, 0, 1 + self.transcript.empty_columns)
        self.refresh_lines()

    def refresh_lines(self) -> None:
        """Draw title, waiting messages, status and inspector again where they changed."""
        if not self.is_attached:
            return
        controller = self.controller
        self.status_line.show(controller.status)
        self.waiting.show(controller.status.waiting)
        title = one_line(controller.tree.title) or "New chat"
        if title != self._title:
            self._title = title
            self.post_message(messages.TitleChanged(title))
        model = one_line(short_name(controller.ref.name))
        self.title_line.show(title, f"{model} · profile {one_line(controller.settings.profile.name)}")
        if self.inspector is not None and self.inspector.is_attached:
            self.inspector.show()

    def toggle_inspector(self) -> None:
        watched = self.controller.worker.watched
        if self.inspector is None:
            self.inspector = Inspector(self.controller.status)
            self.query_one("#body").mount(self.inspector)
            watched.set()
        else:
            self.inspector.remove()
            self.inspector = None
            watched.clear()
        self.set_class(self.inspector is not None, "inspecting")

    # Messages of the widgets.

    @on(Prompt.Submitted)
    def _submitted(self, event: Prompt.Submitted) -> None:
        if not self.commands.attempt(lambda: self.commands.enter(event.text)):
            self.prompt.reject(event.text)

    @on(Prompt.Changed)
    def _typed(self, event: Prompt.Changed) -> None:
        if event.text_area is not self.prompt:
            return
        if not self.prompt.document[0].startswith("/"):
            self._completion.forget()
        self.hints.show_for("" if self.prompt.earlier.is_shown else self.prompt.before_caret)

    @on(Prompt.Attach)
    def _attach_files(self, event: Prompt.Attach) -> None:
        for path in event.paths:
            self.commands.attempt(partial(self.controller.attachments.attach, path))

    @on(Prompt.RemoveAttachment)
    def _remove_attachment(self) -> None:
        self.controller.attachments.remove_last()

    def show_attachments(self) -> None:
        """The files of the message that is being written have changed."""
        files, status = self.controller.attachments.files, self.controller.status
        room = status.stats.context - status.used if status.stats and status.stats.context else None
        self.attachment_line.show(files, room)
        self.prompt.sends_empty = bool(files)

    def _candidates(self, line: str) -> list[CommandCandidate]:
        """What the line up to the caret may become. A command is alone: of several lines it is a message."""
        return self._completion.candidates(line, is_alone=self.prompt.document.line_count == 1)

    def _values_came(self) -> None:
        """More values can be offered; called on another thread."""
        self.call_later(partial(self.hints.show_for, self.prompt.before_caret, anew=True))

    @on(Prompt.Quit)
    def _quit(self) -> None:
        self.post_message(messages.Quit())

    @on(Prompt.EditLast)
    def _edit_last(self) -> None:
        self.commands.attempt(self.controller.edit)

    @on(Prompt.FocusMessages)
    def _focus_messages(self) -> None:
        self.transcript.focus()

    @on(Prompt.Scroll)
    def _scroll(self, event: Prompt.Scroll) -> None:
        lines = max(self.transcript.size.height - 2, 1)
        self.transcript.scroll_relative(y=event.pages * lines, animate=False)

    @on(Transcript.EndInView)
    def _end_in_view(self, event: Transcript.EndInView) -> None:
        self.lower_rule.show("" if event.yes else "↓ more below · Ctrl+End")

    @on(LowerRule.Pressed)
    @on(Prompt.ScrollToEnd)
    def _scroll_to_end(self) -> None:
        self.action_scroll_to_end()

    @on(Transcript.Walk)
    def _walk(self, event: Transcript.Walk) -> None:
        node = self.controller.tree.node(event.key)
        shown = self.controller.show_branch(node, event.step) if node is not None else None
        if shown is not None:
            self.transcript.choose(self.transcript.item(shown.key))

    @on(Transcript.ChosenChanged)
    def _chosen_changed(self) -> None:
        node = self.chosen_message()
        self.controller.status.facts = one_line(facts(node)) if node is not None else ""
        self.refresh_lines()

    @on(Transcript.CopyCode)
    def _copy_code(self, event: Transcript.CopyCode) -> None:
        self.commands.run("copy", str(event.number))

    @on(Transcript.Leave)
    def _leave_messages(self, event: Transcript.Leave) -> None:
        self.prompt.focus()
        if event.text:
            self.prompt.insert(event.text)

    # Finding a text.

    def open_find(self, text: str) -> None:
        """Look for a text in the conversation; an empty one is asked for."""
        self.find_bar.open(text)
        self._find(FindBar.Changed(self.find_bar.text))

    def find_hit(self, words: str, key: int | None) -> None:
        """Mark what a search has found in a conversation, and show its place in a message."""
        texts = [words, *words.split(), words]  # all in one place, or each by itself, or not at all
        text = next((text for text in texts if self.transcript.find(text, key)), words)
        self.find_bar.open(text, focus=False)  # keys go to the input of the chat that was opened
        self._show_count()

    @on(FindBar.Changed)
    def _find(self, event: FindBar.Changed) -> None:
        self.transcript.find(event.text)
        self._show_count()

    @on(FindBar.Step)
    def _find_step(self, event: FindBar.Step) -> None:
        self.transcript.find_step(event.direction)
        self._show_count()

    @on(FindBar.Closed)
    def _close_find(self) -> None:
        self.find_bar.display = False
        self.transcript.end_find()
        self.prompt.focus()

    @on(Transcript.FoundChanged)
    def _show_count(self) -> None:
        found = self.transcript.found
        self.find_bar.show(found.count_text if found is not None and found.text.strip() else "")

    # Actions of keys.

    def chosen_message(self) -> Node | None:
        """The message that is marked, while the messages have the focus."""
        if self.transcript.has_focus and self.transcript.chosen is not None:
            return self.controller.tree.node(self.transcript.chosen.key)
        return None

    def action_command(self, name: str) -> None:
        self.commands.run(name)

    def action_stop(self) -> None:
        if self.controller.stop():
            return
        if self.hints.display:
            self.hints.close()
        elif self.controller.editing is not None:
            self.controller.cancel_edit()
            self.prompt.put("")
        elif self.get_selected_text():
            self.clear_selection()
        elif self.find_bar.display:
            self._close_find()
        elif self.inspector is not None and self.has_class("narrow"):
            self.toggle_inspector()
        self.prompt.focus()

    def action_interrupt(self) -> None:
        """Ctrl+C: a selection is copied; an answer stops; input is cleared; then a hint, and the second one quits."""
        if selected := self.get_selected_text() or ("" if self.prompt.is_rejected else self.prompt.selected_text):
            self.post_message(messages.Interrupt(selected))
        elif self.controller.stop():
            return
        elif self.find_bar.has_focus_within:
            self._close_find()
        elif self.prompt.text or self.controller.attachments.files:
            self.controller.attachments.clear()
            self.controller.cancel_edit()
            self.prompt.put("")
        else:
            self.post_message(messages.Interrupt())

    def action_edit_chosen(self) -> None:
        chosen = self.transcript.chosen
        node = self.controller.tree.node(chosen.key) if chosen else None
        self.commands.attempt(partial(self.controller.edit, node))

    def action_profiles(self) -> None:
        self.post_message(messages.ShowProfiles())

    def action_choose_question(self, step: int) -> None:
        """Mark the question before or after the one that is marked, or the last one."""
        items, chosen = self.transcript.messages, self.transcript.chosen
        place = items.index(chosen) if self.transcript.has_focus and chosen in items else len(items)
        others = items[place + 1 :] if step > 0 else items[:place][::-1]
        question = next((item for item in others if item.speaker == "user"), None)
        if question is not None:
            self.transcript.focus()
            self.transcript.choose(question)

    def action_scroll_to_start(self) -> None:
        self.transcript.show_line(0)

    def action_scroll_to_end(self) -> None:
        self.transcript.place(to_end=True)
