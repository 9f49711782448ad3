"""Settings of the whole suite."""

import os
import signal

import pytest
import torch
from hypothesis import settings
from support import fake_systems

fake_systems.install()  # where FAKE_SYSTEM names one: before the first module of dslite is imported

# Examples are the same on every run and have no deadline: a loaded machine is no failure.
settings.register_profile("dslite", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("dslite")

# The models of the suite are tiny: a second thread has nothing to do, and on a loaded machine waits for long.
torch.set_num_threads(1)

# Triton reads this when it is first imported, which transformers does too: kernels run without a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

pytest_plugins = ["support.hub_fixtures", "support.serving", "support.warm"]


def _take_signals() -> None:
    """Let commands that tests start be stopped, also where this run ignores signals (`nohup make test`, a job of `&`).

    A program that is started inherits what is ignored, but not a handler.
    """
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_configure(config: pytest.Config) -> None:
    """A failing example is told as it is, not as a warning that an engine is long to print."""
    _take_signals()
    config.addinivalue_line("filterwarnings", "ignore:Generating overly large repr:hypothesis.errors.HypothesisWarning")


def pytest_make_parametrize_id(val: object) -> str | None:
    """A long text by its beginning and length: whole, the names of the tests were 14 MB that each worker sends."""
    text = hex(val) if type(val) is int else val if isinstance(val, str) else repr(val) if type(val) is bytes else ""
    return f"{ascii(text[:60])[1:-1]} and {len(text) - 60} more" if len(text) > 100 else None
