"""Measures the host memory of an export; run from the repository's root.

    python -m scripts.bench.export_memory [--to=gguf] [--scratch=DIR] [--plan] [--adapter=PATH]

Writes a random bfloat16 model of 2 GB and a one-token Aligner, exports them in a process of their own, and compares the
process's peak memory with that of an export of a tiny model. The difference must stay below three times the largest
tensor. The folder needs 4.2 GB. Before that, folds an adapter over LLaMA-2-7B by shapes alone, and prints what that
export needs; --plan prints this alone. The adapter is a fresh Aligner of one token, or that of --adapter, such as a
file that the authors released.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import aligner_jax as aj
from aligner_jax.exports.source import open_stored
from aligner_jax.peft.fold import make_fold
from aligner_jax.weights.hf_write import write_hf
from aligner_jax.weights.leaves import leaf_specs
from scripts.bench import protocol

LARGE = aj.LlamaConfig(
    vocab_size=131_072, d_model=2048, d_mlp=8192, num_layers=7, num_heads=16, num_kv_heads=16, head_dim=128,
    context_length=4096,
)  # fmt: skip
TINY = aj.LlamaConfig(
    vocab_size=128, d_model=64, d_mlp=128, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, context_length=4096
)
EXPORT = """
import sys
from aligner_jax.export import main
from aligner_jax.runtime import command
from scripts.bench import protocol
try:
    command.run(main)
except SystemExit as ended:
    if ended.code:
        raise
print(protocol.peak_memory()["bytes"])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", help="folder for the models (default: a temporary one)")
    parser.add_argument("--to", choices=("hf", "gguf"), default="hf", help="form of the export (default %(default)s)")
    parser.add_argument("--plan", action="store_true", help="measure nothing")
    parser.add_argument("--adapter", help="adapter of LLaMA-2-7B (default: a fresh Aligner of one token)")
    args = parser.parse_args()
    config = aj.llama_config("llama2_7b")
    adapter = aj.load_adapter(args.adapter) if args.adapter else aj.init_adapter("aligner", config)
    planned, largest = plan(config, adapter), largest_tensor(config)
    print(
        f"LLaMA-2-7B in bfloat16 with {adapter}: {planned / 2**20:.0f} MiB, {planned / largest:.2f} of largest tensor"
    )
    if not args.plan:
        check(args.scratch, args.to)


def check(scratch_folder: str | None, form: str) -> None:
    """Measures an export of 2 GB. Ends the program if it takes more than three times the largest tensor."""
    with tempfile.TemporaryDirectory(dir=scratch_folder) as scratch:
        baseline = measure(TINY, Path(scratch) / "tiny", form)
        began = time.perf_counter()
        peak = measure(LARGE, Path(scratch) / "large", form)
        seconds = time.perf_counter() - began
    largest = largest_tensor(LARGE)
    print(json.dumps({"largest_tensor": largest, "baseline": baseline, "peak": peak, "seconds": round(seconds)}))
    ratio = (peak - baseline) / largest
    print(f"beyond the baseline: {ratio:.2f} times the largest tensor of {largest / 2**20:.0f} MiB")
    if ratio > 3:
        sys.exit(f"error: an export takes {ratio:.2f} times the largest tensor, more than 3")


def measure(config: aj.LlamaConfig, folder: Path, form: str) -> int:
    """Returns the peak memory of an export in a form over a random model of this configuration, in bytes."""
    (folder / "base").mkdir(parents=True)
    random = np.random.default_rng(0).standard_normal(2**20, np.float32) / 32
    block = random.astype(jnp.bfloat16)

    def parts(leaf: str, indexes: Sequence[Sequence[slice]]) -> list[np.ndarray]:
        shape = leaf_specs(config)[leaf].shape
        sizes = [[len(range(*cut.indices(n))) for cut, n in zip(index, shape, strict=True)] for index in indexes]
        return [np.resize(block, size) for size in sizes]

    write_hf(folder / "base", config, parts, "bfloat16")
    base = open_stored(str(folder / "base"))
    adapter = aj.init_adapter("aligner", config, start_layer=1)
    gates_ln = jnp.full_like(adapter.trainable["gates_ln"], 0.01)
    adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": gates_ln})
    aj.save_adapter(adapter, folder / "adapter.safetensors", base=base)
    flags = [f"--base={folder / 'base'}", f"--adapter={folder / 'adapter.safetensors'}", f"--to={form}"]
    ended = subprocess.run(
        [sys.executable, "-c", EXPORT, *flags, f"--out={folder / 'out'}"],
        cwd=protocol.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(ended.stdout.rpartition("\n")[0].strip(), flush=True)
    return int(ended.stdout.split()[-1])


def largest_tensor(config: aj.LlamaConfig, itemsize: int = 2) -> int:
    """Returns the size in bytes of the largest tensor of a model's files."""
    return max(math.prod(spec.shape[spec.axes[0] == "layers" :]) * itemsize for spec in leaf_specs(config).values())


def plan(config: aj.LlamaConfig, adapter: aj.Adapter, itemsize: int = 2) -> int:
    """Returns the bytes that an export holds at most, from the shapes of the model's leaves.

    Writing holds a tensor and its transposed copy. Folding holds the leaves of a layer that a changed one is computed
    from in float32, on the host and on the device. The check of logits holds a layer as stored, and one of its matrices
    in float32.
    """
    sizes = {leaf: math.prod(spec.shape[spec.axes[0] == "layers" :]) for leaf, spec in leaf_specs(config).items()}
    layer = [sizes[leaf] for leaf, spec in leaf_specs(config).items() if spec.axes[0] == "layers"]
    folded = [sum(sizes[leaf] for leaf in needed) for needed in make_fold([adapter], config).needs.values()]
    writing, folding, checking = 2 * max(sizes.values()) * itemsize, 8 * max(folded), 4 * max(layer)
    return max(writing, folding, sum(layer) * itemsize + checking)


if __name__ == "__main__":
    main()
