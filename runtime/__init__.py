"""Everything that moves bytes and time: the engine with its caches, what is downloaded, what is planned for a machine,
and how weights reach the place where they are used.

The names below are the public interface; docs/library.md and docs/examples/ show them. They are imported at their
first use, so that a module such as `dslite.runtime.errors` costs no import of torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslite.runtime.async_answer import AsyncAnswer as AsyncAnswer
    from dslite.runtime.engine.sampling_params import SamplingParams as SamplingParams
    from dslite.runtime.engine_loader import open_engine as open_engine
    from dslite.runtime.engine_options import EngineOptions as EngineOptions
    from dslite.runtime.errors import DsliteError as DsliteError
    from dslite.runtime.events import Done as Done
    from dslite.runtime.events import Token as Token
    from dslite.runtime.generation import Chat as Chat
    from dslite.runtime.generation import Completion as Completion
    from dslite.runtime.generation import agenerate as agenerate
    from dslite.runtime.generation import astream as astream
    from dslite.runtime.generation import generate as generate
    from dslite.runtime.generation import generate_batch as generate_batch
    from dslite.runtime.generation import stream as stream
    from dslite.runtime.text.message import Message as Message

_MODULES = {
    "AsyncAnswer": "async_answer",
    "Chat": "generation",
    "Completion": "generation",
    "Done": "events",
    "DsliteError": "errors",
    "EngineOptions": "engine_options",
    "Message": "text.message",
    "SamplingParams": "engine.sampling_params",
    "Token": "events",
    "agenerate": "generation",
    "astream": "generation",
    "generate": "generation",
    "generate_batch": "generation",
    "open_engine": "engine_loader",
    "stream": "generation",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
