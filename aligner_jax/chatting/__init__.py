"""A chat with a base and its adapters, here or behind an OpenAI-compatible server."""
