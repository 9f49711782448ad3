"""Keeps a selection by the mouse inside of the widget in which it began.

Textual selects all widgets between the ends of a drag: beyond the upper edge of the transcript that was the title and
every message from the first on, unseen ones too. Here the pointer counts as on the nearest line of the widget, which
Textual scrolls then, and what scrolls into view is selected at once instead of with the next movement of the mouse.
"""

from textual import events
from textual.geometry import Offset
from textual.screen import Screen
from textual.selection import SelectEnd
from textual.widget import Widget


class DragWithinScreen(Screen[None]):
    """A screen on which a drag that begins in `drag_widget` stays there."""

    drag_widget: Widget
    _pointer = Offset(0, 0)  # where the mouse was last, inside of the widget

    @property
    def _is_dragged(self) -> bool:
        state = self._select_state
        return self._selecting and state is not None and state.start.content_widget is self.drag_widget

    def _forward_event(self, event: events.Event) -> None:
        if not isinstance(event, events.MouseMove) or event.is_forwarded or not self._is_dragged:
            super()._forward_event(event)
            return
        region = self.drag_widget.content_region
        right = region.right - 1 - self.drag_widget.scrollbar_size_vertical * self.drag_widget.show_vertical_scrollbar
        x = min(max(event.screen_x, region.x), right)
        y = min(max(event.screen_y, region.y), region.bottom - 1)
        self._pointer = Offset(int(x), int(y))
        held, moved = (event.shift, event.meta, event.ctrl), (event.delta_x, event.delta_y)
        inside = events.MouseMove(event.widget, x, y, *moved, event.button, *held, screen_x=x, screen_y=y)
        super()._forward_event(inside)
        self._update_select()

    def _update_select(self) -> None:
        """Move the end of the selection to what is under the pointer now. Textual calls it when it has scrolled."""
        state, widget = self._select_state, self.drag_widget
        if state is None or state.end is None or not self._is_dragged or not isinstance(widget.parent, Widget):
            super()._update_select()
            return
        place = self._pointer - widget.content_region.offset + widget.scroll_offset
        self._select_state = state.update_end(self._pointer, SelectEnd(widget.parent, widget, place))
