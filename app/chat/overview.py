"""What `/show` lists: everything that the next answer depends on, and where each value comes from."""

from collections.abc import Iterator

from dslite.app.chat.settings import ChatSettings
from dslite.app.chat.state import ChatState
from dslite.app.settings.sampling import LISTS
from dslite.runtime.chat.protocol import ModelStats

_NAME_WIDTH = 11


def overview(chat: ChatState) -> str:
    """A line for each fact; a system message of several lines keeps them."""
    return "\n".join(f"{name:<{_NAME_WIDTH}} {value}".rstrip() for name, value in _facts(chat))


def _facts(chat: ChatState) -> Iterator[tuple[str, str]]:
    settings, stats = chat.settings, chat.status.stats
    yield "model", " · ".join(filter(None, [chat.ref.key, *_model_facts(stats)]))
    if stats is not None and stats.context:
        yield "context", f"{chat.status.used:,} of {stats.context:,} tokens"
    yield "profile", settings.profile.name + (" (changed here)" if differs(settings) else "")
    message = settings.system_message
    yield "system", (message or "none") + ("   (changed here)" if _system_differs(settings) else "")
    values = settings.sampling()
    for key, value in values.items():
        yield key, _text(key, value) + f"   {_origin(settings, key)}"
    if "temperature" not in values:
        yield "sampling", "as the model's generation_config.json says, else temperature 0.3 and top_p 0.95"
    yield "chat", chat.tree.title or "not begun"
    yield "saved", chat.status.unsaved or (f"as {chat.tree.id}" if chat.tree.id else "with its first message")


def differs(settings: ChatSettings) -> bool:
    """Whether flags or commands have changed what the profile says."""
    return _system_differs(settings) or any(
        settings.profile.sampling.get(key) != value for key, value in settings.chosen.items()
    )


def _system_differs(settings: ChatSettings) -> bool:
    return settings.system is not None and settings.system_message != (settings.profile.system or None)


def _model_facts(stats: ModelStats | None) -> list[str]:
    return [] if stats is None else [*filter(None, [stats.weights or "", stats.device])]


def _text(key: str, value: object) -> str:
    return " ".join(map(repr, value)) if key in LISTS and isinstance(value, tuple) else str(value)


def _origin(settings: ChatSettings, key: str) -> str:
    if key in settings.chosen:
        return "(flag or /set)"
    return f"(profile {settings.profile.name})" if key in settings.profile.sampling else "(config.toml)"
