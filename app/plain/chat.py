"""`dslite chat --plain`: the chat line by line, with the terminal's own cursor and the same commands.

For screen readers, simple terminals and pipes: nothing is drawn twice. The logic of the chat is in
app/chat/controller.py; this is its view.
"""

import math
from collections.abc import Callable

from dslite.app.chat.command_completion import CommandCompletion
from dslite.app.chat.commands import ChatCommands, Handler
from dslite.app.chat.comparison import AnswerComparison
from dslite.app.chat.controller import ChatController
from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.find import excerpt, find_spans
from dslite.app.chat.launch import ChatLaunch, WhenFull
from dslite.app.chat.message_tree import Node
from dslite.app.chat.reply import Reply, finish_note
from dslite.app.chat.slash_commands import COMMANDS
from dslite.app.chat.status import ModelState, ReplyState
from dslite.app.chat.token_scores import ScoredAnswer, candidates
from dslite.app.plain.line_input import LineInput
from dslite.app.plain.word_wrap import WordWrap
from dslite.app.sessions.attachments import split_attachments
from dslite.app.settings.profiles import all_profiles
from dslite.app.terminal import console
from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import UsageError

_TICK_S = 0.05
_CLOSE_S = 30.0  # the cache of a long conversation is written meanwhile
_SHORT_LIST = 20
_EXCERPT = 60  # characters of a found place
_GO_ON_WITH = "Go on with 1 or 2? Enter leaves it as it was: "
_OVERFLOW = "Forget the oldest turns (f), go on from a summary in a new chat (s), or stop (Enter)? "
_OVERFLOW_CHOICES: dict[str, WhenFull] = {"f": "forget", "s": "summary"}


def run_plain(launch: ChatLaunch) -> int:
    """Run the chat on stdin and stdout; return the exit code."""
    chat = PlainChat(launch)
    try:
        return chat.run()
    finally:
        chat.close()


