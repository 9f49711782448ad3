"""Grapheme clusters: what a reader takes for one character (Unicode Standard Annex 29).

Rich knows joined emoji, skin tones, variation selectors and combining marks. It takes a flag, two regional indicators,
for two characters.
"""

from rich.cells import cell_len, split_graphemes

_REGIONAL = ("\U0001f1e6", "\U0001f1ff")


def grapheme_spans(text: str) -> list[tuple[int, int, int]]:
    """(start, end, cells) of each cluster; together they cover the text."""
    spans: list[tuple[int, int, int]] = []
    half_flag = False
    for start, end, cells in split_graphemes(text)[0]:
        regional = _REGIONAL[0] <= text[start] <= _REGIONAL[1]
        if regional and half_flag:
            first, _, before = spans.pop()
            spans.append((first, end, before + cells))
            half_flag = False
        else:
            spans.append((start, end, cells))
            half_flag = regional
    return spans


def grapheme_before(text: str, offset: int) -> int:
    """Where the cluster begins that ends at, or holds, `offset`: what Backspace removes there."""
    if text[:offset].isascii():
        return max(offset - 1, 0)
    return next((start for start, end, _ in grapheme_spans(text) if start < offset <= end), 0)


def grapheme_after(text: str, offset: int) -> int:
    """Where the cluster ends that begins at, or holds, `offset`: what Delete removes there."""
    return next((end for start, end, _ in grapheme_spans(text) if start <= offset < end), len(text))


def chop(text: str, width: int) -> list[str]:
    """Pieces of at most `width` cells, broken between any two clusters; nothing is dropped."""
    if len(text) <= width and text.isascii():
        return [text]
    width = max(width, 2)
    if text.isascii() and cell_len(text) == len(text):
        return [text[place : place + width] for place in range(0, len(text), width)]
    pieces, start, used = [], 0, 0
    for begin, _, cells in grapheme_spans(text):
        if used + cells > width:
            pieces.append(text[start:begin])
            start, used = begin, 0
        used += cells
    return [*pieces, text[start:]]
