"""Models on this machine and where they come from: names, the Hub's files, downloads that go on, checks, the list."""
