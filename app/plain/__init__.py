"""`dslite chat --plain`: the chat line by line, for screen readers and simple terminals."""
