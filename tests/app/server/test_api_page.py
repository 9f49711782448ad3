"""docs/api.md says what the tables of fields say."""

from pathlib import Path

from dslite.app.server.api_page import api_page
from dslite.app.server.limits import Limits
from dslite.app.server.routes import described_routes

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_the_page_is_made_from_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_page(), "python -m dslite.app.server.api_page > docs/api.md"


def test_the_page_names_every_field_and_its_reason() -> None:
    page = api_page()
    for route in described_routes(Limits()):
        assert f"`{route.method} {route.path}`" in page
        for field in route.body.fields.values() if route.body else ():
            assert f"`{field.name}`" in page
            assert field.about in page
