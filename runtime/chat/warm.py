"""A conversation with an engine that runs in a process of its own. Where it is lost, this process loads the model.

Imports nothing that computes: torch and tokenizers are the engine's.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, TypeVar

from dslite.runtime.chat.protocol import ChatBackend, ModelStats
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import ChatEvent, Done, Notice, Prefilling, Token
from dslite.runtime.text.message import Message
from dslite.runtime.warm.client import EngineLostError, EngineRefusedError, WarmClient, interrupted_end
from dslite.runtime.warm.messages import message_objects

if TYPE_CHECKING:
    from dslite.runtime.chat.local import LocalChatBackend

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class WarmChatBackend(ChatBackend):
    """A ChatBackend over a warm engine."""

    def __init__(
        self,
        client: WarmClient,
        *,
        private: bool,
        connect: Callable[[], WarmClient | None],
        load_here: "Callable[[], LocalChatBackend]",
    ) -> None:
        """`private`: the engine forgets the chat when it is closed.

        `connect` finds an engine again, or starts one; `load_here` gives the backend that goes on without one. Both may
        raise DsliteError.
        """
        self._client = client
        self._private = private
        self._connect = connect
        self._load_here = load_here
        self._side: WarmClient | None = None  # a second connection, for counters while an answer is under way
        self._local: LocalChatBackend | None = None  # once the engine is lost
        self._restored_key: str | None = None
        self._answering = False
        self._stats: ModelStats | None = None

    def close(self) -> None:
        """Leave the engine."""
        for client in (self._client, self._side):
            if client is not None:
                client.close()

    def reply(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        cancel: Flag,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer, or continue the last message.

        Where no engine is left, a Notice comes before the model is loaded, and errors of the request after it.
        """
        fields = {"messages": message_objects(messages), "params": asdict(params), "more": continue_final_message}

        def here(came: Sequence[Token]) -> Iterator[ChatEvent]:
            local = yield from self._loaded_here()
            request = local.request(messages, params, continue_final_message=continue_final_message)
            yield from local.answer(request, cancel, on_prefill, came=came)

        if self._local is not None:
            request = self._local.request(messages, params, continue_final_message=continue_final_message)
            return self._local.answer(request, cancel, on_prefill)
        try:
            prepared = self._try(lambda client: client.call("prepare", private=self._private, chat=fields))
        except EngineLostError:
            return here(())
        return self._answer(int(prepared["prompt_tokens"]), cancel, here)

    def _loaded_here(self) -> "Generator[ChatEvent, None, LocalChatBackend]":
        """The backend of this process, and before it is loaded a notice."""
        if self._local is None:
            yield Notice("the warm engine was lost: this process loads the model and goes on")
            self._local = self._load_here()
        return self._local

    def _answer(
        self, prompt_tokens: int, cancel: Flag, here: Callable[[Sequence[Token]], Iterator[ChatEvent]]
    ) -> Iterator[ChatEvent]:
        """The events of the request that was prepared. An engine that is lost gives way to this process."""
        came: list[Token] = []
        self._answering = True
        try:
            for event in self._client.answer(cancel):
                if isinstance(event, Token):
                    came.append(event)
                self._answering = not isinstance(event, Done)
                yield event
            return
        except EngineLostError as error:
            _log.info("the warm engine was lost: %s", error)
        finally:
            self._answering = False
        if cancel.is_set():
            yield interrupted_end(came, prompt_tokens)
            return
        yield from here(came)

    def trim_to_fit(self, messages: Sequence[Message], *, continue_final_message: bool = False) -> list[Message]:
        """Leave out whole turns, the oldest first. Raises ContextFullError."""
        fields = {"messages": message_objects(messages), "more": continue_final_message}
        left_out = self._ask(
            lambda client: int(client.call("call", name="left_out", **fields)),
            lambda local: (
                len(messages) - len(local.trim_to_fit(messages, continue_final_message=continue_final_message))
            ),
        )
        first = 1 if messages and messages[0].role == "system" else 0
        return [*messages[:first], *messages[first + left_out :]]

    def restore_cache(self, key: str, messages: Sequence[Message], *, continue_final_message: bool = False) -> None:
        """Have the saved cache of a conversation read, once."""
        fields = {"messages": message_objects(messages), "more": continue_final_message}
        if self._local is not None:
            self._local.restore_cache(key, messages, continue_final_message=continue_final_message)
        elif key != self._restored_key:
            try:
                self._try(lambda client: client.call("call", name="restore", conversation=key, **fields))
                self._restored_key = key
            except EngineLostError:
                pass  # the reply says so

    def save_cache(self, key: str) -> None:
        """Have the cache of the last reply written, unless its engine is gone."""
        self._restored_key = key
        if self._local is not None:
            self._local.save_cache(key)
            return
        try:
            self._client.call("keep", conversation=key)
        except EngineLostError as error:
            _log.info("the cache of %s was not saved: %s", key, error)

    def reset_expert_counts(self) -> None:
        self._ask(
            lambda client: client.call("call", name="reset_expert_counts"), lambda local: local.reset_expert_counts()
        )

    def stats(self) -> ModelStats:
        """Sizes and counters of the engine; the last known ones where it is lost in the middle of an answer."""
        if self._local is not None:
            return self._local.stats()
        try:
            if not self._answering:
                self._stats = _stats_of(self._client)
            else:
                self._side = self._side or self._connect()
                if self._side is not None:
                    self._stats = _stats_of(self._side)
        except (EngineLostError, EngineRefusedError, DsliteError) as error:
            _log.info("the counters of the warm engine are not known: %s", error)
        return self._stats or ModelStats("", "", 0)

    def _ask(self, engine: Callable[[WarmClient], _T], here: "Callable[[LocalChatBackend], _T]") -> _T:
        """Ask the engine, or this process where none is left."""
        if self._local is None:
            try:
                return self._try(engine)
            except EngineLostError:
                for _ in self._loaded_here():
                    pass
        assert self._local is not None
        return here(self._local)

    def _try(self, engine: Callable[[WarmClient], _T]) -> _T:
        """Ask the engine; where it has ended, another one, as after idle time. Raises EngineLostError."""
        try:
            return engine(self._client)
        except EngineLostError as error:
            _log.info("the warm engine has ended: %s", error)
            if not self._found_again():
                raise
        return engine(self._client)

    def _found_again(self) -> bool:
        """Whether there is another engine, as after idle time; a connection to it takes the place of the lost one."""
        try:
            again = self._connect()
        except (EngineRefusedError, DsliteError) as error:
            _log.info("no warm engine takes its place: %s", error)
            return False
        if again is None:
            return False
        self.close()
        self._client, self._side, self._restored_key = again, None, None
        return True


def _stats_of(client: WarmClient) -> ModelStats:
    raw: dict[str, Any] = client.call("call", name="stats")
    return ModelStats(**raw)
