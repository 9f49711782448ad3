"""What several test modules share; README.md lists the modules."""
