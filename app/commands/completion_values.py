"""The values that Tab completes: models, profiles, conversations. Fast: nothing here imports torch."""

from collections.abc import Callable
from contextlib import suppress

_MAX_SESSIONS = 100


def values(*choices: str) -> Callable[[str], list[str]]:
    """A completion among fixed values."""
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def devices(incomplete: str) -> list[str]:
    return values("auto", "cuda", "cuda:0", "mps", "cpu")(incomplete)


def models(incomplete: str) -> list[str]:
    """Short names and the models in the Hugging Face cache."""
    from dslite.app.settings.known_values import known_models

    names: list[str] = []
    with suppress(Exception):  # a cache that cannot be read must not print into the user's command line
        names.extend(name for name, _ in known_models())
    return values(*names)(incomplete)


def profiles(incomplete: str) -> list[tuple[str, str]]:
    """Names of profiles, with their descriptions."""
    with suppress(Exception):
        from dslite.app.settings.known_values import known_profiles

        return [(name, description) for name, description in known_profiles() if name.startswith(incomplete)]
    return []


def sessions(incomplete: str) -> list[tuple[str, str]]:
    """Ids of conversations, the last changed first, with their titles."""
    with suppress(Exception):
        from dslite.app.sessions.store import SessionStore

        with SessionStore.open() as store:
            found = store.conversations(limit=_MAX_SESSIONS)
        return [(each.id, each.title or "") for each in found if each.id.startswith(incomplete.upper())]
    return []
