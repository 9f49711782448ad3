"""A file is replaced whole or not at all, and nothing is left beside it."""

import os
from pathlib import Path

import pytest

from dslite.runtime.atomic_file import replacing, write_file


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_new_contents_replace_the_old_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_file(file, b"old")
    with replacing(file) as stream:
        stream.write(b"ne")
        assert file.read_bytes() == b"old"
        stream.write(b"w")
    assert (file.read_bytes(), names(tmp_path)) == (b"new", ["a"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [False, True])
def test_after_an_error_the_old_contents_stand_and_nothing_is_left(
    error: type[BaseException], exists: bool, tmp_path: Path
) -> None:
    file = tmp_path / "a"
    if exists:
        file.write_bytes(b"old")

    def broken() -> None:
        with replacing(file) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        broken()
    assert names(tmp_path) == (["a"] if exists else [])
    assert not exists or file.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_leaves_the_old_contents(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"old")

    def fill() -> None:
        with replacing(file) as stream:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, stream.fileno())
            os.close(full)
            stream.write(b"new")

    with pytest.raises(OSError, match="No space"):
        fill()
    assert (file.read_bytes(), names(tmp_path)) == (b"old", ["a"])


def test_a_name_that_cannot_be_replaced_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


def test_a_file_keeps_its_permissions_and_a_new_one_gets_the_usual_or_the_named(tmp_path: Path) -> None:
    kept, usual, secret, plain = (tmp_path / name for name in "abcd")
    kept.write_bytes(b"")
    kept.chmod(0o640)
    plain.write_bytes(b"")
    write_file(kept, b"x", mode=0o600)
    write_file(usual, b"x")
    write_file(secret, b"x", mode=0o600)
    modes = [file.stat().st_mode & 0o777 for file in (kept, usual, secret)]
    assert modes == [0o640, plain.stat().st_mode & 0o777, 0o600]


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_its_target_is_replaced(dangling: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to(Path("there") / "target")
    if not dangling:
        target.write_bytes(b"old")
    write_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert (names(tmp_path), names(target.parent)) == (["link", "there"], ["target"])
