"""Files in a message: split and joined without loss, whatever an imported file says of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dslite.app.sessions.attachments import Attachment, split_attachments, with_attachments

TEXT = st.text(min_size=1)
FILES = st.lists(st.builds(Attachment, TEXT, TEXT, st.none() | st.integers(0, 10**6)), max_size=4)


@given(FILES, st.text())
def test_a_message_is_split_into_what_it_was_joined_of(files: list[Attachment], text: str) -> None:
    content, info = with_attachments(files, text)
    assert split_attachments(content, info) == (files, text)


@pytest.mark.parametrize(
    "places",
    [
        7,
        [7],
        [{}],
        [{"name": "a", "characters": -1}],
        [{"name": "a", "characters": 0}],
        [{"name": "a", "characters": True}],
        [{"name": "a", "characters": 10**9}],
        [{"name": 1, "characters": 3}],
        [{"name": "a", "characters": 3}],  # no blank line behind it
    ],
)
def test_places_that_are_not_in_the_text_make_all_of_it_text(places: Any) -> None:
    assert split_attachments("content\n\nmore", {"files": places}) == ([], "content\n\nmore")
