"""The folder of the sockets: whose it is, and how long its path may be."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from support.warm import needs_engines

from dslite.runtime.system import local_socket
from dslite.runtime.warm.address import RuntimeFolderError, find_folder, make_folder, runtime_folder, socket_file

pytestmark = needs_engines


def test_a_folder_is_made_for_this_user_alone(runtime_dir: Path) -> None:
    assert find_folder() is None
    assert make_folder() == runtime_dir == find_folder()
    assert runtime_dir.stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_folder_that_others_can_enter_is_refused(runtime_dir: Path, mode: int) -> None:
    runtime_dir.mkdir()
    runtime_dir.chmod(mode)
    for look in (find_folder, make_folder):
        with pytest.raises(RuntimeFolderError, match="open to other users"):
            look()


def test_the_folder_of_another_user_is_refused(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder()
    monkeypatch.setattr(local_socket, "user_id", lambda: os.geteuid() + 1)
    with pytest.raises(RuntimeFolderError, match="belongs to user"):
        find_folder()


def test_a_link_to_a_good_folder_is_refused(runtime_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir(mode=0o700)
    runtime_dir.symlink_to(tmp_path / "good")
    for look in (find_folder, make_folder):
        with pytest.raises(RuntimeFolderError, match="symbolic link"):
            look()


def test_a_file_in_its_place_is_refused(runtime_dir: Path) -> None:
    runtime_dir.touch(mode=0o600)
    for look in (find_folder, make_folder):
        with pytest.raises(RuntimeFolderError):
            look()


def test_the_folder_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.delenv("DSLITE_RUNTIME_DIR", raising=False)
    assert runtime_folder() == Path("/run/user/7/dslite")
    monkeypatch.setenv("DSLITE_RUNTIME_DIR", "/elsewhere")
    assert runtime_folder() == Path("/elsewhere")
    monkeypatch.delenv("DSLITE_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime_folder().name == f"dslite-{os.geteuid()}"


@pytest.mark.parametrize("length", [60, 75, 76, 90, 300])
def test_a_socket_fits_whatever_the_length_of_the_folder(
    length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = "/tmp/" + "f" * (length - 5)
    monkeypatch.setenv("DSLITE_RUNTIME_DIR", given)
    file = socket_file(runtime_folder(), "0" * 20)
    if length > 75:
        assert file.parent != Path(given)
        monkeypatch.setenv("DSLITE_RUNTIME_DIR", given + "g")
        assert runtime_folder() != file.parent  # two folders stay two
    file.parent.mkdir(mode=0o700)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(file))
        assert len(os.fsencode(file)) <= local_socket.MOST_PATH_BYTES
    finally:
        shutil.rmtree(file.parent)
