"""HTTP server with OpenAI's API for one base and any number of adapters."""
