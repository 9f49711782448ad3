"""docs/api.md says what the tables of fields say."""

from pathlib import Path

from dslite.app.server.api_page import api_page
from dslite.app.server.limits import Limits
from dslite.app.server.request_fields import chat_fields, completion_fields

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_the_page_is_made_from_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_page(), "python -m dslite.app.server.api_page > docs/api.md"


def test_the_page_names_every_field_and_its_reason() -> None:
    page = api_page()
    for table in (chat_fields(Limits()), completion_fields(Limits())):
        for field in table.fields.values():
            assert f"`{field.name}`" in page
            assert field.about in page
