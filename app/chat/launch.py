"""What both front ends of the chat are started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.model_loading import ModelLoader
from dslite.app.chat.model_setup import FirstRun
from dslite.app.chat.settings import ChatSettings
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore
    from dslite.app.settings.config_file import Config

WhenFull = Literal["ask", "forget", "summary", "stop"]  # what to do when a conversation fills the context


@dataclass(frozen=True)
class ChatConfig:
    """[chat] and [keys] of config.toml."""

    theme: str | None = None
    mouse: bool = True
    keymap: Mapping[str, str] = field(default_factory=dict)
    when_full: WhenFull = "ask"
    auto_title: bool | None = None  # a title by the model; None: where a GPU of this machine computes
    bell: bool = True  # ring when a long answer ends while the terminal has no focus

    @classmethod
    def of_config(cls, config: "Config") -> "ChatConfig":
        chat = config.table("chat")
        return cls(
            chat.get("theme"),
            chat.get("mouse", True),
            dict(config.table("keys")),
            chat.get("when_full", "ask"),
            chat.get("auto_title"),
            chat.get("bell", True),
        )


@dataclass
class ChatLaunch:
    """`resume` names the conversation to open; `warnings` are shown once the chat has begun."""

    ref: ModelRef
    settings: ChatSettings
    loader: ModelLoader
    writer: ConversationWriter
    resume: "Callable[[SessionStore], str | None] | None" = None
    config: ChatConfig = field(default_factory=ChatConfig)
    first_run: FirstRun = field(default_factory=FirstRun)
    warnings: list[DsliteError] = field(default_factory=list)