class PlainChat:
    """A ChatView that prints."""

    def __init__(self, launch: ChatLaunch, source: LineInput | None = None) -> None:
        self.worker = EngineWorker(launch.loader)
        self.controller = ChatController(launch, self, self.worker)
        own: dict[str, Handler] = {
            "help": self._help,
            "edit": self._edit,
            "branch": self._branch,
            "find": self._find,
            "inspect": self._inspect,
            "theme": lambda _: self.notice("line mode has no colours"),
            "mouse": lambda _: self.notice("line mode leaves the mouse to the terminal"),
        }
        self.commands = ChatCommands(self.controller, own)
        self._launch = launch
        self._source = source or LineInput()
        self._completion = CommandCompletion(self.controller, waits=True)
        self._source.complete(self._complete)
        self._output = WordWrap()
        self._progress = console.TerminalStatus()
        self._shown = self.controller.tree.key
        self._overflow: DsliteError | None = None
        self._comparison: AnswerComparison | None = None
        self._exit_code: int | None = None

    # The loop.

    def run(self) -> int:
        """Read and answer until the input ends."""
        self.start()
        while self._exit_code is None:
            try:
                text = self._source.read()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print("\n/quit or Ctrl+D ends the chat", flush=True)
                continue
            self.take(text)
        return self._exit_code

    def start(self) -> None:
        """Load the model and the conversation to resume."""
        for error in self._launch.warnings:
            self.error(error)
        self.worker.start()
        self._wait()
        self.controller.saved.lookup(lambda store: store.inputs(), self._source.remember)
        if self._launch.resume is not None:
            self.controller.load(self._launch.resume)
        self._wait()
        saved = "" if self._launch.writer.saving else " This chat is not saved."
        print(f"Type a message; /help lists the commands, Ctrl+D ends.{saved}", flush=True)

    def _complete(self, line: str) -> list[str]:
        """What a line can become, for Tab."""
        found = self._completion.candidates(line, is_alone="\n" not in line)
        return list(dict.fromkeys(candidate.text for candidate in found if not candidate.attach))

    def take(self, text: str) -> None:
        """Run a message or a command to its end."""
        self._completion.forget()
        if not text.strip():
            self.controller.cancel_edit()
            return
        try:
            self.commands.enter(text)
        except DsliteError as error:
            self.error(error)
        self._wait()
        if (comparison := self._comparison) is not None and self._exit_code is None:
            self._comparison = None
            self._choose_answer(comparison)
        while self._overflow is not None:
            full, self._overflow = self._overflow, None
            self.controller.choose_overflow(self._ask_overflow(full))
            self._wait()

    def _wait(self) -> None:
        """Take events until the next input is needed. Ctrl+C stops an answer; while a model loads it ends the chat."""
        with Interruption() as interruption:
            stopped = False
            while self.controller.busy and self._exit_code is None:
                self.controller.tick(timeout=_TICK_S)
                if interruption.flag.is_set() and not stopped:
                    stopped = True
                    if not self.controller.stop():
                        self._exit_code = 130
        if interruption.exit_code not in (None, 130):
            self._exit_code = interruption.exit_code
        self._progress.clear()

    def close(self) -> None:
        """Save the text of a running answer, and the cache of the conversation."""
        self.controller.close()
        self.worker.close(_CLOSE_S)
        self._launch.writer.close()
        self.controller.tick()

    # What the controller reports.

    def show_conversation(self) -> None:
        tree = self.controller.tree
        if tree.key == self._shown:
            return  # a branch of the same chat: what follows is printed as it comes
        self._shown = tree.key
        if not tree.path():
            print("a new chat; the old one is saved" if self._launch.writer.saving else "a new chat", flush=True)
            return
        print(f"{console.visible(tree.title)}\n")
        self._print_messages(tree.path())

    def _print_messages(self, nodes: list[Node]) -> None:
        for node in nodes:
            files, text = split_attachments(node.content, node.info)
            shown = "\n".join([*(f"[{file.label}]" for file in files), text])
            self._output.write(f"{'You' if node.role == 'user' else 'Model'}: {console.visible(shown)}\n\n")

    def message_added(self, node: Node) -> None:
        pass  # the terminal shows it where it was typed

    def answer_started(self, reply: Reply) -> None:
        if reply.is_summary:
            self._output.write("Summary: ")

    def text_appended(self, reply: Reply, text: str) -> None:
        self._progress.clear()
        if self._comparison is not None:
            return  # printed with the other answer
        self._output.write(console.visible(text))

    def reasoning_appended(self, reply: Reply) -> None:
        pass  # the status counts it

    def answer_stopping(self, reply: Reply) -> None:
        pass  # answer_finished says so

    def answer_finished(self, reply: Reply) -> None:
        self._progress.clear()
        self._output.end_line()
        if not reply.failed and (note := finish_note(reply.node)):
            print(f"[{note.strip('!() ')}]", flush=True)

    def answer_removed(self, reply: Reply) -> None:
        self._progress.clear()
        self._output.end_line()

    def messages_left_out(self, count: int) -> None:
        console.warn("the context is full: the model no longer sees the oldest messages of this chat")

    def summary_used(self, text: str, note: str) -> None:
        console.warn(note)

    def notice(self, text: str, *, warning: bool = False, above: bool = False) -> None:
        self._progress.clear()
        self._output.end_line()
        if warning or above:
            console.warn(text)
        else:
            print(console.visible(text), flush=True)

    def error(self, error: DsliteError) -> None:
        self._progress.clear()
        self._output.end_line()
        console.show_error(error)

    def hint(self, text: str) -> None:
        if text:
            print(text, flush=True)

    def copy_text(self, text: str, what: str) -> None:
        from dslite.app.terminal.clipboard import copy_natively

        self.notice(f"copied {what} to the clipboard" if copy_natively(text) else text)

    def quit(self) -> None:
        self._exit_code = 0

    def put_into_input(self, text: str, caret: int | None = None) -> None:
        self._source.prefill = text

    def attachments_changed(self) -> None:
        for file in self.controller.attachments.files:
            print(f"[{console.visible(file.label)}]", flush=True)

    def confirm(self, question: str, then: Callable[[], None]) -> None:
        if self._source.interactive and self._source.choose(f"{console.visible(question)} (y/n) ") == "y":
            then()
        else:
            self.notice("nothing was attached")

    def input_text(self) -> str:
        return self._source.prefill

    def status_changed(self) -> None:
        status = self.controller.status
        if status.model is ModelState.LOADING and (event := status.loading) is not None:
            self._progress.show(loading_text(event))
        elif status.reply is ReplyState.PREFILLING and (read := status.prefilling) is not None:
            self._progress.show(reading_text(read))
        elif status.reply is ReplyState.DECODING and status.thinking and self._output.at_line_start:
            self._progress.show(f"thinking · {status.thinking:,} tokens")

    def model_changed(self) -> None:
        pass  # nothing on the terminal names it

    def ask_overflow_choice(self, error: DsliteError) -> None:
        self._overflow = error  # `take` asks once no reply runs, so that Ctrl+C belongs to the question

    def _ask_overflow(self, error: DsliteError) -> WhenFull:
        if not self._source.interactive:
            return "stop"
        self.error(error)
        return _OVERFLOW_CHOICES.get(self._source.choose(_OVERFLOW), "stop")

    def offer_model(self, ref: ModelRef, error: DsliteError) -> None:
        self.error(error)
        if self.controller.status.model is ModelState.NONE:
            console.warn("no model is loaded: /model demo takes the one that ships with dslite")

    def show_comparison(self, comparison: AnswerComparison) -> None:
        self._comparison = comparison  # `take` shows it once both are whole

    def _choose_answer(self, comparison: AnswerComparison) -> None:
        """Print two answers, and ask with which one to go on."""
        for number, side in enumerate(comparison.sides, 1):
            self._output.write(f"[{number}] {console.visible(side.heading)}\n{console.visible(side.text)}\n\n")
        answer = self._source.choose(_GO_ON_WITH) if self._source.interactive else ""
        if answer in ("1", "2"):
            comparison.choose(int(answer) - 1)
        else:
            comparison.leave()

    def show_scores(self, answer: ScoredAnswer) -> None:
        for place, token in enumerate(answer.tokens):
            others = "  ".join(f"{math.exp(each.logprob):.0%} {each.text!r}" for each in candidates(token))
            self.notice(f"{answer.probability(place):4.0%} {token.text!r}   {others}")

    def show_chats(self) -> None:
        self.controller.saved.lookup(lambda store: store.conversations(limit=_SHORT_LIST), self._list_chats)

    def _list_chats(self, chats: list) -> None:  # type: ignore[type-arg]
        for chat in reversed(chats):  # the newest stands next to the prompt
            print(f"{chat.id}  {console.visible(chat.title)}")
        print("/load ID opens one; the beginning of its id will do", flush=True)

    def show_profiles(self) -> None:
        for profile in all_profiles().values():
            print(f"{profile.name}: {console.visible(profile.description)}", flush=True)

    # Commands of this view.

    def _help(self, _: str) -> None:
        for command in COMMANDS:
            words = " ".join(filter(None, (", ".join(command.words), command.hint)))
            print(f"{words}: {command.help}")
        print('Text between """ and """ may have several lines. Ctrl+C stops an answer.', flush=True)

    def _edit(self, text: str) -> None:
        from dslite.app.terminal.editor import edit_text

        written = edit_text(text or self._source.prefill).strip("\n")
        self._source.prefill = ""
        if written:
            print(console.visible(written))
            self.take(written)

    def _branch(self, number: str) -> None:
        self.commands.branch(number)
        if number:
            self._print_messages(self.controller.tree.path()[-2:])

    def _find(self, text: str) -> None:
        if not text:
            raise UsageError("/find needs a text here", "write it as /find TEXT")
        found = [(node, span) for node in self.controller.tree.path() for span in find_spans(text, node.content)]
        for number, (node, (start, end)) in enumerate(found, 1):
            head = f"{number} of {len(found)} · {'You' if node.role == 'user' else 'Model'}: "
            print(head + console.visible(excerpt(node.content, start, end, _EXCERPT)), flush=True)
        if not found:
            print(f"{console.visible(text)}: not found", flush=True)

    def _inspect(self, _: str) -> None:
        stats = self.controller.status.stats
        if stats is None:
            raise UsageError("no model is loaded")
        for name, value in {**stats.memory, **stats.experts}.items():
            print(f"{name.replace('_', ' ')}: {value:,}", flush=True)
