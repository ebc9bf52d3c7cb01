"""Implementations of attention: Pallas kernels for TPUs and GPUs, cuDNN, XLA's operations, and the reference."""
