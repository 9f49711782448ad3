"""Corrections of Textual's behaviour, each with its reason."""
