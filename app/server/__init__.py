"""`dslite serve`: the OpenAI-compatible API over one model."""
