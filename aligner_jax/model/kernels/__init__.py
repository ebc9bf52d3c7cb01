"""Implementations of attention: a Pallas kernel for TPUs, XLA's operations, and the reference."""
