"""Config sections on the course of a run: checkpoints, limits, report, trace and metrics. No step depends on them."""

import dataclasses

from aligner_jax.files.identity import later
from aligner_jax.runtime.fields import number


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints of a run.

    Attributes:
      every: optimizer steps between two checkpoints.
      keep: number of newest checkpoints to keep.
    """

    every: int = number(200, least=1)
    keep: int = number(2, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonfiniteConfig:
    """Limit on skipped steps, which are those whose loss or gradient is not finite.

    Attributes:
      max_skipped: consecutive skipped steps after which the run ends.
    """

    max_skipped: int = number(10, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StallConfig:
    """Time limits on a single wait, after which the run ends; 0 or None sets no limit.

    Attributes:
      seconds: limit on the wait for a batch, a step or a checkpoint.
      compile_seconds: limit on the first step, on a held-out evaluation and on each compilation of the search
        of remat "auto".
    """

    seconds: float | None = number(1800.0, least=0)
    compile_seconds: float | None = number(7200.0, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The report on the held-out examples before and after training.

    Attributes:
      form: form that generated answers are checked for; None generates no answers.
      samples: number of questions whose answers are printed.
      max_new_tokens: maximum tokens of a generated answer.
    """

    form: str | None = None
    samples: int = number(3, least=0)
    max_new_tokens: int = number(64, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace of a few steps in WORKDIR/profile, for XProf and TensorBoard.

    Attributes:
      steps: optimizer steps to trace; 0 traces none.
      after: optimizer steps that the process takes before the first traced one; they include the compilation.
    """

    steps: int = number(0, least=0)
    after: int = number(5, least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Places that metrics go to besides metrics.jsonl and TensorBoard.

    Attributes:
      wandb: project of Weights & Biases; None sends nothing there.
    """

    wandb: str | None = later(None)
