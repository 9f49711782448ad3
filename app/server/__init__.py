"""`dslite serve`: the OpenAI-compatible API over one model, for the clients of one machine or a small company."""
