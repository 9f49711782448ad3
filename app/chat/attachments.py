"""Files that the user attaches to the next message. A file is read when it is attached, not when it is sent."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dslite.app.chat.saved_chats import SavedChats
from dslite.app.chat.state import ChatState
from dslite.app.sessions.attachments import Attachment
from dslite.app.terminal.attached_file import MOST_BYTES, file_block, find_files, read_attached
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home
from dslite.runtime.units import size_text

_COUNTED_AT_ONCE = 100_000  # characters: 30 ms of the tokenizer


class Attachments:
    """The files of the next message. Only what the user names is read: `@` in a text means nothing by itself."""

    def __init__(self, chat: ChatState, background: SavedChats, remote_host: str | None) -> None:
        """`remote_host` gets the messages; None where they stay on this machine."""
        self._chat, self._background, self._remote_host = chat, background, remote_host
        self._allowed_for: int | None = None  # the conversation whose files may be sent to that host

    @property
    def files(self) -> Sequence[Attachment]:
        return tuple(self._chat.attached)

    def attach(self, words: str) -> None:
        """Attach a file, or those of a folder or a pattern after a question. Raises UsageError."""
        paths = find_files(words)
        if paths == [expand_home(words)]:
            self._add_allowed([_read(paths[0])])
            return
        files = [file for path in paths if (file := _read_text(path)) is not None]
        if not files:
            raise UsageError(f"{words} has no file of text", "attach files of text")
        total = sum(len(file.block) for file in files)
        if total > MOST_BYTES:
            raise UsageError(f"{words} has {size_text(total)}; the most is {size_text(MOST_BYTES)}", "name fewer files")
        left_out = len(paths) - len(files)
        others = f" {left_out} that are no text are left out." if left_out else ""
        question = f"Attach {len(files)} files with {size_text(total)}?{others}"
        self._chat.view.confirm(question, partial(self._add_allowed, files))

    def put(self, files: Sequence[Attachment]) -> None:
        """Attach files of a message that is edited; they are known already."""
        self._chat.attached[:] = files
        self._chat.view.attachments_changed()

    def remove_last(self) -> bool:
        """Take the last file away again; False where there is none."""
        if not self._chat.attached:
            return False
        self._chat.attached.pop()
        self._chat.view.attachments_changed()
        return True

    def clear(self) -> None:
        if self._chat.attached:
            self.put(())

    def take(self) -> list[Attachment]:
        """The files, for a message that is sent."""
        files = list(self._chat.attached)
        self.clear()
        return files

    def _add_allowed(self, files: Sequence[Attachment]) -> None:
        """Add files; before the first of a conversation leaves this machine, the user is asked."""
        if self._remote_host is None or self._allowed_for == self._chat.tree.key:
            self._add(files)
            return
        names = ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")
        self._chat.view.confirm(f"Send {names} to {self._remote_host}?", partial(self._allow, files))

    def _allow(self, files: Sequence[Attachment]) -> None:
        self._allowed_for = self._chat.tree.key
        self._add(files)

    def _add(self, files: Sequence[Attachment]) -> None:
        self._chat.attached += files
        self._chat.view.attachments_changed()
        loaded = self._chat.worker.loaded
        if loaded is None or (count := loaded.count_tokens) is None:
            return
        for file in files:
            if len(file.block) <= _COUNTED_AT_ONCE:
                self._counted(file, count(file.block))
            else:
                self._background.lookup(_counting(count, file), partial(self._counted, file))

    def _counted(self, file: Attachment, tokens: int) -> None:
        """The tokens of a file are known; it may have been sent or removed meanwhile."""
        attached = self._chat.attached
        if file in attached:
            attached[attached.index(file)] = replace(file, tokens=tokens)
            self._chat.view.attachments_changed()


def _counting(count: Callable[[str], int], file: Attachment) -> Callable[[object], int]:
    return lambda _: count(file.block)


def _read_text(path: Path) -> Attachment | None:
    """A file of a folder; None where it is no text."""
    try:
        return _read(path)
    except UsageError:
        return None


def _read(path: Path) -> Attachment:
    """Raises UsageError."""
    block = file_block(str(path), read_attached(path))
    return Attachment(path.name, block)
