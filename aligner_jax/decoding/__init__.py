"""Text out of a base and an adapter: choosing tokens, and the loop round the cached forward pass."""
