"""Training tasks, by the objective's name: each makes its batches, its held-out evaluation and its report."""

from collections.abc import Callable

from aligner_jax.tasks.preference import preference_task
from aligner_jax.tasks.sft import sft_task
from aligner_jax.tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {"sft": sft_task, "dpo": preference_task, "ipo": preference_task}

__all__ = ["TASKS", "Task"]
