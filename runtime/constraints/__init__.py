"""Answers of a given shape: a JSON schema, a regular expression or a grammar, enforced while tokens are drawn."""
