"""Keys that arrive together are done in their order."""

from textual import events
from textual.widget import Widget


async def run_own_binding(widget: Widget, event: events.Key) -> None:
    """Run the binding of a key that has just come to the widget it belongs to, for its `_on_key`.

    Textual runs a binding only when its key has risen to the application; characters behind it, which the widget takes
    itself, overtake it. So of Backspace and a letter in one piece, as a slow line delivers them, the letter was lost.
    """
    if event.is_printable:
        return
    active = widget.screen.active_bindings.get(event.key)
    if active is not None and active.node is widget and active.enabled:
        event.stop()
        event.prevent_default()
        await widget.app.run_action(active.binding.action, widget)
