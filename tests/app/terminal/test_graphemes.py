"""Grapheme clusters are never cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from dslite.app.terminal.graphemes import chop, grapheme_after, grapheme_before
from dslite.app.tui.transcript.wrapping import wrap_plain

CLUSTERS = [
    "👩‍👩‍👧‍👦", "🇩🇪", "🇯🇵", "👍🏽", "❤️", "👩🏽‍💻", "🏳️‍🌈", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "e\u0301", "か\u3099", "葛\U000e0100", "한", "a", "你",
]  # fmt: skip


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_cluster_is_removed_as_a_whole(cluster: str) -> None:
    text = f"x{cluster}"
    assert grapheme_before(text, len(text)) == 1
    assert grapheme_after(text, 1) == len(text)
    assert grapheme_before(f"{text}{cluster}", len(text) + len(cluster)) == len(text)
    assert grapheme_before(text, 0) == 0


@given(st.lists(st.sampled_from(CLUSTERS), max_size=30), st.integers(2, 20))
def test_no_line_begins_or_ends_inside_of_a_cluster(clusters: list[str], width: int) -> None:
    text = "".join(clusters)
    ends = {0}
    for cluster in clusters:
        ends.add(max(ends) + len(cluster))
    for lines in (wrap_plain(text, width), chop(text, width)):
        assert "".join(lines) == text
        place = 0
        for line in lines:
            assert cell_len(line) <= width
            place += len(line)
            assert place in ends
