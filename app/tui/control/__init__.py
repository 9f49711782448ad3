"""Connects the screen with the ChatController: its view of the chat, and its slash commands."""
