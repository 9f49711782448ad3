"""What both front ends of the chat are started with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.model_loading import ModelLoader
from dslite.app.chat.model_setup import FirstRun
from dslite.app.chat.settings import ChatSettings
from dslite.app.errors import ConfigFileError
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore
    from dslite.app.settings.config_file import Config

WhenFull = Literal["ask", "forget", "summary", "stop"]  # what to do when a conversation fills the context
WAYS = get_args(WhenFull)


@dataclass(frozen=True)
class ChatConfig:
    """[chat] and [keys] of config.toml."""

    theme: str | None = None
    mouse: bool = True
    keymap: Mapping[str, str] = field(default_factory=dict)
    when_full: WhenFull = "ask"

    @classmethod
    def of_config(cls, config: "Config") -> "ChatConfig":
        """Raises ConfigFileError."""
        mouse = config.table("chat").get("mouse", True)
        if not isinstance(mouse, bool):
            raise ConfigFileError(f"{config.path}, [chat]: mouse is {mouse!r}; it must be true or false")
        keymap = config.table("keys")
        for name, key in keymap.items():
            if not isinstance(key, str):
                raise ConfigFileError(f"{config.path}, [keys]: {name} is {key!r}; it must be a text such as 'f6'")
        when_full: Any = config.table("chat").get("when_full", "ask")
        if when_full not in WAYS:
            ways = ", ".join(map(repr, WAYS))
            raise ConfigFileError(f"{config.path}, [chat]: when_full is {when_full!r}; it must be one of {ways}")
        return cls(config.text("chat", "theme"), mouse, dict(keymap), when_full)


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
