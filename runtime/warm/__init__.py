"""The warm engine: a process of the user's that keeps a model loaded, behind a Unix socket. Imports nothing here."""
