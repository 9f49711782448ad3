"""The terminal outside the full-screen application: messages, tables, signals, clipboard, editor, log file."""
