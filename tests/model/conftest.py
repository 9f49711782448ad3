"""The levels of the compiled products."""

import pytest

from dslite.model.kernels import native
from dslite.model.kernels.library import LEVELS, levels


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every product of the test is by one level of the library."""
    if request.param not in levels():
        pytest.skip(f"this processor has no {request.param}")
    made = native.products(request.param)
    monkeypatch.setattr(native, "products", lambda: made)
    name: str = request.param
    return name
