"""Training from Python: `aj.train`, and the record of a finished run."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner_jax.api.configs import Config, as_config, name_of
from aligner_jax.errors import InputError

if TYPE_CHECKING:
    from aligner_jax.peft import Adapter
    from aligner_jax.weights.base import Base


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun:
    """A finished run.

    Attributes:
      adapter: the trained adapter; for a sweep, the stack of its adapters.
      metrics: lines of metrics.jsonl, in their order (docs/metrics.md).
      report: content of report.json, the measurements before and after on held-out examples; None without them.
      workdir: folder of the run, with the adapter's file and the checkpoints.
      base: the frozen base, as it was loaded for training.
    """

    adapter: "Adapter"
    metrics: list[dict[str, Any]]
    report: dict[str, Any] | None
    workdir: Path
    base: "Base"

    @property
    def path(self) -> Path:
        """File of the adapter. Raises InputError for a sweep, which has several: adapter_0.safetensors, …"""
        path = self.workdir / "adapter.safetensors"
        if not path.is_file():
            raise InputError(f"{path} does not exist: a sweep writes adapter_0.safetensors and so on, one an adapter")
        return path

    @property
    def base_path(self) -> str:
        """Path or hub name of the base, as the config gives it."""
        from aligner_jax.files.fields import read_fields

        section = read_fields(self.workdir / "config.json").section("base")
        if section is None:
            raise InputError(f"{self.workdir / 'config.json'} names no base")
        return section.text("path")

    def __repr__(self) -> str:
        return f"TrainedRun({self.adapter}, {len(self.metrics)} lines of metrics, workdir={str(self.workdir)!r})"


def train(config: Config, workdir: str | Path | None = None, *, quiet: bool = False) -> TrainedRun:
    """Trains an adapter over a frozen base, as `python -m aligner_jax.train` does; a run that was cut short goes on.

    ```python
    run = aj.train("configs/quickstart.py", "runs/quickstart")
    aj.sample(run.base, run.adapter, ["…"])
    ```

    Args:
      config: a ConfigDict, a dict or a config file's name; see `aj.load_config`.
      workdir: folder of the run, made if it does not exist; with a config file, default is runs/NAME.
      quiet: True prints nothing.

    Returns:
      The run, once it has ended and everything is on disk.

    Raises:
      InputError: the config, the base, the data or the workdir cannot be used.
      KeyboardInterrupt: Ctrl-C, or a notebook's interrupt, after the step in progress was saved; its text says so. A
        second one interrupts at once.
    """
    from aligner_jax.api.process import in_users_process
    from aligner_jax.files.content import exists
    from aligner_jax.files.json_text import read_object
    from aligner_jax.runtime import distributed
    from aligner_jax.runtime.config import parse_config
    from aligner_jax.runtime.files import place
    from aligner_jax.runtime.history import FILE, read_metrics
    from aligner_jax.tasks.training import run_training

    name = name_of(config)
    if not workdir and name is None:
        raise InputError("a config that is not a file has no name for a folder: give the run's folder, workdir=…")
    parsed = parse_config(as_config(config))
    folder = place(str(workdir or f"runs/{name}"), "workdir")
    with in_users_process(quiet=quiet):
        trained = run_training(parsed, folder, distributed.console(quiet=quiet), owns_process=False)
    report = folder / "report.json"
    return TrainedRun(
        adapter=trained.adapter,
        metrics=read_metrics(folder / FILE),
        report=read_object(report) if exists(report) else None,
        workdir=folder,
        base=trained.base,
    )
