"""`/compare`: two answers to one question, beside each other. New ones are generated in turn, each as a branch.

A temperature or a profile holds for its answer alone: the settings of the chat stay as they are.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import Reply, facts
from dslite.app.chat.settings import ChatSettings
from dslite.app.settings import sampling
from dslite.app.settings.profiles import get_profile
from dslite.runtime.errors import UsageError

# A word, a character of a script without spaces between words, or one other character.
_WORD = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]")
_MOST_WORDS = 4000  # of both texts together; beyond it nothing is marked, as it would take seconds


@dataclass(eq=False)
class ComparedAnswer:
    """`heading` says how an answer is made; `node` is None until it begins."""

    heading: str
    node: Node | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)  # sampling values of this answer alone
    settings: ChatSettings | None = None  # in place of the chat's

    @property
    def is_whole(self) -> bool:
        return self.node is not None and not self.node.growing

    @property
    def text(self) -> str:
        return self.node.content if self.node is not None else ""


class AnswerComparison:
    """Two answers, the first at the left. `choose` goes on with one of them, `leave` with what was there before."""

    def __init__(
        self,
        sides: Sequence[ComparedAnswer],
        before: Node | None,
        ask: Callable[[ComparedAnswer], Node],
        show: Callable[[Node], None],
    ) -> None:
        """`ask` begins an answer; `show` makes the branch of one the active one; `before` ends the branch until now."""
        self.sides = list(sides)
        self._before, self._ask, self._show = before, ask, show

    @property
    def is_whole(self) -> bool:
        """Whether no answer is missing or growing."""
        return all(side.is_whole for side in self.sides)

    def start(self) -> None:
        """Generate the first answer that is missing; nothing where none is."""
        side = next((side for side in self.sides if side.node is None), None)
        if side is not None:
            side.node = self._ask(side)

    def on_finished(self, reply: Reply) -> None:
        """A reply ended: the next one begins, unless the user has stopped it."""
        if reply.node in [side.node for side in self.sides] and reply.node.finish_reason in ("stop", "length"):
            self.start()

    def choose(self, place: int) -> None:
        """Go on with one of the answers."""
        if (node := self.sides[place].node) is not None:
            self._show(node)

    def leave(self) -> None:
        """Go on with the answer that was there before; new ones stay as branches."""
        if self._before is not None:
            self._show(self._before)


def compared(tree: MessageTree, settings: ChatSettings, words: Sequence[str], node: Node) -> list[ComparedAnswer]:
    """The two answers that `/compare` is to show: `words` are up to two temperatures or names of profiles; without
    them, an answer and its branch before. Raises UsageError, NotFoundError."""
    if len(words) > 2:
        raise UsageError("/compare takes two temperatures or profiles", "write it as /compare 0.2 0.9")
    here = ComparedAnswer(facts(node) or "this answer", node)
    if words:
        new = [_new(settings, word) for word in words]
        return new if len(new) == 2 else [here, *new]
    siblings = tree.siblings(node)
    if len(siblings) == 1:
        return [here, ComparedAnswer("another answer")]
    place = siblings.index(node)
    pair = sorted((place, place - 1 if place else 1))
    return [_branch(siblings, number) for number in pair]


def _branch(siblings: Sequence[Node], number: int) -> ComparedAnswer:
    place = f"{number + 1} of {len(siblings)}"
    return ComparedAnswer(" · ".join(filter(None, [place, facts(siblings[number])])), siblings[number])


def _new(settings: ChatSettings, word: str) -> ComparedAnswer:
    """An answer at a temperature, or with a profile."""
    try:
        temperature = float(word)
    except ValueError:
        profile = get_profile(word)
        other = replace(settings, profile=profile, system=None)
        return ComparedAnswer(f"profile {word}", settings=other)
    return ComparedAnswer(f"temperature {word}", changes=sampling.chosen(temperature=temperature))


def differences(texts: Sequence[str]) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The words of two texts, each with whether the other text lacks it there."""
    first, second = (_WORD.findall(text) for text in texts)
    if len(first) + len(second) > _MOST_WORDS:
        return [(texts[0], False)], [(texts[1], False)]
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return (
        [*_marked(first, [(block.a, block.size) for block in blocks])],
        [*_marked(second, [(block.b, block.size) for block in blocks])],
    )


def _marked(words: Sequence[str], same: Sequence[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Runs of words, in turn the other's too and its own."""
    place = 0
    for start, size in same:
        if start > place:
            yield "".join(words[place:start]), True
        if size:
            yield "".join(words[start : start + size]), False
        place = start + size
