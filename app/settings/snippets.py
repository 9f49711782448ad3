"""[snippets] of config.toml: texts that `/p NAME` sends; `{input}` in one stands for what is typed behind the name."""

from collections.abc import Mapping

from dslite.app.errors import NotFoundError
from dslite.app.settings.config_file import Config, read_config

INPUT = "{input}"


def all_snippets(config: Config | None = None) -> Mapping[str, str]:
    """Texts by their names, as the file stands now. Raises ConfigFileError."""
    return (config or read_config()).table("snippets")


def get_snippet(name: str) -> str:
    """Raises NotFoundError, ConfigFileError."""
    snippets = all_snippets()
    if name not in snippets:
        known = ", ".join(snippets)
        remedy = f"choose one of {known}" if known else 'write NAME = "TEXT" below [snippets] in config.toml'
        raise NotFoundError(f"there is no snippet {name!r}", remedy)
    return snippets[name]


def filled(snippet: str, text: str) -> str:
    """A snippet with a text in the place of `{input}`, or behind it where it has no such place."""
    if INPUT in snippet:
        return snippet.replace(INPUT, text)
    return f"{snippet}\n\n{text}" if text else snippet
