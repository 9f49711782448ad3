"""Loads a model for a chat and reports progress. Torch is imported by the thread that loads the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dslite.app.settings.endpoint import RemoteModelRef
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.downloads.packed import find_packed, locate_weights
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from dslite.runtime.chat.protocol import ChatBackend
    from dslite.runtime.events import LoadingEvent


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers, with the sampling values of its generation_config.json."""

    backend: "ChatBackend"
    defaults: Mapping[str, Any] = field(default_factory=dict)


class ModelLoader(Protocol):
    """Finds and loads models. All methods raise DsliteError."""

    def parse(self, name: str) -> ModelRef:
        """The model that a name of the user's means."""

    def check(self, ref: ModelRef) -> None:
        """Check cheaply that the model can be loaded: the loaded one is kept until this returns."""

    def load(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> LoadedModel: ...


@dataclass(frozen=True)
class LocalModelLoader:
    """Loads models into this process."""

    engine_options: EngineOptions

    def parse(self, name: str) -> ModelRef:
        return parse_model(name)

    def check(self, ref: ModelRef) -> None:
        """Check that the folder has all files of a model that this program can compute."""
        from dslite.runtime.downloads.layout import missing_files, read_config

        folder = locate_weights(ref, self.engine_options.weights)
        read_config(folder)
        if find_packed(ref, self.engine_options.weights) is not None:
            return
        if missing := missing_files(folder):
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}", "give a folder with all files of the model")

    def load(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> LoadedModel:
        folder = locate_weights(ref, self.engine_options.weights)
        from dslite.app.settings.sampling import model_defaults
        from dslite.runtime.chat.local import LocalChatBackend
        from dslite.runtime.engine_loader import open_engine

        engine = open_engine(ref, self.engine_options, report)
        return LoadedModel(LocalChatBackend(engine, ref.key, self.engine_options.weights), model_defaults(folder))


@dataclass(frozen=True)
class RemoteModelLoader:
    """Uses the models of a server. Nothing is loaded: a model is a name in its requests."""

    served: RemoteModelRef

    def parse(self, name: str) -> ModelRef:
        return ModelRef(name)

    def check(self, ref: ModelRef) -> None:
        """Check that the server lists the model. The name of `--model` is not checked: some servers list nothing."""
        endpoint = self.served.endpoint
        if ref.name == self.served.ref.name or not (listed := endpoint.models()) or ref.name in listed:
            return
        raise UsageError(f"{endpoint.host} has no model {ref.name}", f"it lists {', '.join(listed)}")

    def load(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> LoadedModel:
        from dslite.runtime.chat.remote import RemoteChatBackend, RemoteModel

        context = self.served.context if ref.name == self.served.ref.name else None
        return LoadedModel(RemoteChatBackend(RemoteModel(self.served.endpoint, ref.name, context)))
