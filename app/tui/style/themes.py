"""Themes: dark, light, two that use the terminal's own sixteen colours, and two for the colour-blind."""

from textual.theme import BUILTIN_THEMES, Theme

DEFAULT = "dark"


def _selection(foreground: str, background: str) -> dict[str, str]:
    """Colours of selected text, in messages and in fields: opaque, so that their contrast is the same everywhere."""
    pairs = {"foreground": foreground, "background": background}
    return {f"{place}-selection-{ground}": pairs[ground] for place in ("screen", "input") for ground in pairs}


def _found(foreground: str, background: str, here_foreground: str, here_background: str) -> dict[str, str]:
    """Colours of what Ctrl+F looks for, and of the place that it shows."""
    return {
        "found-foreground": foreground,
        "found-background": background,
        "found-here-foreground": here_foreground,
        "found-here-background": here_background,
    }


_DARK_CODE = {
    **_found("#ffffff", "#5c4a1e", "#14171c", "#e3b36b"),
    **_selection("#ffffff", "#2b5788"),
    "text-muted-flat": "#9099a8",
    "bar": "#3d4657",
    "code-keyword": "#c49ae8",
    "code-string": "#9bc58a",
    "code-number": "#e0a36c",
    "code-name": "#7ab6ee",
}
_LIGHT_CODE = {
    **_found("#1d2228", "#f6e3b4", "#ffffff", "#8a4b00"),
    **_selection("#101418", "#b5d3f5"),
    "text-muted-flat": "#5c6370",
    "bar": "#b9c0cc",
    "code-keyword": "#8128a8",
    "code-string": "#2e7025",
    "code-number": "#9a4a00",
    "code-name": "#1a5fa8",
}
_ANSI_CODE = {
    "bar": "ansi_bright_black",
    "text-muted-flat": "ansi_bright_black",
    "code-keyword": "ansi_magenta",
    "code-string": "ansi_green",
    "code-number": "ansi_yellow",
    "code-name": "ansi_blue",
}
# Okabe and Ito, "Color Universal Design" (2008): eight colours that all kinds of colour vision tell apart.
_SKY, _ORANGE, _YELLOW, _VERMILION, _BLUE, _GREEN = "#56B4E9", "#E69F00", "#F0E442", "#D55E00", "#0072B2", "#009E73"

_DARK_VERMILION = "#ad4b00"  # on white the published one has a contrast of 3.9


def _ansi(name: str, base: str) -> Theme:
    """One of Textual's themes of the terminal's own sixteen colours, of which only black and white surely contrast."""
    theme = BUILTIN_THEMES[base]
    return Theme(
        name=name,
        primary=theme.primary,
        secondary=theme.secondary,
        warning=theme.warning,
        error=theme.error,
        success=theme.success,
        accent=theme.accent,
        foreground=theme.foreground,
        background=theme.background,
        surface=theme.surface,
        panel=theme.panel,
        boost=theme.boost,
        dark=theme.dark,
        variables={
            **theme.variables,
            **_ANSI_CODE,
            **(_selection("ansi_black", "ansi_white") if theme.dark else _selection("ansi_white", "ansi_black")),
            "input-selection-foreground": "ansi_default",  # fields reverse it
        },
        ansi=True,
    )


THEMES = (
    Theme(
        name="dark",
        primary="#6cb0f5",
        secondary="#5a7fa8",
        accent="#e3b36b",
        warning="#f0c04c",
        error="#f07178",
        success="#8fc98a",
        foreground="#dde1e8",
        background="#14171c",
        surface="#1a1e25",
        panel="#222731",
        dark=True,
        variables=_DARK_CODE,
    ),
    Theme(
        name="light",
        primary="#0b5cad",
        secondary="#47698c",
        accent="#8a4b00",
        warning="#9a5b00",
        error="#b3261e",
        success="#2e7025",
        foreground="#1d2228",
        background="#fbfbf9",
        surface="#f2f2ee",
        panel="#e8e8e2",
        dark=False,
        variables=_LIGHT_CODE,
    ),
    _ansi("ansi", "ansi-dark"),
    _ansi("ansi-light", "ansi-light"),
    Theme(
        name="colour-blind",
        primary=_SKY,
        secondary=_BLUE,
        accent=_ORANGE,
        warning=_YELLOW,
        error=_VERMILION,
        success=_GREEN,
        foreground="#f2f2f2",
        background="#101010",
        surface="#181818",
        panel="#242424",
        dark=True,
        variables=_DARK_CODE
        | {"code-keyword": _SKY, "code-string": _YELLOW, "code-number": _ORANGE, "code-name": "#CC79A7"},
    ),
    Theme(
        name="colour-blind-light",
        primary=_BLUE,
        secondary="#47698c",
        accent=_DARK_VERMILION,
        warning="#8a5a00",
        error=_DARK_VERMILION,
        success="#00664b",
        foreground="#101010",
        background="#ffffff",
        surface="#f4f4f4",
        panel="#e6e6e6",
        dark=False,
        variables=_LIGHT_CODE
        | {"code-keyword": _BLUE, "code-string": "#00664b", "code-number": _DARK_VERMILION, "code-name": "#8a3a68"},
    ),
)
