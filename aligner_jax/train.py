"""Trains an adapter over a frozen base.

python -m aligner_jax.train --config=configs/quickstart.py [--workdir=DIR] [--config.optim.lr=1e-3]

Writes to the workdir (default: runs/NAME, where NAME is the config's name): config.json, metrics.jsonl, TensorBoard
event files, checkpoints/ and, at the end, adapter.safetensors (for a sweep: adapter_0.safetensors, …) and report.json.
The same command resumes a run that was interrupted.
"""

from aligner_jax.runtime import command, distributed
from aligner_jax.runtime import verb_flags as flags
from aligner_jax.runtime.config import parse_config
from aligner_jax.runtime.files import place
from aligner_jax.tasks.first_adapter import method_choice
from aligner_jax.tasks.objectives import objective_choice
from aligner_jax.tasks.training import train

CONFIG = command.config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME, NAME being the config file's.")


def main() -> None:
    config = parse_config(CONFIG.load(method_choice(), objective_choice()))
    train(config, place(WORKDIR.value or f"runs/{CONFIG.name}", "--workdir"), distributed.console())


if __name__ == "__main__":
    command.run(main, lasting=True)
