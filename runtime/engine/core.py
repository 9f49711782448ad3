"""What schedulers over one model share: the network, its tokenizer, and what was computed of earlier prompts."""

# T tokens  D hidden

import threading
from collections import abc
from typing import TYPE_CHECKING

from torch import Tensor

from dslite.model.transformer import Transformer
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import kv_bytes_per_token
from dslite.runtime.cache.prefix_cache import PrefixCache
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.request_log import ReadRateLog, RequestLog
from dslite.runtime.engine.runner import PREFILL_CHUNK, ModelRunner
from dslite.runtime.engine.sequence import Sequence
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Token
from dslite.runtime.planning.footprint import LOGIT_ROWS
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.experts import ExpertCache

if TYPE_CHECKING:
    from dslite.runtime.constraints.compiler import AnswerMatcher, ConstraintCompiler


class EngineCore:
    """One model and one prefix cache."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        context: int,
        eos_token_ids: abc.Sequence[int] | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        open_disk_cache: abc.Callable[[], LatentDiskCache] | None = None,
        prompt_cache: LatentDiskCache | None = None,
        memory_left: int | None = None,
    ) -> None:
        """`context` is the most tokens of a prompt and its answer; `open_disk_cache` opens the saved conversations.

        `prompt_cache` keeps on disk what belongs to no saved conversation; None: nothing is kept of it.
        `memory_left`: bytes that the user's limit leaves for more than one conversation; None: no limit.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.context = context
        self.memory_left = memory_left
        self.eos_token_ids = frozenset(model.config.eos_token_ids if eos_token_ids is None else eos_token_ids)
        self.runner = ModelRunner(model, prefill_chunk)
        self._constraints: ConstraintCompiler | None = None
        self._opening = threading.Lock()
        self._answer_logs = (
            RequestLog(None if self.experts is None else self.experts.stats),
            ReadRateLog(model.config, model.device.type, str(model.dtype).removeprefix("torch."), model.weights),
        )
        self.prefix_cache = PrefixCache(
            lambda: self.runner.make_cache(context),
            most_tokens=context,
            # Half a context, so that inactive branches never double the memory.
            host_bytes=context * kv_bytes_per_token(model.config, model.dtype) // 2,
            open_disk=open_disk_cache,
            prompts=prompt_cache,
        )

    @property
    def experts(self) -> ExpertCache | None:
        """The cache of routed experts; None where all are resident."""
        return self.runner.experts

    def log_answer(self, done: Done) -> None:
        """Write an answer's line to the log, and note how fast it read the weights."""
        for log in self._answer_logs:
            log(done)

    def forget(self) -> None:
        """Drop from memory what belongs to earlier requests: the prefix cache, and compiled shapes of answers."""
        self.prefix_cache.clear()
        with self._opening:
            self._constraints = None

    @property
    def constraints(self) -> "ConstraintCompiler":
        """Compiles the shapes of answers. Its library is loaded with the first."""
        with self._opening:
            if self._constraints is None:
                from dslite.runtime.constraints.compiler import ConstraintCompiler

                self._constraints = ConstraintCompiler(self.tokenizer, self.eos_token_ids)
        return self._constraints

    def check_fits(self, request: Request) -> None:
        """Raise ContextFullError for a prompt that leaves no room in the context.

        Raises UsageError for an empty prompt, for an end token that the vocabulary does not have, and for a shape of
        the answer that cannot be enforced.
        """
        self._matcher(request)
        if beyond := [id for id in request.params.stop_token_ids if id >= self.tokenizer.vocab_size]:
            raise UsageError(
                f"stop_token_ids has {beyond[0]}, which no token has",
                f"the ids of this model go from 0 to {self.tokenizer.vocab_size - 1}",
            )
        count = len(request.prompt_ids)
        if not count:
            raise UsageError("the prompt is empty: there is nothing to go on from", "write one")
        if count + (request.params.max_tokens != 0) > self.context:
            raise ContextFullError(
                f"the prompt has {count:,} tokens, and the context holds {self.context:,}, the answer included",
                "shorten the prompt, or raise --ctx-size",
            )

    def new_sequence(self, request: Request, cached: int) -> Sequence:
        """The state of an answer; `cached` tokens of its prompt are in a latent cache already."""
        return Sequence(
            request,
            self.tokenizer,
            end_tokens=self.eos_token_ids,
            context=self.context,
            cached=cached,
            matcher=self._matcher(request),
        )

    def _matcher(self, request: Request) -> "AnswerMatcher | None":
        constraint = request.params.constraint
        if constraint is None:
            return None
        return self.constraints.matcher(constraint, space=request.spaces > 0, begun=request.begun)

    def echo(self, sequence: Sequence, start: int, hidden: Tensor) -> abc.Iterator[Token]:
        """Prompt tokens that the hidden states (T, D) of tokens `start` on predict, and the very first of all."""
        ids = sequence.request.prompt_ids
        if start == 0:
            yield from sequence.echo(ids[:1], None)
        wanted = ids[start + 1 : start + 1 + len(hidden)]
        if sequence.request.logprobs is None:
            yield from sequence.echo(wanted, None)
            return
        for place in range(0, len(wanted), LOGIT_ROWS):
            part = wanted[place : place + LOGIT_ROWS]
            yield from sequence.echo(part, self.runner.logits(hidden[place : place + len(part)]))
