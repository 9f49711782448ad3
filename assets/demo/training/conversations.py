"""Conversations of several turns in which later questions lean on earlier ones.

"How do I delete it?" means another thing after a profile than after a model. Topics that share such words form a
group; within a group follow-ups may use pronouns, outside of it they must name what they ask about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from training.phrases import Phrases

GROUPS: dict[str, list[str]] = {
    "models": [
        "download",
        "model-list",
        "model-verify",
        "model-remove",
        "model-where",
        "model-size",
        "model-info",
        "which-model",
        "change-model",
        "memory-needed",
        "chat",
    ],
    "memory": [
        "experts",
        "offload",
        "vram",
        "ram",
        "device",
        "memory-needed",
        "plan",
        "bench",
        "ctx-size",
        "cache",
        "inspector",
    ],
    "network": [
        "serve",
        "endpoint",
        "offline",
        "privacy",
    ],
    "shell": [
        "chat",
        "complete",
        "pipe",
        "attach",
        "batch",
        "json",
        "logprobs",
        "raw",
        "extract",
        "exit-codes",
        "max-tokens",
    ],
    "sampling": [
        "temperature",
        "greedy",
        "seed",
        "max-tokens",
        "stop-text",
        "system",
        "profile-save",
    ],
    "profiles": [
        "profile-save",
        "profile-use",
        "profile-list",
        "profile-edit",
        "profile-remove",
        "profile-default",
        "profile-what",
        "system",
        "config",
    ],
    "answers": [
        "stop-answer",
        "continue-cut",
        "regenerate",
        "branches",
        "copy",
        "edit-message",
    ],
    "input": [
        "newline",
        "editor",
        "history",
        "edit-message",
        "help",
        "palette",
        "quit",
        "plain",
    ],
    "sessions": [
        "open-chat",
        "continue-last",
        "session-list",
        "session-search",
        "session-remove",
        "session-export",
        "session-rename",
        "no-save",
        "new-chat",
    ],
    "trouble": [
        "doctor",
        "exit-codes",
        "device",
        "memory-needed",
    ],
}
"""Every topic leads into the groups that hold it; `LEADS` adds ways that go in one direction only."""

LEADS: dict[str, list[str]] = {
    "download": [
        "model-verify",
        "model-where",
        "model-size",
        "model-remove",
        "model-list",
        "chat",
        "offline",
        "doctor",
    ],
    "chat": [
        "stop-answer",
        "quit",
        "new-chat",
        "help",
        "no-save",
        "newline",
        "plain",
        "privacy",
        "change-model",
        "system",
    ],
    "profile-save": ["profile-list", "profile-use", "profile-edit", "profile-remove", "profile-default"],
    "profile-list": ["profile-edit", "profile-remove", "profile-use", "profile-save", "profile-default", "json"],
    "profile-use": ["profile-list", "profile-save", "profile-edit", "profile-default", "profile-remove"],
    "profile-what": ["profile-save", "profile-use", "profile-list"],
    "system": ["profile-save"],
    "session-list": [
        "open-chat",
        "session-search",
        "session-remove",
        "session-export",
        "session-rename",
        "json",
        "continue-last",
    ],
    "session-search": ["open-chat", "session-remove", "session-export", "session-list"],
    "open-chat": ["session-remove", "session-rename", "session-export", "session-search", "session-list"],
    "new-chat": ["open-chat", "session-rename", "session-remove", "quit"],
    "model-list": ["model-remove", "model-verify", "json", "model-where", "model-info", "change-model"],
    "change-model": ["download", "model-list", "which-model"],
    "which-model": ["download", "model-size", "memory-needed", "experts", "model-info"],
    "memory-needed": ["offload", "device", "vram", "plan", "ram"],
    "offload": ["inspector", "vram", "ram", "plan", "experts", "bench"],
    "experts": ["inspector", "offload"],
    "vram": ["ram", "offload", "plan"],
    "ram": ["vram", "offload", "plan"],
    "plan": ["bench", "offload"],
    "bench": ["json", "plan", "device"],
    "device": ["vram", "memory-needed", "bench"],
    "cache": ["ctx-size"],
    "ctx-size": ["cache", "vram"],
    "temperature": ["greedy", "seed", "profile-save"],
    "greedy": ["seed", "temperature"],
    "complete": ["json", "pipe", "attach", "batch", "extract", "continue-last", "exit-codes"],
    "pipe": ["attach", "json"],
    "attach": ["batch", "pipe", "extract"],
    "json": ["logprobs", "batch", "exit-codes"],
    "raw": ["max-tokens", "logprobs", "stop-text"],
    "serve": ["endpoint", "privacy", "offline"],
    "stop-answer": ["continue-cut", "regenerate", "quit"],
    "regenerate": ["branches", "copy", "edit-message", "stop-answer"],
    "edit-message": ["branches", "editor"],
    "copy": ["session-export", "extract"],
    "quit": ["continue-last", "open-chat"],
    "no-save": ["privacy", "session-remove"],
    "privacy": ["no-save", "offline"],
    "session-export": ["session-remove", "session-rename"],
    "session-rename": ["session-export", "session-list"],
    "continue-last": ["session-list", "new-chat", "open-chat"],
    "help": ["palette", "quit"],
    "doctor": ["exit-codes", "device"],
}

ELSEWHERE: list[tuple[list[str], list[str], str | None]] = [
    (
        [
            "system",
            "temperature",
            "greedy",
            "profile-use",
            "change-model",
            "session-rename",
            "session-export",
            "help",
        ],
        [
            "and in the {chat|application|app|running chat}?",
            "and {in|from|on} {the shell|the command line|the terminal}?",
            "and while {chatting|I chat}?",
            "is there a flag for {it|that}?",
            "and with a flag?",
            "in the chat?",
            "in the shell?",
        ],
        None,
    ),
    (
        [
            "session-list",
            "session-search",
            "continue-last",
        ],
        [
            "and in the {application|app|chat}?",
            "and {inside|within} the {application|chat}?",
            "in the app?",
        ],
        "open-chat",
    ),
    (
        [
            "open-chat",
        ],
        [
            "and {in|from|on} {the shell|the command line|the terminal}?",
            "and outside the {app|application}?",
        ],
        "continue-last",
    ),
    (
        [
            "new-chat",
        ],
        [
            "and {in|from} {the shell|the command line|the terminal}?",
        ],
        "chat",
    ),
    (
        [
            "complete",
            "pipe",
        ],
        [
            "and in a chat?",
            "and interactively?",
            "and as a {chat|conversation}?",
        ],
        "chat",
    ),
    (
        [
            "quit",
            "stop-answer",
            "regenerate",
            "copy",
            "new-chat",
            "open-chat",
            "editor",
            "help",
            "palette",
            "inspector",
        ],
        [
            "which key was {that|it}?",
            "which key?",
            "what was the key{| again}?",
            "is there a key{| for it| for that}?",
        ],
        None,
    ),
]
"""What "and in the shell?" means after these topics: the same answer (None) or another topic's."""

