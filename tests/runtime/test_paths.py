"""Where dslite keeps its own files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dslite.runtime.paths import cache_dir, config_dir, data_dir, write_json


@pytest.mark.parametrize(
    ("variable", "place"),
    [("DSLITE_CONFIG_DIR", config_dir), ("DSLITE_DATA_DIR", data_dir), ("DSLITE_CACHE_DIR", cache_dir)],
)
def test_the_environment_overrules_the_system_s_place(
    variable: str, place: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, str(tmp_path))
    assert place() == tmp_path
    monkeypatch.setenv(variable, "~/mine")
    assert place() == Path.home() / "mine"
    monkeypatch.delenv(variable)
    assert place().name == "dslite"


def test_a_value_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "value.json"
    write_json(file, [1])
    write_json(file, {"a": 2})
    assert file.read_text() == '{\n "a": 2\n}'
    assert list(file.parent.iterdir()) == [file]
