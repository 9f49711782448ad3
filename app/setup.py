"""What the first-run screen tells and does, apart from its widgets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING

from dslite.runtime.hub import ModelRef

if TYPE_CHECKING:
    from dslite.runtime.events import PullEvent

Pull = Callable[[ModelRef, Flag], "Iterator[PullEvent]"]


def pull_from_hub(ref: ModelRef, cancel: Flag) -> "Iterator[PullEvent]":
    """The real download; imported when it is wanted."""
    from dslite.runtime.download import pull

    return pull(ref, cancel=cancel)


def describe_machine(ref: ModelRef) -> list[str]:
    """Lines about this machine and the plan for a model, from its config alone. Imports torch: call it in a thread."""
    del ref
    return []


@dataclass(frozen=True)
class FirstRun:
    """The two things that a test replaces."""

    pull: Pull = field(default=pull_from_hub)
    describe: Callable[[ModelRef], list[str]] = field(default=describe_machine)
