"""The terminal application: Textual widgets around one conversation."""
