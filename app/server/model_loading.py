"""Loads the model that is served."""

from collections.abc import Sequence

from dslite.app.server.requests import ServedModel
from dslite.app.settings.sampling import model_defaults
from dslite.app.terminal.console import TerminalStatus
from dslite.app.terminal.progress_text import loading_text
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import CheckpointError
from dslite.runtime.text.chat_template import ChatTemplate


def open_served(ref: ModelRef, options: EngineOptions, names: Sequence[str]) -> ServedModel:
    """Find and load the model, with progress on the status line. Raises DsliteError."""
    status = TerminalStatus()
    folder = locate_weights(ref, options.weights)
    try:
        engine = open_engine(ref, options, lambda event: status.show(loading_text(event)))
    finally:
        status.clear()
    try:
        template = ChatTemplate(engine.tokenizer)
    except CheckpointError:
        template = None  # a base model, which serves /v1/completions alone
    return ServedModel(engine, tuple(names), model_defaults(folder), template)
