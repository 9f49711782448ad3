"""An answer while it is made."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dslite.app.chat.message_tree import Node
from dslite.app.tui.control.engine_worker import GenerationJob
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.runtime.events import Done


@dataclass(eq=False)
class Reply:
    """An answer that is being made. `end` is the last message that is read for it, `before` what it goes on from.

    `then` takes an answer that belongs to no conversation: it is shown while it grows, and not saved.
    """

    job: GenerationJob
    node: Node
    entry: TranscriptItem
    end: Node | None
    before: str = ""
    ids: list[int] = field(default_factory=list)
    count: int = 0  # tokens that came
    undrawn: list[str] = field(default_factory=list)  # text that came since it was last drawn
    times: deque[tuple[float, int]] = field(default_factory=deque)
    stopped: bool = False
    then: Callable[[Node], None] | None = None


def ids_of(reply: Reply, done: Done) -> tuple[int, ...] | None:
    """What was generated. None where a stop text cut the answer: the next turn reads what the user has read."""
    if done.counted is not None:
        return None  # a server counts its tokens, and does not tell their ids
    made = len(reply.ids) - (len(reply.node.token_ids or ()) if reply.before else 0)
    if done.finish_reason == "stop" and len(done.token_ids) <= made:
        return None
    if not reply.before:
        return done.token_ids
    return None if reply.node.token_ids is None else (*reply.node.token_ids, *done.token_ids)
