"""Chats: conversations in the format of a model's API or of a training library."""
