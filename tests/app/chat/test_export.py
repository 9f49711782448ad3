"""A conversation that is saved as a file is written whole, or not at all."""

import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dslite.app.chat.export import export
from dslite.app.chat.message_tree import MessageTree
from dslite.runtime.errors import UsageError


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow over 64 KiB."""
    handler, limits = signal.getsignal(signal.SIGXFSZ), resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", ["talk.md", "talk.json"])
def test_what_does_not_fit_on_the_disk_leaves_no_file(tmp_path: Path, full_disk: None, name: str) -> None:
    tree = MessageTree(model="demo")
    tree.add("user", "word " * 40_000, parent=None)
    with pytest.raises(UsageError, match="cannot be written"):
        export(tree, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
