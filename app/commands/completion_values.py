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
    from dslite.runtime.downloads.hub import DEMO, SHORT_NAMES
    from dslite.runtime.downloads.inventory import stored_models

    names = [*SHORT_NAMES, DEMO]
    with suppress(Exception):  # a cache that cannot be read must not print into the user's command line
        names += [model.name for model in stored_models()]
    return values(*dict.fromkeys(names))(incomplete)


def profiles(incomplete: str) -> list[tuple[str, str]]:
    """Names of profiles, with their descriptions."""
    with suppress(Exception):
        from dslite.app.settings.config_file import read_config
        from dslite.app.settings.profiles import all_profiles

        found = all_profiles(read_config()).values()
        return [(each.name, each.description or "") for each in found if each.name.startswith(incomplete)]
    return []


def sessions(incomplete: str) -> list[tuple[str, str]]:
    """Ids of conversations, the last changed first, with their titles."""
    with suppress(Exception):
        from dslite.app.sessions.store import SessionStore

        with SessionStore.open() as store:
            found = store.conversations(limit=_MAX_SESSIONS)
        return [(each.id, each.title or "") for each in found if each.id.startswith(incomplete.upper())]
    return []
