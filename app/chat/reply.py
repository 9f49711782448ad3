"""An answer while it is generated: its state, its tokens, and what is saved with it."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dslite.app.chat.engine_worker import GenerationJob
from dslite.app.chat.message_tree import Node
from dslite.app.chat.settings import ChatSettings
from dslite.app.chat.status import ReplyState
from dslite.runtime.events import Done, Prefilling, Thinking, Timing, Token

_RATE_S = 2.0  # the speed is that of the last seconds
_MIN_RATE_S = 0.2
_LATEST = 1e10  # seconds since 1970, in the year 2286
NOTES = {  # what stands below an answer that did not end by itself; "!" marks a warning
    "interrupted": "stopped here · /continue goes on",
    "length": "cut at the most tokens · /continue goes on",
    "context": "! the context is full · /continue goes on without the oldest turns",
}


def finish_note(node: Node) -> str:
    """What stands below a finished answer: why it was cut, or that it is empty."""
    return NOTES.get(node.finish_reason or "") or ("" if node.content.strip() else "(empty answer)")


def facts(node: Node) -> str:
    """What is known of an answer: when, how long, how fast, by which model and how drawn. Empty for a question."""
    info = node.info
    if node.role != "assistant" or "model" not in info:
        return ""
    tokens, seconds = _number(info, "completion_tokens"), _number(info, "decode_s")
    finished, temperature = _number(info, "finished"), _number(info, "temperature")
    found = [
        time.strftime("%Y-%m-%d %H:%M", time.localtime(finished)) if finished else "",
        f"{tokens:,.0f} tokens" if tokens else "",
        f"{tokens / seconds:,.0f} tok/s" if tokens and seconds else "",
        " ".join(filter(None, [str(info["model"]).rpartition("/")[2], str(info.get("weights") or "")])),
        f"temperature {temperature:g}" if temperature is not None else "",
        "edited" if info.get("edited") else "",
    ]
    return " · ".join(filter(None, found))


def _number(info: Mapping[str, Any], key: str) -> float | None:
    """A number of an answer's figures; an imported chat may have anything there."""
    value = info.get(key)
    return value if isinstance(value, int | float) and abs(value) < _LATEST else None


@dataclass(eq=False)
class Reply:
    """`end` is the last message of the prompt; `continues`: the message is an answer that was cut.

    A summary (`is_summary`) is shown while it grows and belongs to no conversation. `question` is asked in the new
    chat that begins with the summary.
    """

    node: Node
    end: Node | None
    continues: bool = False
    trim: bool = False
    changes: dict[str, Any] = field(default_factory=dict)  # sampling values of this answer alone
    settings: ChatSettings | None = None  # of this answer alone, in place of the chat's
    is_summary: bool = False
    question: Node | None = None
    job: GenerationJob | None = None  # None while it waits for a model
    state: ReplyState = ReplyState.QUEUED
    failed: bool = False  # it ended in an error, which the view shows
    ids: list[int] = field(default_factory=list)  # of the whole message
    count: int = 0  # tokens so far
    pending: list[str] = field(default_factory=list)  # text that the view does not show yet
    pending_reasoning: list[str] = field(default_factory=list)
    _times: deque[tuple[float, int]] = field(default_factory=deque)
    _started: float = field(default_factory=time.perf_counter)
    _first_token: float | None = None
    _prompt: Prefilling | None = None

    def take(self, event: Prefilling | Token) -> None:
        """Count an event."""
        if isinstance(event, Prefilling):
            self._prompt = event
            self._move(ReplyState.PREFILLING)
            return
        now = time.perf_counter()
        self._first_token = self._first_token or now
        self.count += 1
        if event.id is not None:
            self.ids.append(event.id)
        self._times.append((now, self.count))
        while now - self._times[0][0] > _RATE_S:
            self._times.popleft()
        self.pending.append(event.delta)
        self._move(ReplyState.DECODING)

    def take_reasoning(self, event: Thinking) -> None:
        """Tokens of a server's reasoning, which is no part of the answer."""
        self.pending_reasoning.append(event.text)
        self.node.reasoning_tokens += 1
        self._move(ReplyState.DECODING)

    def _move(self, state: ReplyState) -> None:
        if self.state is not ReplyState.STOPPING:
            self.state = state

    def stop(self) -> None:
        self.state = ReplyState.STOPPING
        if self.job is not None:
            self.job.cancel.set()

    @property
    def rate(self) -> float | None:
        """Tokens a second in the last seconds; None while there are too few tokens to tell."""
        if not self._times:
            return None
        (then, before), (now, after) = self._times[0], self._times[-1]
        return (after - before) / (now - then) if now - then > _MIN_RATE_S else None

    def take_pending(self) -> str:
        """Take the text that the view does not show yet into the message; return it."""
        text = "".join(self.pending)
        self.pending.clear()
        self.node.content += text
        return text

    def take_pending_reasoning(self) -> str:
        """Take the reasoning that the view does not show yet into the message; return it."""
        text = "".join(self.pending_reasoning)
        self.pending_reasoning.clear()
        self.node.reasoning += text
        return text

    def finish(self, done: Done, model: str, weights: str | None = None) -> None:
        """Fill the message with its token ids, its finish reason and its figures."""
        node = self.node
        node.token_ids = self._token_ids(done)
        node.finish_reason = "interrupted" if self.state is ReplyState.STOPPING else done.finish_reason
        node.info = {
            "model": model,
            "weights": weights,
            "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens,
            "completion_tokens": done.completion_tokens,
            "prefill_s": round(done.timing.prefill_s, 4),
            "decode_s": round(done.timing.decode_s, 4),
            "ttft_s": round(done.timing.ttft_s, 4),
            "finished": round(time.time()),
            "temperature": self._temperature,
        }
        node.growing, self.state = False, ReplyState.DONE

    @property
    def _temperature(self) -> float | None:
        """The temperature that was asked for; None where the model's own counts."""
        return None if self.job is None else self.job.sampling.get("temperature")

    def cut(self) -> Done:
        """The end of an answer without waiting for its engine, from the events so far."""
        new = self.ids[len(self.node.token_ids or ()) :] if self.continues else self.ids
        prompt, now = self._prompt, time.perf_counter()
        first = self._first_token or now
        return Done(
            "interrupted",
            self.node.content,
            tuple(new),
            prompt.total if prompt else 0,
            prompt.cached if prompt else 0,
            timing=Timing(prompt.elapsed_s if prompt else 0.0, now - first, first - self._started),
            counted=None if len(new) == self.count else self.count,
        )

    def _token_ids(self, done: Done) -> tuple[int, ...] | None:
        """The generated ids. None where a stop text cut the answer: the next turn reads the text that is shown."""
        if done.counted is not None:
            return None  # a server counts its tokens and does not send their ids
        before = (self.node.token_ids or ()) if self.continues else ()
        generated = len(self.ids) - len(before)
        if done.finish_reason == "stop" and len(done.token_ids) <= generated:
            return None
        if not self.continues:
            return done.token_ids
        return None if self.node.token_ids is None else (*self.node.token_ids, *done.token_ids)
