"""Loads a model for a chat and reports progress. Torch is imported by the thread that loads the model."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dslite.app.settings.endpoint import RemoteModelRef
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.downloads.packed import find_packed, locate_weights
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import CheckpointError, DsliteError, ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from dslite.runtime.chat.local import LocalChatBackend
    from dslite.runtime.chat.protocol import ChatBackend
    from dslite.runtime.chat.warm import WarmChatBackend
    from dslite.runtime.events import LoadingEvent
    from dslite.runtime.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A model that answers, with the sampling values of its generation_config.json."""

    backend: "ChatBackend"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    count_tokens: Callable[[str], int] | None = None  # of a text, on any thread; None where it is not known


class ModelLoader(Protocol):
    """Finds and loads models. All methods raise DsliteError."""

    @property
    def remote_host(self) -> str | None:
        """The host that gets what is written; None where it stays on this machine."""

    def parse(self, name: str) -> ModelRef:
        """The model that a name of the user's means."""

    def check(self, ref: ModelRef) -> None:
        """Check cheaply that the model can be loaded: the loaded one is kept until this returns."""

    def load(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> LoadedModel: ...


@dataclass(frozen=True)
class WarmUse:
    """A warm engine may answer. `keep_alive_s` None: none is started. `private`: it forgets the chat at its end."""

    keep_alive_s: float | None = None
    private: bool = False


@dataclass(frozen=True)
class LocalModelLoader:
    """Uses models that are on this machine: in a warm engine that runs, or loaded into this process."""

    engine_options: EngineOptions
    warm: WarmUse | None = None  # None: always this process
    remote_host: ClassVar[str | None] = None

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

        warm = self._warm(ref, report)
        if warm is not None:
            return LoadedModel(warm, model_defaults(folder), _counter(folder))
        here = self._load_here(ref, report)
        tokenizer = here.engine.tokenizer
        return LoadedModel(here, model_defaults(folder), lambda text: len(tokenizer.encode(text)))

    def _load_here(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> "LocalChatBackend":
        from dslite.runtime.chat.local import LocalChatBackend
        from dslite.runtime.engine_loader import open_engine

        engine = open_engine(ref, self.engine_options, report)
        return LocalChatBackend(engine, ref.key, self.engine_options.weights)

    def _warm(self, ref: ModelRef, report: Callable[["LoadingEvent"], None]) -> "WarmChatBackend | None":
        """The engine that runs for the model, or is started; None where this process is to compute."""
        if self.warm is None:
            return None
        from dslite.runtime.chat.warm import WarmChatBackend
        from dslite.runtime.warm.client import EngineRefusedError
        from dslite.runtime.warm.launcher import obtain_engine

        connect = partial(obtain_engine, ref, self.engine_options, self.warm.keep_alive_s)
        try:
            client = connect(report)
        except (ModelUnavailableError, UsageError):
            raise  # the engine cannot load the model, and this process could not either
        except (EngineRefusedError, DsliteError) as error:
            _log.warning("the warm engine is not used: %s", error)
            return None
        if client is None:
            return None
        return WarmChatBackend(
            client,
            private=self.warm.private,
            connect=lambda: connect(lambda _: None),
            load_here=lambda: self._load_here(ref, lambda _: None),
        )


def _counter(folder: Path) -> Callable[[str], int]:
    """Counts tokens by the tokenizer of a folder, which is read at the first text."""

    @cache
    def tokenizer() -> "Tokenizer":
        from dslite.runtime.text.tokenizer import Tokenizer

        return Tokenizer.from_folder(folder)

    return lambda text: len(tokenizer().encode(text))


@dataclass(frozen=True)
class RemoteModelLoader:
    """Uses the models of a server. Nothing is loaded: a model is a name in its requests."""

    served: RemoteModelRef

    @property
    def remote_host(self) -> str | None:
        return None if self.served.endpoint.is_local else self.served.endpoint.host

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
