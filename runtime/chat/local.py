"""A conversation with a model: messages in, events out.

What the model generated goes back in as the very ids that it generated, so the cache of the last answer is found again
whole. LocalChatBackend is the ChatBackend whose model runs in this process.
"""

from collections.abc import Callable, Iterator, Sequence
from threading import Event as Flag

from dslite.runtime.chat.protocol import ChatBackend, ModelStats
from dslite.runtime.constraints.constraint import with_instruction
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import ChatEvent, Event, Prefilling, Token
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import AnswerSpacing, Message, begun_answer
from dslite.runtime.text.prompt_limit import PromptLimit


class LocalChatBackend(ChatBackend):
    """A ChatBackend over an engine."""

    def __init__(self, engine: Engine, name: str, weights: str = "bfloat16") -> None:
        self.engine = engine
        self.name, self.weights = name, weights
        self._template = ChatTemplate(engine.tokenizer)
        self._limit = PromptLimit(engine.context, engine.tokenizer)
        self._restored_key: str | None = None

    def prompt_ids(self, messages: Sequence[Message], *, continue_final_message: bool = False) -> list[int]:
        """Token ids of a prompt: for a new answer, or for the rest of the last one."""
        return self._prompt(messages, continue_final_message)[0]

    def _prompt(self, messages: Sequence[Message], continue_final_message: bool) -> tuple[list[int], int]:
        """The prompt's ids, and how many spaces at the beginning of the answer are no part of it."""
        if continue_final_message:
            return self._template.encode_continued(messages, self.engine.eos_token_ids)
        return self._template.encode(messages), 1

    def reply(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        cancel: Flag,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer, or continue the last message, without the space that the template leaves before an answer."""
        request = self.request(messages, params, continue_final_message=continue_final_message)
        return self.answer(request, cancel, on_prefill)

    def answer(
        self,
        request: Request,
        cancel: Flag,
        on_prefill: Callable[[Prefilling], None] | None = None,
        *,
        came: Sequence[Token] = (),
    ) -> Iterator[ChatEvent]:
        """The events of a request. Tokens that `came` from a process that ended are taken as they are, not repeated."""
        # Raises here, not when the first event is taken.
        events = self.engine.generate(request.after(came), cancel, on_prefill)
        return self._stripped(events, AnswerSpacing(request.spaces), len(came))

    def _stripped(self, events: Iterator[Event], spacing: AnswerSpacing, known: int) -> Iterator[ChatEvent]:
        """Events without the spaces before an answer, and without the first `known` tokens."""
        for event in events:
            if isinstance(event, Prefilling):
                yield event
                continue
            event = spacing.strip(event)
            if known and isinstance(event, Token):
                known -= 1
            else:
                yield event

    def request(
        self, messages: Sequence[Message], params: SamplingParams, *, continue_final_message: bool = False
    ) -> Request:
        """What `reply` asks of the engine. Raises UsageError, ContextFullError."""
        begun = begun_answer(messages) if continue_final_message else ""
        messages = with_instruction(messages, params.constraint)
        self._limit.check(_texts(messages))
        ids, spaces = self._prompt(messages, continue_final_message)
        return Request(ids, params, spaces=spaces, begun=begun)

    def score(self, messages: Sequence[Message], top: int, cancel: Flag) -> list[Token] | None:
        """The tokens of the last message with their log-probabilities; see ChatBackend."""
        self._limit.check(_texts(messages))
        ids = self.prompt_ids(messages, continue_final_message=True)
        count = len(ids) - len(self.prompt_ids(messages[:-1]))
        request = Request(ids, SamplingParams(temperature=0.0, max_tokens=0), logprobs=top, echo=True)
        tokens = [event for event in self.engine.generate(request, cancel) if isinstance(event, Token)]
        return tokens[len(tokens) - count :]

    def restore_cache(self, key: str, messages: Sequence[Message], *, continue_final_message: bool = False) -> None:
        """Read the conversation's rows from disk, once; later replies find them in the cache."""
        if key != self._restored_key:
            self._restored_key = key
            self.engine.resume(key, self.prompt_ids(messages, continue_final_message=continue_final_message))

    def save_cache(self, key: str) -> None:
        """Write the cached rows as the conversation's."""
        self._restored_key = key
        self.engine.save(key)

    def trim_to_fit(self, messages: Sequence[Message], *, continue_final_message: bool = False) -> list[Message]:
        """Leave out whole turns, the oldest first, until a quarter of the context is free for the answer.

        The system message and the last question always stay. Raises ContextFullError where they alone do not fit.
        """
        kept = list(messages)
        first = 1 if kept and kept[0].role == "system" else 0
        room = self.engine.context - max(self.engine.context // 4, 1)
        while (count := self._count(kept, continue_final_message)) > room:
            later = [place for place, message in enumerate(kept) if message.role == "user" and place > first]
            if not later:
                if count < self.engine.context:
                    return kept
                raise ContextFullError(
                    f"the last message alone has at least {count:,} tokens, and the context holds "
                    f"{self.engine.context:,}",
                    "shorten the message, or raise --ctx-size",
                )
            del kept[first : later[0]]
        return kept

    def _count(self, messages: Sequence[Message], continue_final_message: bool) -> int:
        """The tokens of a prompt; of one that cannot fit a lower number, which is above the context."""
        if (least := self._limit.least_tokens(_texts(messages))) > self.engine.context:
            return least
        return len(self.prompt_ids(messages, continue_final_message=continue_final_message))

    def reset_expert_counts(self) -> None:
        """Another conversation begins."""
        self.engine.reset_expert_counts()

    def _uses(self) -> list[list[int]] | None:
        """How often each expert of each MoE layer was chosen; on a GPU, where only slots count, wanted by a pass."""
        if (uses := self.engine.expert_uses()) is not None:
            return uses
        cache = self.engine.experts
        if cache is None or not cache.stats.layers:
            return None
        return [list(cache.stats.layers[layer].uses) for layer in sorted(cache.stats.layers)]

    def stats(self) -> ModelStats:
        """Sizes and counters of the engine."""
        config, memory, experts = self.engine.model.config, self.engine.memory(), self.engine.expert_stats()
        head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        plain = config.num_hidden_layers * config.num_attention_heads * head * self.engine.model.dtype.itemsize
        return ModelStats(
            name=self.name,
            device=str(self.engine.model.device),
            context=self.engine.context,
            weights=self.weights,
            memory=memory,
            experts=experts,
            uses=self._uses(),
            first_moe_layer=config.first_k_dense_replace,
            experts_per_layer=config.n_routed_experts,
            kv_bytes_per_token=memory["kv_bytes_per_token"],
            plain_kv_bytes_per_token=plain,
        )


def _texts(messages: Sequence[Message]) -> list[str]:
    """What of a conversation is encoded: answers go back in as their ids."""
    return [message.content for message in messages if message.token_ids is None]
