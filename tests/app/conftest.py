"""What the tests of the commands share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli_process import Dslite, Forge, forging
from support.markov_model import EOS, write_markov_model
from support.warm import running, short_folder


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    with forging() as started:
        yield started


@pytest.fixture
def dslite(forge: Forge, tmp_path: Path) -> Dslite:
    return Dslite(forge, tmp_path)


@pytest.fixture
def warm(dslite: Dslite) -> Iterator[Dslite]:
    """The command with a runtime folder of its own; engines that it starts are killed."""
    with short_folder() as folder:
        dslite.env["DSLITE_RUNTIME_DIR"] = str(folder)
        yield dslite
        for engine in running(dslite):
            os.kill(engine["pid"], signal.SIGKILL)


@pytest.fixture(scope="session")
def greeter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "hi", and continues "x" with "yz" for ever."""
    successors = {":": " ", " ": "h", "h": "i", "i": EOS, "x": "y", "y": "z", "z": "x"}
    return write_markov_model(tmp_path_factory.mktemp("greeter"), successors)


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "hohoho" for ever."""
    return write_markov_model(tmp_path_factory.mktemp("babbler"), {":": " ", " ": "h", "h": "o", "o": "h"})


@pytest.fixture(scope="session")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with one number that is none."""
    return write_markov_model(tmp_path_factory.mktemp("damaged"), {":": " "}, damaged=True)
