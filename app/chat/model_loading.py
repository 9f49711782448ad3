"""Opening a model for a chat, told as it goes. Torch is imported here, by whichever thread opens the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dslite.app.settings.endpoint import RemoteModelRef
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.engine_options import EngineOptions

if TYPE_CHECKING:
    from dslite.runtime.chat.protocol import ChatBackend
    from dslite.runtime.events import Loading


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers, with the sampling values of its generation_config.json."""

    responder: "ChatBackend"
    defaults: Mapping[str, Any] = field(default_factory=dict)


ModelLoader = Callable[[ModelRef, Callable[["Loading"], None]], LoadedModel]


def opener(engine_options: EngineOptions) -> ModelLoader:
    """How models are opened with these EngineOptions. What it returns raises DsliteError."""

    def open_model(ref: ModelRef, report: Callable[["Loading"], None]) -> LoadedModel:
        folder = locate(ref)
        from dslite.app.settings.sampling import model_defaults
        from dslite.runtime.chat.local import LocalChatBackend
        from dslite.runtime.engine_loader import open_engine

        engine = open_engine(folder, engine_options, report)
        return LoadedModel(LocalChatBackend(engine, ref.key), model_defaults(folder))

    return open_model


def remote_opener(served: RemoteModelRef) -> ModelLoader:
    """How models of a server are "opened": by naming them."""

    def open_model(ref: ModelRef, report: Callable[["Loading"], None]) -> LoadedModel:
        from dslite.runtime.chat.remote import RemoteChatBackend, RemoteModel

        context = served.context if ref.name == served.ref.name else None
        return LoadedModel(RemoteChatBackend(RemoteModel(served.endpoint, ref.name, context)))

    return open_model
