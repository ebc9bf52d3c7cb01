"""Helpers of the notebooks: the machine that they run on, a small model, and commands in processes of their own."""

from aligner_jax.notebooks.command_line import command, running
from aligner_jax.notebooks.machine import Machine, find_machine
from aligner_jax.notebooks.smollm2 import small_model

__all__ = ["Machine", "command", "find_machine", "running", "small_model"]
