"""--endpoint: the server, the model to use of those it lists, and its API key."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from dslite.runtime.chat.http import Endpoint


@dataclass(frozen=True)
class RemoteModelRef:
    """A model of a server. `context` is in tokens."""

    endpoint: "Endpoint"
    ref: ModelRef
    context: int | None = None


def find_served(
    url: str | None, key_env: str | None, model: str | None, remembered: str | None
) -> RemoteModelRef | None:
    """The model of a server that flags name; None without --endpoint.

    `model` is what --model says, and is taken as it is. Else it is the one that a profile or conversation `remembered`,
    where the server has it, else the first of the server's list. Raises UsageError, ModelUnavailableError, DsliteError.
    """
    if url is None:
        if key_env is not None:
            raise UsageError("--endpoint-key-env needs --endpoint", "name the server with --endpoint URL")
        return None
    from dslite.runtime.chat.http import Endpoint

    endpoint = Endpoint(url, key=key_from_environment(key_env))
    if model is not None:
        return RemoteModelRef(endpoint, ModelRef(model))
    contexts = {card.name: card.context for card in endpoint.model_cards()}
    if not contexts:
        raise ModelUnavailableError(f"{endpoint.host} lists no model", "name one with --model")
    model = remembered if remembered in contexts else next(iter(contexts))
    return RemoteModelRef(endpoint, ModelRef(model), contexts[model])


def key_from_environment(variable: str | None) -> str | None:
    """The key that a variable holds; None where none is named. Raises UsageError."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key.isascii():
        raise UsageError(f"the key in {variable} has characters that no header can carry")
    if not key:
        raise UsageError(f"the environment has no {variable}, which should hold the key", f"export {variable}=…")
    return key
