"""dslite.log: what the package logs is kept, and never in the way."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dslite.app.terminal import console, log_file
from dslite.app.terminal.log_file import keep_log


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    logger = logging.getLogger("dslite")
    before, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = before
    logger.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSLITE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_the_log_has_what_happened_and_stderr_only_warnings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_log()
    keep_log()  # a second time changes nothing
    log = logging.getLogger("dslite.runtime.some")
    log.info("an answer")
    log.warning("memory is short")
    kept = (folder / "dslite.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in kept] == [
        "INFO dslite.runtime.some: an answer",
        "WARNING dslite.runtime.some: memory is short",
    ]
    assert capsys.readouterr().err == "dslite: memory is short\n"


@pytest.mark.parametrize("debug", [False, True])
def test_a_traceback_is_in_the_log_and_on_stderr_under_debug_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    keep_log()
    monkeypatch.setattr(console, "settings", console.Settings(debug=debug))
    try:
        raise UnicodeError("a label is empty")
    except UnicodeError:
        logging.getLogger("dslite.runtime.some").exception("the answer could not be read")
    assert "UnicodeError: a label is empty" in (folder / "dslite.log").read_text()
    shown = capsys.readouterr().err
    assert shown.startswith("dslite: the answer could not be read\n")
    assert ("Traceback" in shown) is debug


def test_a_log_that_cannot_be_written_harms_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSLITE_DATA_DIR", str(tmp_path / "file" / "below"))
    keep_log()
    logging.getLogger("dslite.runtime.some").info("an answer")


def test_a_large_log_begins_anew_and_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_MOST_BYTES", 100)
    keep_log()
    for number in range(5):
        logging.getLogger("dslite.runtime.some").info("line %d of forty characters or so, in all", number)
    assert (folder / "dslite.log").stat().st_size < 300
    assert (folder / "dslite.log.1").is_file()
