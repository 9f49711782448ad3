"""What the process of a warm engine knows beyond its transport: how prompts and conversations become requests."""

import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dslite.app.completion.local import LocalCompletion
from dslite.app.completion.protocol import CompletionOptions, Prompt, TokenPrompt
from dslite.app.settings.sampling import check_types
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.warm.driver import RequestDriver
from dslite.runtime.warm.messages import parse_messages, parse_params


class WarmModel:
    """A LoadedEngine: the same classes that answer in a process of their own make the requests."""

    def __init__(self, ref: ModelRef, folder: Path, weights: str, engine: Engine, driver: RequestDriver) -> None:
        self.driver = driver
        self._ref = ref
        self._folder = folder
        self._weights = weights
        self._engine = engine
        self._encoding = threading.Lock()  # tokenizers and templates are for one thread at a time

    def request(self, raw: Mapping[str, Any]) -> Request:
        """The request of a `prepare` message. Raises DsliteError; KeyError and TypeError for what no dslite sends."""
        with self._encoding:
            request = self._chat_request(raw["chat"]) if "chat" in raw else self._completion_request(raw["complete"])
        self._engine.check_fits(request)
        return request

    def call(self, raw: Mapping[str, Any]) -> Any:
        """Of a chat: the sizes and counters, what does not fit, the saved cache."""
        match raw["name"]:
            case "stats":
                return self.driver.call(lambda _: asdict(self._chat.stats()))
            case "reset_expert_counts":
                return self.driver.call(lambda engine: engine.reset_expert_counts())
        messages, more = parse_messages(raw["messages"]), bool(raw["more"])
        with self._encoding:
            if raw["name"] == "left_out":
                return len(messages) - len(self._chat.trim_to_fit(messages, continue_final_message=more))
            ids = self._chat.prompt_ids(messages, continue_final_message=more)
        conversation = str(raw["conversation"])
        return self.driver.call(lambda engine: engine.resume(conversation, ids))

    @property
    def _chat(self) -> LocalChatBackend:
        return LocalChatBackend(self._engine, self._ref.key, self._weights)

    def _chat_request(self, raw: Mapping[str, Any]) -> Request:
        messages, params = parse_messages(raw["messages"]), parse_params(raw["params"])
        return self._chat.request(messages, params, continue_final_message=bool(raw["more"]))

    def _completion_request(self, raw: Mapping[str, Any]) -> Request:
        options = CompletionOptions(**{**raw["options"], "sampling": check_types(raw["options"]["sampling"])})
        backend = LocalCompletion(self._ref, self._folder, options, self._engine, weights=self._weights)
        return backend.request(_prompt(raw["prompt"]), raw["overrides"])


def _prompt(raw: Mapping[str, Any]) -> Prompt:
    if "text" in raw:
        return str(raw["text"])
    return TokenPrompt(tuple(raw["ids"])) if "ids" in raw else parse_messages(raw["messages"])
