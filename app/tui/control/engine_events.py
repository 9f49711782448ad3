"""Takes what the worker says: text onto the screen, speeds and progress into the status line, ends to the recorder."""

import time
from collections import deque
from typing import TYPE_CHECKING

from dslite.app.tui.control import engine_worker as told
from dslite.app.tui.control.engine_worker import GenerationJob
from dslite.app.tui.control.reply import Reply, ids_of
from dslite.app.tui.transcript.items import note_of
from dslite.model.errors import DsliteError
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.events import ChatEvent, Done, Loading, Notice, Prefilling, Thinking, Token, Waiting

if TYPE_CHECKING:
    from dslite.app.tui.control.controller import ChatController

_RATE_S = 2.0


class EngineEventHandler:
    """What happens to the reply on screen."""

    def __init__(self, conductor: "ChatController") -> None:
        self._conductor = conductor
        self.rates: deque[float] = deque(maxlen=600)  # tokens/s, one value a tick in which tokens came

    def tick(self, *, draw: bool = True) -> None:
        """Take what has happened since the last call, and draw it once. Without `draw` text alone waits."""
        conductor, status = self._conductor, self._conductor.status
        for event in conductor.worker.drain():
            match event:
                case told.GenerationEvent(job, inner) if conductor.reply is not None and self._is_current(job):
                    self._on_told(conductor.reply, inner)
                case told.GenerationFailed(job, error) if conductor.reply is not None and self._is_current(job):
                    self._grow(conductor.reply)
                    self._on_failed(conductor.reply, error)
                case told.PrefillStarted(job, left_out) if (
                    left_out and conductor.reply is not None and self._is_current(job)
                ):
                    self._on_left_out(conductor.reply, left_out)
                case Loading():
                    status.doing, status.loading = "loading", event
                case told.LoadingStarted():
                    status.doing, status.loading, status.facts = "starting", None, None
                case told.ModelReady(facts):
                    self._on_ready(facts)
                case told.StatsUpdated(facts):
                    status.facts = facts
                case told.ModelUnavailable(ref, error, absent):
                    self._on_unavailable(ref, error, absent)
        if draw and (reply := conductor.reply) is not None:
            self._grow(reply)
            if reply.then is None:  # only now do its text and its ids tell the same
                conductor.recorder.update_now_and_then(conductor.dialogue, reply.node, reply.ids)
        conductor.screen.refresh_lines()

    def _is_current(self, job: GenerationJob) -> bool:
        """Whether a job is the reply on screen, and not one that waits for another model."""
        reply = self._conductor.reply
        return reply is not None and reply.job is job and job not in self._conductor.early

    def _on_left_out(self, reply: Reply, count: int) -> None:
        """Messages were too old for the context."""
        dialogue = self._conductor.dialogue
        if reply.then is not None:
            self._conductor.say(
                f"the summary leaves out the first {count} messages: they do not fit with the others",
                above=True,
            )
        elif reply.end is not None:
            count = dialogue.forget(reply.end, count)
            self._conductor.say(f"the model no longer sees the first {count} messages of this chat", above=True)

    def _on_told(self, reply: Reply, event: ChatEvent) -> None:
        status = self._conductor.status
        if isinstance(event, Thinking):
            status.doing = status.doing if reply.stopped else "writing"
            return
        if isinstance(event, Waiting | Notice):
            self._conductor.say(event.reason if isinstance(event, Waiting) else event.message, above=True)
            return
        if isinstance(event, Prefilling):
            status.reading, status.used = event, round(event.done)
            status.doing = status.doing if reply.stopped else "reading"
            status.waiting = len(self._conductor.queue)
            return
        if isinstance(event, Token):
            reply.count += 1
            if event.id is not None:
                reply.ids.append(event.id)
            now = time.perf_counter()
            reply.times.append((now, reply.count))
            while now - reply.times[0][0] > _RATE_S:
                reply.times.popleft()
            status.doing = status.doing if reply.stopped else "writing"
            status.used += 1
            reply.undrawn.append(event.delta)
            return
        reply.undrawn.append(event.delta)
        self._grow(reply)
        self._on_done(reply, event)

    def _grow(self, reply: Reply) -> None:
        """Put new text on screen, and the speed it comes with."""
        new = "".join(reply.undrawn)
        if not new:
            return
        reply.undrawn.clear()
        reply.node.content += new
        self._conductor.screen.transcript.extend(reply.entry, new)
        (then, before), (now, after) = reply.times[0], reply.times[-1]
        if now - then > 0.2:
            self._conductor.status.rate = (after - before) / (now - then)
            self.rates.append(self._conductor.status.rate)

    def _on_done(self, reply: Reply, done: Done) -> None:
        conductor, node, status = self._conductor, reply.node, self._conductor.status
        made = done.completion_tokens
        node.token_ids = ids_of(reply, done)
        node.finish_reason = "interrupted" if reply.stopped else done.finish_reason
        timing = done.timing
        node.info = {
            "model": conductor.model_name,
            "prompt_tokens": done.prompt_tokens,
            "cached_tokens": done.cached_tokens,
            "completion_tokens": made,
            "prefill_s": round(timing.prefill_s, 4),
            "decode_s": round(timing.decode_s, 4),
            "ttft_s": round(timing.ttft_s, 4),
        }
        status.used = done.prompt_tokens + made
        status.rate = made / timing.decode_s if timing.decode_s > 0 else status.rate
        self.rates.append(status.rate)
        self._end(reply)
        if reply.then is not None:
            conductor.abandon(reply)
            reply.then(node)
            return
        if not node.content and not made:
            conductor.abandon(reply)
        else:
            conductor.recorder.finish(conductor.dialogue, node)
        conductor.full.warn()
        if conductor.queue:
            conductor.send(conductor.queue.pop(0))
        conductor.show_waiting()

    def _end(self, reply: Reply) -> None:
        self._conductor.reply = None
        self._conductor.status.doing = "idle"
        reply.node.growing = False
        reply.entry.note = note_of(reply.node.finish_reason)
        self._conductor.screen.transcript.finish(reply.entry)
        self._conductor.say_what_waited()

    def _on_failed(self, reply: Reply, error: DsliteError) -> None:
        conductor = self._conductor
        reply.node.finish_reason = reply.node.finish_reason or "interrupted"
        self._end(reply)
        if reply.node.content and reply.then is None:
            conductor.recorder.finish(conductor.dialogue, reply.node)
        conductor.abandon(reply)
        if told.is_overflow(error) and reply.then is None:
            conductor.full.handle(error)
        else:
            conductor.say_error(error)

    def _on_ready(self, facts: ModelStats) -> None:
        conductor, status = self._conductor, self._conductor.status
        status.facts, status.doing = facts, "idle"
        conductor.screen.app.settle()
        for job in conductor.early:
            conductor.worker.answer(job)
        conductor.early.clear()
        if conductor.reply is not None:
            status.doing, status.reading = "reading", None
        conductor.renew_greeting()
        conductor.show_waiting()

    def _on_unavailable(self, ref: ModelRef, error: DsliteError, absent: bool) -> None:
        """An early message waits where the model may still come; the fault of one that is here ends it."""
        conductor = self._conductor
        conductor.status.doing = "nothing"
        conductor.absent = (ref, error) if absent else None
        if absent:
            if conductor.reply is not None and conductor.reply.job not in conductor.early:
                conductor.early.append(conductor.reply.job)
            conductor.screen.offer_first_run(ref, error)
        else:
            if conductor.reply is not None:
                conductor.abandon(conductor.reply)
            conductor.say_error(error)
        conductor.show_waiting()
