"""Many ways to ask the same thing, from data files that a person can read.

A phrase may hold alternatives, `{get|fetch} the model`, and name a set of words, `$gpu`. Small networks learn words,
not meanings, so breadth comes from here: frames around a wish, greetings, lower case, missing marks, typing errors.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALTERNATIVES = re.compile(r"\{([^{}]*)\}")
SET_NAME = re.compile(r"\$([a-z]+)")
PRONOUN = re.compile(r"\b(it|its|them|they|these|those|one|ones|that|this|there|all|more|what|again)\b")
DOUBLED = set(  # verbs whose last letter doubles in the -ing form
    "get set stop run put cut begin quit plan drop chat grab shut skip wrap swap flip let cap split fit pin".split()
)
LIGHT = set(
    "a an the do does i is are to my me of it can you how what which in on for with and be please want need".split()
)
"""Words that a question can lose and still be understood."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


def gerund(phrase: str) -> str:
    """The -ing form of a phrase that begins with a verb: "save a profile" → "saving a profile"."""
    verb, _, rest = phrase.partition(" ")
    if verb in DOUBLED:
        verb += verb[-1]
    elif verb.endswith("e") and not verb.endswith(("ee", "ye", "oe")):
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


@dataclass(frozen=True)
class Topic:
    """One thing that the demo model can be asked."""

    name: str
    answers: list[str] = field(default_factory=list)
    wishes: list[str] = field(default_factory=list)
    """Phrases that begin with a verb and fit a frame such as "how do I …?"."""
    questions: list[str] = field(default_factory=list)
    follow_ups: list[str] = field(default_factory=list)
    """Elliptical questions that need the conversation before them: "how do I delete it?"."""

    @property
    def clear_follow_ups(self) -> list[str]:
        return [phrase for phrase in self.follow_ups if not PRONOUN.search(phrase)]


class Phrases:
    """Draws questions at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        words = read_toml(HERE / "words.toml")
        self.sets: dict[str, list[str]] = words["sets"]
        self.frames: list[str] = words["frames"]["all"]
        self.trim: dict[str, list[str]] = words["trim"]
        off_topic = read_toml(HERE / "off_topic.toml")
        self.off_topic_sets: dict[str, list[str]] = off_topic["sets"]
        self.off_topic_answers: list[str] = off_topic["answers"]
        self.off_topic_forms = lines(off_topic["phrases"]["ask"])
        self.off_topic_hand = lines(off_topic["phrases"]["hand"])
        self.systems: list[str] = read_toml(HERE / "systems.toml")["systems"]
        self.topics: dict[str, Topic] = {}
        for path in sorted((HERE / "topics").glob("*.toml")):
            for name, table in read_toml(path).items():
                topic = self.topics.setdefault(name, Topic(name))
                topic.answers.extend(answer.strip() for answer in table.get("answers", []))
                topic.wishes.extend(lines(table.get("do", "")))
                topic.questions.extend(lines(table.get("ask", "")))
                topic.follow_ups.extend(lines(table.get("then", "")))

    def expand(self, phrase: str, sets: dict[str, list[str]] | None = None) -> str:
        """Take one of each alternative and one word of each set."""
        sets = sets or self.sets
        pick = self.random.choice
        while ALTERNATIVES.search(phrase) or SET_NAME.search(phrase):
            before = phrase
            phrase = ALTERNATIVES.sub(lambda match: pick(match[1].split("|")), phrase)
            phrase = SET_NAME.sub(lambda match: self._word(match[1], sets), phrase)
            if phrase == before:
                break
        return re.sub(r" +", " ", phrase).replace(" ?", "?").strip()

    def _word(self, name: str, sets: dict[str, list[str]]) -> str:
        if name in sets:
            return self.random.choice(sets[name])
        if name[:-1] in sets:  # the plural of a word: $things
            return self.random.choice(sets[name[:-1]]) + name[-1]
        return f"${name}"

    def question(self, topic: Topic) -> str:
        """A question about the topic that stands on its own."""
        wish_share = min(0.6, 0.12 * len(topic.wishes))
        if topic.wishes and self.random.random() < wish_share:
            wish = self.expand(self.random.choice(topic.wishes))
            frame = self.random.choice(self.frames)
            return frame.replace("{vp}", wish).replace("{ving}", gerund(wish))
        return self.expand(self.random.choice(topic.questions))

    def follow_up(self, topic: Topic, context_free: bool = False) -> str | None:
        choices = topic.clear_follow_ups if context_free else topic.follow_ups
        return self.expand(self.random.choice(choices)) if choices else None

    def off_topic(self) -> str:
        if self.random.random() < 0.35:
            return self.random.choice(self.off_topic_hand)
        return self.expand(self.random.choice(self.off_topic_forms), self.off_topic_sets)

    def vary(self, text: str, again: bool = False, calm: bool = False) -> str:
        """The same question as another person would type it; `calm` leaves out greetings and requests around it."""
        chance = self.random.random
        if not calm:
            if again and chance() < 0.5:
                text = self.random.choice(self.trim["again"]) + text
            elif chance() < 0.1:
                text = self.random.choice(self.trim["before"]) + text
            if chance() < 0.1:
                text = self._append(text)
        if chance() < 0.3:
            text = text.rstrip("?.! ") or text
        if chance() < 0.3:
            text = text.lower()
        elif chance() < 0.6:
            text = text[:1].upper() + text[1:]
        if chance() < 0.08:
            text = self._drop_word(text)
        if chance() < 0.1:
            text = self._mistype(text)
        return text

    def _append(self, text: str) -> str:
        suffix = self.random.choice(self.trim["after"])
        bare = text.rstrip("?. ")
        return bare + (suffix if text.endswith("?") else suffix.rstrip("?"))

    def _drop_word(self, text: str) -> str:
        words = text.split(" ")
        light = [at for at, word in enumerate(words) if word.lower() in LIGHT]
        if len(words) > 3 and light:
            del words[self.random.choice(light)]
        return " ".join(words)

    def _mistype(self, text: str) -> str:
        """One or two wrong, doubled, missing or swapped letters, in words of some length."""
        for _ in range(self.random.choice((1, 1, 2))):
            places = [match.start() for match in re.finditer(r"(?<=[a-z])[a-z](?=[a-z])", text)]
            if len(places) < 4:
                return text
            at = self.random.choice(places)
            kind = self.random.randrange(4)
            middle = ["", text[at] * 2, self.random.choice(LETTERS), text[at + 1] + text[at]][kind]
            text = text[:at] + middle + text[at + (2 if kind == 3 else 1) :]
        return text
