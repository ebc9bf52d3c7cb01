"""Measures adapters in few bytes: size of the arrays and of the file, error of the numbers, held-out loss.

    python -m scripts.bench.adapter_bytes --adapter=runs/quickstart/adapter.safetensors
    python -m scripts.bench.adapter_bytes --adapter=aligner.pth --base=          # without a base: no loss

The loss is that of the answers in a file of examples, the last ones if --examples says how many. The file records the
base if the adapter's own does, and no canary, which would be up to 1.5 KB more.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

import aligner_jax as aj
from aligner_jax.data import pipeline
from aligner_jax.data.sources import load_examples
from aligner_jax.evals.heldout import heldout_loss
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.compact import DTYPES, rounded
from aligner_jax.runtime import platform
from aligner_jax.studies.flag_values import MODEL

HEAD = (
    f"{'dtype':10}{'arrays, bytes':>14}{'bits a number':>15}{'file, bytes':>13}{'held-out loss':>15}{'difference':>12}"
    "   relative error"
)
_HELDOUT = "aligner_jax/data/quickstart/heldout.jsonl"


class Row(NamedTuple):
    """Figures of one dtype; the error is a root mean square, relative to that of the array's numbers."""

    dtype: str
    nbytes: int
    file_bytes: int
    errors: dict[str, float]
    loss: float | None


def main() -> None:
    args = arguments()
    platform.prepare()
    base = aj.load_base(args.base, platform.compute_dtype(args.dtype)) if args.base else None
    artifact = read_artifact(args.adapter, base)
    batches = []
    if base is not None:
        if base.tokenizer is None:
            raise SystemExit(f"{args.base} has no tokenizer")
        documents, _ = pipeline.tokenize_examples(
            load_examples(args.data)[-args.examples :], base.tokenizer, args.template, system=args.system,
            sequence_length=args.length, overlong="drop",
        )  # fmt: skip
        batches = pipeline.eval_batches(documents, batch_size=4, sequence_length=args.length)
    print(HEAD, flush=True)
    first_loss = None
    for dtype in DTYPES:
        adapter, nbytes = rounded(artifact.adapter, dtype)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "adapter.safetensors"
            save_adapter(artifact.adapter, path, artifact.base, canary=False, dtype=dtype)
            file_bytes = path.stat().st_size
        errors = {
            name: relative_error(np.asarray(x, np.float32), np.asarray(adapter.trainable[name]))
            for name, x in artifact.adapter.trainable.items()
        }
        loss = None if base is None else heldout_loss(base.params, adapter, batches, config=base.config)
        first_loss = loss if first_loss is None else first_loss
        print(line(Row(dtype, nbytes, file_bytes, errors, loss), artifact.adapter.num_params, first_loss), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="anything that aj.load_adapter reads")
    parser.add_argument("--base", default=MODEL, help="anything that aj.load_base reads (default %(default)s)")
    parser.add_argument("--data", default=_HELDOUT, help="held-out examples (default %(default)s)")
    parser.add_argument("--template", default="chat", help="template of the prompts (default %(default)s)")
    parser.add_argument("--system", default="", help="system message (default: an empty one)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the base")
    parser.add_argument("--examples", type=int, default=0, help="the last ones of the file (default: all)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default %(default)s)")
    return parser.parse_args()


def relative_error(numbers: np.ndarray, rounded_numbers: np.ndarray) -> float:
    """Returns the root mean square of the error, relative to that of the numbers; 0 if all numbers are 0."""
    size = float(np.sqrt(np.mean(np.square(numbers, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(numbers - rounded_numbers, dtype=np.float64))))
    return error / size if size else error


def line(row: Row, num_params: int, first_loss: float | None) -> str:
    """Formats a row under `HEAD`, with its loss relative to the first row's."""
    loss = f"{'':>15}{'':>12}"
    if row.loss is not None and first_loss is not None:
        loss = f"{row.loss:>15.4f}{row.loss - first_loss:>+12.4f}"
    errors = ", ".join(f"{name} {error:.2%}" for name, error in sorted(row.errors.items()))
    bits = 8 * row.nbytes / num_params
    return f"{row.dtype:10}{row.nbytes:>14,}{bits:>15.2f}{row.file_bytes:>13,}{loss}   {errors}"


if __name__ == "__main__":
    main()
