"""Evaluates a base, with or without an adapter.

python -m aligner_jax.evaluate --config=configs/eval/quick.py --adapter=runs/quickstart/adapter.safetensors [--out=DIR]

Writes partial results to the folder (default: runs/eval/CONFIG/ADAPTER) as they are made, and results.json at the end.
The same command resumes an evaluation that was interrupted.
"""

from aligner_jax.evals.interface import parse_evaluate_config
from aligner_jax.evals.run import evaluate
from aligner_jax.evals.subject import subject_name
from aligner_jax.runtime import command, distributed
from aligner_jax.runtime import verb_flags as flags
from aligner_jax.runtime.files import place

CONFIG = command.config_flag()
ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "An adapter: a .safetensors, a .pth, a folder of a run or of PEFT, or a hub name; without one, the base alone "
    "is evaluated.",
)
OUT = flags.DEFINE_string("out", None, "Folder of the results; default runs/eval/CONFIG/ADAPTER.")


def main() -> None:
    config = parse_evaluate_config(CONFIG.value)
    folder = place(OUT.value or f"runs/eval/{CONFIG.name}/{subject_name(ADAPTER.value)}", "--out")
    evaluate(config, ADAPTER.value, folder, distributed.console())


if __name__ == "__main__":
    command.run(main, lasting=True)
