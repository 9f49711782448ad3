"""Opening a model for a chat, told as it goes. Torch is imported here, by whichever thread opens the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dslite.app.settings.endpoint import Served
from dslite.runtime.downloads.hub import ModelRef, locate

if TYPE_CHECKING:
    from dslite.runtime.chat.protocol import Responder
    from dslite.runtime.events import Loading


@dataclass(frozen=True)
class Opened:
    """A model that answers, with the sampling values of its generation_config.json."""

    responder: "Responder"
    defaults: Mapping[str, Any] = field(default_factory=dict)


Opener = Callable[[ModelRef, Callable[["Loading"], None]], Opened]


def opener(engine_options: Mapping[str, Any]) -> Opener:
    """How models are opened with these EngineOptions. What it returns raises DsliteError."""

    def open_model(ref: ModelRef, report: Callable[["Loading"], None]) -> Opened:
        folder = locate(ref)
        from dslite.app.settings.sampling import model_defaults
        from dslite.runtime.chat.local import ChatSession
        from dslite.runtime.open_engine import EngineOptions, open_engine

        engine = open_engine(folder, EngineOptions(**engine_options), report)
        return Opened(ChatSession(engine, ref.key), model_defaults(folder))

    return open_model


def remote_opener(served: Served) -> Opener:
    """How models of a server are "opened": by naming them."""

    def open_model(ref: ModelRef, report: Callable[["Loading"], None]) -> Opened:
        from dslite.runtime.chat.remote import RemoteChat, RemoteModel

        return Opened(RemoteChat(RemoteModel(served.endpoint, ref.name)))

    return open_model
