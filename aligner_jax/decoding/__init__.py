"""Decoding: choice of tokens, prefill, and the loop over the cached forward pass."""
