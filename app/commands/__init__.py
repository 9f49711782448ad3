"""One module for each command; they import the runtime only when they run."""
