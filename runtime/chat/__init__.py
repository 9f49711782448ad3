"""Chat backends: one protocol, the local engine, an OpenAI-compatible server."""
