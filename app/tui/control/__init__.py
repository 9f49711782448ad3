"""What connects the screen to the conversation and to the engine's thread."""
