"""F1: every key and every command."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from dslite.app.chat.slash_commands import COMMANDS
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.style import keys


class HelpScreen(ModalPanel[None]):
    """Closed by Esc, F1 or q."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "dismiss", "Close", show=False)]

    def __init__(self, keymap: Mapping[str, str]) -> None:
        """`keymap` is [keys] of config.toml."""
        super().__init__()
        self._keymap = keymap

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help", classes="panel"):
            yield Static(Text("Keys", "bold"))
            yield Static(self._table(self._keys()))
            yield Static(Text("\nOn messages", "bold"))
            yield Static(self._table(keys.MESSAGE_KEYS))
            yield Static(Text("\nCommands", "bold"))
            commands = ((" ".join(filter(None, (" ".join(c.words), c.hint))), c.help) for c in COMMANDS)
            yield Static(self._table(commands))
            yield Static(Text("\nKeys are changed in config.toml under [keys]; Esc closes this.", "dim"))

    def on_mount(self) -> None:
        self.query_one("#help").focus()

    def _keys(self) -> list[tuple[str, str]]:
        own = [(keys.label(self._keymap.get(key.name, key.keys)), key.help) for key in keys.KEYS]
        return [*keys.PROMPT_KEYS, *own]

    def _table(self, rows: Iterable[tuple[str, str]]) -> Table:
        table = Table.grid(padding=(0, 2))
        wide = self.app.size.width >= 70
        table.add_column(no_wrap=wide, style="bold", min_width=32 if wide else None, max_width=32 if wide else 16)
        table.add_column()
        for left, right in rows:
            table.add_row(Text(left), Text(right))
        return table
