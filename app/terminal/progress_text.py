"""What status lines say while a model is loaded and a prompt is read: the same words in every front end."""

from dslite.runtime.events import Compiling, LoadingEvent, Prefilling


def loading_text(event: LoadingEvent) -> str:
    """starting the engine, loading weights 37 % · 11.6 of 31.4 GB, then on a GPU: compiling kernels, 1 of 3"""
    if isinstance(event, Compiling):
        return f"compiling kernels, {event.done} of {event.total}"
    if not event.total_bytes:  # no byte is read yet
        return "starting the engine"
    percent = 100 * event.done_bytes // event.total_bytes
    return f"loading weights {percent} % · {event.done_bytes / 1e9:.1f} of {event.total_bytes / 1e9:.1f} GB"


def reading_text(event: Prefilling) -> str:
    """reading 1,536 of 4,112 · 2,900 tok/s"""
    speed = (event.done - event.cached) / event.elapsed_s if event.elapsed_s > 0 else 0.0
    return f"reading {event.done:,.0f} of {event.total:,} · {speed:,.0f} tok/s"
