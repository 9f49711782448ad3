"""Messages of a conversation as items of the transcript."""

from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import finish_note
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.attachments import split_attachments
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.app.tui.transcript.sanitize import one_line
from dslite.app.tui.widgets.status import where
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef

_MOST_LINES = 40  # of a question that is shown whole
_SHOWN_LINES = 8
GREETING = 0  # key of the item that the first message replaces

_THINGS_TO_TRY = (
    "Explain what a mixture of experts is, in three sentences.",
    "Write a piece of quicksort code in C++.",
    "把这句话翻译成英文：山重水复疑无路，柳暗花明又一村。",
)
_DEMO_THINGS_TO_TRY = ("How do I save a profile?", "What does Ctrl+R do?", "How do I stop an answer?")


def short_name(model: str) -> str:
    """A model's name without its owner, revision or folders."""
    return model.rstrip("/").rpartition("/")[2].partition("@")[0] or model


def item_of(tree: MessageTree, node: Node, model: str) -> TranscriptItem:
    """One message."""
    siblings = tree.siblings(node)
    shown = _short(node) if node.role == "user" else node.content
    name = "You" if node.role == "user" else short_name(str(node.info.get("model") or model))
    return TranscriptItem(
        node.key,
        "user" if node.role == "user" else "assistant" if node.role == "assistant" else "system",
        name,
        shown,
        folded=node.content if shown != node.content else "",
        branch=(siblings.index(node) + 1, len(siblings)),
        note=finish_note(node) if node.role == "assistant" and not node.growing else "",
        growing=node.growing,
        reasoning=node.reasoning,
        reasoning_tokens=node.reasoning_tokens,
    )


def _short(node: Node) -> str:
    """A question with its files as a line each, and with the first lines of a long text."""
    files, text = split_attachments(node.content, node.info)
    lines = text.split("\n")
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_SHOWN_LINES], f"▸ {len(lines):,} lines · Enter opens"]
    return "\n".join([*(f"▸ {one_line(file.label)}" for file in files), *lines]).rstrip("\n")


def items_of(tree: MessageTree, model: str) -> list[TranscriptItem]:
    """The active branch, below its system message."""
    entries = [item_of(tree, node, model) for node in tree.path()]
    if entries and tree.system:
        entries.insert(0, TranscriptItem(-1, "notice", "", f"system: {one_line(tree.system)}"))
    return entries


def greeting(model: ModelRef, stats: ModelStats | None, settings: ChatSettings) -> TranscriptItem:
    """What an empty chat says: the model, where it lives, three things to try."""
    lines = [short_name(model.key)]
    if stats:
        lines[0] += f" · {where(stats)}" + (f" · {stats.context:,} tokens of context" if stats.context else "")
    if settings.system_message:
        lines.append(f"profile {settings.profile.name}: {one_line(settings.system_message, 120)}")
    things = _DEMO_THINGS_TO_TRY if model.name == "demo" else _THINGS_TO_TRY
    lines += ["", "Try:", *(f"  {thing}" for thing in things)]
    lines += ["", "Answers may be wrong, and names of packages in them invented."]
    return TranscriptItem(GREETING, "notice", "", "\n".join(lines))
