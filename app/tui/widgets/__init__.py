"""The prompt, the status line and the inspector."""
