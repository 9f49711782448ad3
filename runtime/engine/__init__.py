"""The engine: prompts in, tokens out. Imports nothing here: sampling_params must load without torch."""
