"""Reports a sweep: the held-out loss of every adapter, and the best adapter."""

import json
import math
from pathlib import Path

from rich.console import Console

from aligner_jax.runtime.config import TrainConfig
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.nonfinite import finite_or_none
from aligner_jax.runtime.tables import Table


def report(config: TrainConfig, losses: list[float], path: Path, console: Console) -> None:
    """Prints a table with one row per adapter, and writes the rows to a JSON file.

    Args:
      config: config of the sweep.
      losses: held-out losses in nats per target token, in the order of the adapters.
      path: JSON file.
      console: console for the table.
    """
    rates = config.sweep.lr or (config.optim.lr,) * len(losses)
    seeds = config.sweep.seed or (config.seed,) * len(losses)
    found = [
        {"adapter": f"adapter_{i}.safetensors", "lr": rate, "seed": seed, "heldout_loss": loss}
        for i, (rate, seed, loss) in enumerate(zip(rates, seeds, losses, strict=True))
    ]
    # The loss of an adapter that diverged is not finite; it counts as the largest.
    best = min(range(len(losses)), key=lambda i: losses[i] if math.isfinite(losses[i]) else math.inf)
    write_atomically(path, json.dumps(finite_or_none({"adapters": found, "best": best}), indent=2) + "\n")
    table = Table("The sweep, on held-out examples")
    for heading in ("adapter", "learning rate", "seed", "loss (nats a token)"):
        table.add_column(heading, justify="right")
    for i, one in enumerate(found):
        loss = f"{one['heldout_loss']:.4f}{' *' if i == best else ''}"
        table.add_row(str(i), f"{one['lr']:g}", str(one["seed"]), loss)
    console.print(table)
