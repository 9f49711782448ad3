"""Files that ship with dslite: the demo model, default profiles, the application's style sheet."""
