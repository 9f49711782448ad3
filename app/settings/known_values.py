"""Models and profiles that a user may name, each with a word about it. Imports late: a shell waits for them."""

from collections.abc import Iterator


def known_models() -> Iterator[tuple[str, str]]:
    """Short names and the demo, then the models on this machine, where a cache that cannot be read raises OSError."""
    from dslite.runtime.downloads.hub import DEMO, SHORT_NAMES
    from dslite.runtime.downloads.inventory import stored_models

    names = {**SHORT_NAMES, DEMO: "the small model that ships"}
    yield from names.items()
    yield from {model.name: "on this machine" for model in stored_models() if model.name not in names}.items()


def known_profiles() -> Iterator[tuple[str, str]]:
    """Raises ConfigFileError."""
    from dslite.app.settings.profiles import all_profiles

    yield from ((profile.name, profile.description) for profile in all_profiles().values())
