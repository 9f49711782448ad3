"""Saved conversations: the SQLite store, search, export and import."""
