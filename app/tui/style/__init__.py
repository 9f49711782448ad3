"""Themes, key bindings, the command palette, and output without colour."""
