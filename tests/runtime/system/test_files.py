"""Files as each system can read them: with positional reads, without, and with replacing that must be tried again."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dslite.runtime.system import files
from dslite.runtime.system.files import free_disk_bytes, open_descriptor, read_at, reopen, replace

DATA = bytes(range(256)) * 64


@pytest.fixture(params=["preadv", "pread", "seek"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that has these calls: Linux and macOS 11, older macOS, Windows."""
    missing = {"preadv": (), "pread": ("preadv",), "seek": ("preadv", "pread")}[request.param]
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    return str(request.param)


@pytest.mark.usefixtures("reads")
def test_reads_at_a_position_bring_its_bytes_from_many_threads_at_once(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    descriptor, _ = open_descriptor(file)
    start = threading.Barrier(8)

    def read(place: int) -> bytes:
        start.wait(60)
        target = bytearray(512)
        assert read_at(descriptor, memoryview(target), place * 512) == 512
        return bytes(target)

    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(read, range(8))) == [DATA[place * 512 :][:512] for place in range(8)]
        target = bytearray(8)
        assert read_at(descriptor, memoryview(target), len(DATA) - 4) == 4  # a read over the end is short
        assert bytes(target) == DATA[-4:] + bytes(4)
        assert read_at(descriptor, memoryview(target), len(DATA)) == 0
    finally:
        os.close(descriptor)


def test_a_file_is_opened_past_the_page_cache_or_plainly(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    plain, direct = open_descriptor(file)
    assert not direct
    os.close(plain)
    asked, _ = open_descriptor(file, direct=True)  # whether it is granted is the file system's matter
    os.close(asked)
    with pytest.raises(FileNotFoundError):
        open_descriptor(tmp_path / "none", direct=True)


def test_a_reopened_file_is_the_same_one_after_its_name_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(DATA)
    descriptor, _ = open_descriptor(file)
    file.unlink()
    second = reopen(descriptor)
    os.close(descriptor)
    if second is not None:  # None outside of Linux
        assert os.read(second, 16) == DATA[:16]
        os.close(second)


def test_the_room_of_a_disk_is_known_before_its_folder_exists(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path / "not" / "yet") > 0


class Locked(type(Path())):  # type: ignore[misc]
    """A file that another process has open for its first attempts, as Windows refuses them."""

    refusals = 0

    def replace(self, target: object) -> Path:
        if Locked.refusals > 0:
            Locked.refusals -= 1
            raise PermissionError(13, "the file is used by another process")
        return super().replace(target)  # type: ignore[no-any-return]


def test_windows_replaces_a_file_as_soon_as_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "system_name", lambda: "windows")
    monkeypatch.setattr(files, "_REPLACE_WAIT_S", 0.0)
    source, target = Locked(tmp_path / "new"), tmp_path / "old"
    target.write_text("old")
    for refusals, outcome in ((3, "new"), (1000, "old")):
        source.write_text("new")
        target.write_text("old")
        Locked.refusals = refusals
        if outcome == "old":
            with pytest.raises(PermissionError):
                replace(source, target)
        else:
            replace(source, target)
        assert target.read_text() == outcome


def test_elsewhere_a_refusal_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "system_name", lambda: "linux")
    source = Locked(tmp_path / "new")
    source.write_text("new")
    Locked.refusals = 1
    with pytest.raises(PermissionError):
        replace(source, tmp_path / "old")
    assert Locked.refusals == 0
