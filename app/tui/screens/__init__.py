"""Screens, panels and dialogs."""
