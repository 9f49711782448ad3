"""Runs the bindings of keys that arrive together in the order of the keys."""

from textual import events
from textual.widget import Widget


async def run_own_binding(widget: Widget, event: events.Key) -> None:
    """Run the binding of a key that has just come to the widget it belongs to, for its `_on_key`.

    Textual runs a binding only after its key has bubbled to the application; characters behind it, which the widget
    handles itself, overtake it: of Backspace and a letter in one read, as over a slow line, the letter was lost.
    """
    if event.is_printable:
        return
    active = widget.screen.active_bindings.get(event.key)
    if active is not None and active.node is widget and active.enabled:
        event.stop()
        event.prevent_default()
        await widget.app.run_action(active.binding.action, widget)
