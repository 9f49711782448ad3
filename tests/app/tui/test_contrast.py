"""Every text of every theme with colours of its own can be read on what lies behind it: WCAG 2 asks for 4.5 to 1."""

import pytest
from textual.color import Color
from textual.theme import Theme

from dslite.app.tui.style.themes import THEMES

OWN = [theme for theme in THEMES if not theme.ansi]
LEAST = 4.5


def _luminance(colour: Color) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [value / 255 for value in colour.rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(text: str, ground: str) -> float:
    light, dark = sorted((_luminance(Color.parse(text)), _luminance(Color.parse(ground))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_black_on_white_and_a_published_pair_have_the_contrasts_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("theme", OWN, ids=lambda theme: theme.name)
def test_texts_contrast_with_the_screen_and_with_panels_and_code(theme: Theme) -> None:
    colours = {
        name: getattr(theme, name) for name in ("foreground", "primary", "accent", "warning", "error", "success")
    }
    colours |= {name: value for name, value in theme.variables.items() if name.startswith(("code-", "text-muted"))}
    for name, colour in colours.items():
        for ground in (theme.background, theme.surface):
            assert contrast(colour, ground) >= LEAST, (name, ground)


@pytest.mark.parametrize("theme", OWN, ids=lambda theme: theme.name)
def test_marked_text_contrasts_with_its_ground(theme: Theme) -> None:
    for place in ("found", "found-here", "screen-selection", "input-selection"):
        text, ground = (theme.variables[f"{place}-{part}"] for part in ("foreground", "background"))
        assert contrast(text, ground) >= LEAST, place
