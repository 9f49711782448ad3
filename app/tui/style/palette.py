"""The styles of a transcript, taken from the theme. Colour has meaning and is never the only sign."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.style import Style
from textual.color import Color, ColorParseError


@dataclass(frozen=True)
class Palette:
    """Rich styles by role. `base` is the text of the widget: colours of theme on its background."""

    base: Style
    user: Style
    assistant: Style
    muted: Style
    heading: Style
    code: Style
    link: Style
    bar: Style
    chosen: Style
    warning: Style
    error: Style
    keyword: Style
    string: Style
    number: Style
    name: Style
    surface: Style  # behind code and the user's messages; nothing where the terminal's own colours are used
    found: Style  # what Ctrl+F looks for,
    found_here: Style  # and the one that it shows

    @classmethod
    def of_theme(cls, variables: Mapping[str, str], base: Style) -> "Palette":
        """Roles from the variables of a Textual theme."""

        def colour(name: str, *, bold: bool | None = None, underline: bool | None = None) -> Style:
            return Style(color=_rich_colour(variables.get(name, "")), bold=bold, underline=underline)

        def found(name: str, other: Style) -> Style:
            """Colours of the theme, which contrast; attributes where it has none."""
            colours = [_rich_colour(variables.get(f"{name}-{ground}", "")) for ground in ("foreground", "background")]
            if None in colours:
                return other
            return Style(
                color=colours[0], bgcolor=colours[1], bold=False, dim=False, reverse=False, underline=other.underline
            )

        ansi = variables.get("background", "").startswith("ansi")
        muted = Style(dim=True) if ansi else colour("text-muted-flat")
        return cls(
            base=base,
            user=colour("primary", bold=True),
            assistant=colour("accent", bold=True),
            muted=muted,
            heading=Style(bold=True),
            code=colour("accent"),
            link=colour("primary", underline=True),
            bar=colour("primary") if ansi else colour("bar"),
            chosen=colour("accent", bold=True),
            warning=colour("warning"),
            error=colour("error"),
            keyword=colour("code-keyword"),
            string=colour("code-string"),
            number=colour("code-number"),
            name=colour("code-name"),
            surface=Style() if ansi else Style(bgcolor=_rich_colour(variables.get("surface", ""))),
            found=found("found", Style(bold=True, underline=True)),
            found_here=found("found-here", Style(bold=True, reverse=True)),
        )

    @cached_property
    def of_token(self) -> dict[str, Style]:
        """Style by the first or second part of a Pygments token's name."""
        return {
            "Keyword": self.keyword,
            "Name.Function": self.name,
            "Name.Class": self.name,
            "Name.Tag": self.keyword,
            "Name.Decorator": self.name,
            "Name.Builtin": self.name,
            "Literal.String": self.string,
            "Literal.Number": self.number,
            "Operator.Word": self.keyword,
            "Comment": self.muted,
            "Generic.Deleted": self.error,  # of a diff
            "Generic.Inserted": self.string,
            "Generic.Heading": self.muted,
            "Generic.Subheading": self.number,
        }


def _rich_colour(text: str) -> Any:
    try:
        return Color.parse(text).rich_color
    except ColorParseError:
        return None