REPEAT = [
    "{sorry, |}what was that{| again}?",
    "{please |}repeat that",
    "{can|could} you {repeat|say} that{| again}?",
    "say that again{| please}",
    "once more{| please}",
    "I forgot, what was it?",
    "pardon?",
    "come again?",
    "how was that again?",
    "again please",
    "{please |}repeat",
]
TALK = ["greeting", "thanks", "goodbye", "identity", "abilities", "unclear"]
OFF_TOPIC = "off-topic"
LENGTHS = (1, 1, 1, 1, 1, 2, 2, 3, 4)
LONG_SHARE, LONG = 0.2, (5, 30)
"""Without long conversations the model loses the thread beyond the longest context that it was trained on."""


@dataclass(frozen=True)
class Turn:
    topic: str
    question: str
    answer: str


@dataclass
class Conversation:
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self) -> Iterator[tuple[str, str]]:
        if self.system:
            yield "system", self.system
        for turn in self.turns:
            yield "user", turn.question
            yield "assistant", turn.answer


class Conversations:
    """Draws whole conversations at random."""

    def __init__(self, seed: int) -> None:
        self.phrases = Phrases(seed)
        self.random = self.phrases.random
        self.singles = 0.0
        """Share of conversations cut to one turn, from which the meaning of a question is learned faster."""
        self.names = [name for name in self.phrases.topics if name not in TALK]
        self.near: dict[str, list[str]] = {name: [] for name in self.phrases.topics}
        for members in GROUPS.values():
            for name in members:
                self.near[name] += [other for other in members if other != name]
        for name, leads in LEADS.items():
            self.near[name] += leads * 2

    def draw(self) -> Conversation:
        chance = self.random.random()
        length = self.random.choice(LENGTHS) if chance > LONG_SHARE else self.random.randint(*LONG)
        if self.random.random() < self.singles:
            length = 1
        conversation = Conversation()
        if self.random.random() < 0.15:
            conversation.system = self.random.choice(self.phrases.systems)
        subject: str | None = None
        for number in range(length):
            turn = self._first() if number == 0 or subject is None else self._next(subject)
            conversation.turns.append(turn)
            if turn.topic in self.near and turn.topic not in TALK:
                subject = turn.topic
        return conversation

    def _turn(self, topic: str, question: str, again: bool = False) -> Turn:
        topics = self.phrases.topics
        answers = self.phrases.off_topic_answers if topic == OFF_TOPIC else topics[topic].answers
        calm = topic in TALK
        return Turn(topic, self.phrases.vary(question, again, calm), self.random.choice(answers))

    def _first(self) -> Turn:
        chance = self.random.random()
        if chance < 0.17:
            return self._turn(OFF_TOPIC, self.phrases.off_topic())
        name = self.random.choice(TALK if chance < 0.29 else self.names)
        return self._turn(name, self.phrases.question(self.phrases.topics[name]))

    def _next(self, subject: str) -> Turn:
        chance = self.random.random()
        if chance < 0.4:
            name = self.random.choice(self.near[subject] or self.names)
            question = self.phrases.follow_up(self.phrases.topics[name])
            if question:
                return self._turn(name, question, again=True)
        elif chance < 0.5:
            name = self.random.choice(self.names)
            question = self.phrases.follow_up(self.phrases.topics[name], context_free=True)
            if question:
                return self._turn(name, question, again=True)
        elif chance < 0.53:
            return self._turn(subject, self.phrases.expand(self.random.choice(REPEAT)))
        elif chance < 0.58:
            fitting = [(forms, target) for names, forms, target in ELSEWHERE if subject in names]
            if fitting:
                forms, target = self.random.choice(fitting)
                return self._turn(target or subject, self.phrases.expand(self.random.choice(forms)), again=True)
        elif chance < 0.68:
            return self._turn(OFF_TOPIC, self.phrases.off_topic(), again=self.random.random() < 0.5)
        elif chance < 0.76:
            name = self.random.choice(TALK)
            topic = self.phrases.topics[name]
            question = self.phrases.follow_up(topic) if self.random.random() < 0.4 else None
            return self._turn(name, question or self.phrases.question(topic))
        name = self.random.choice(self.names)
        return self._turn(name, self.phrases.question(self.phrases.topics[name]), again=True)
