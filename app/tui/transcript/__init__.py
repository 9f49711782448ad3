"""The conversation on the screen: Markdown blocks drawn into a virtual list of lines."""
