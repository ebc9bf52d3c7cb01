"""Compares logits of exported adapters in transformers and PEFT with ours; run from the repository's root.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.exported_logits [--base=PATH] [--cases=o,v,lora]

Every case is an adapter with random arrays, exported in float32; "none" is the base alone, which shows how far two
libraries differ on the same weights. Ours are the logits of base and adapter; theirs are
those of the exported folder in transformers, and of base and exported folder in PEFT. The result is a Markdown table.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import aligner_jax as aj
from aligner_jax.data.sources import load_examples
from aligner_jax.exports.forms import EXPORT_FORMS
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase, open_stored
from aligner_jax.peft.fold import Target
from aligner_jax.studies.flag_values import MODEL, names
from scripts.bench.protocol import Worker
from scripts.bench.same_model import DATA

TOLERANCE = 1e-4
_NUM_ROWS, _LENGTH = 2, 24
_SCALES = {"aligner": 0.01, "bias": 0.01, "lora": 0.005, "full": 0.001}
"""Standard deviations of the arrays that are zero at first, which change SmolLM2-135M's logits by a few units."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One export: its form, the adapter's method (None: the base alone) and options, and where a prefix's bias is."""

    form: str
    method: str | None
    options: Mapping[str, Any]
    target: Target = "o"


CASES = {
    "none": Case("hf", None, {}),
    "o": Case("hf", "aligner", {}),
    "v": Case("hf", "aligner", {"gates": "kv_head"}, "v"),
    "lora": Case("hf", "lora", {"rank": 4, "targets": ("q", "v", "o", "down")}),
    "bias": Case("hf", "bias", {}),
    "full": Case("hf", "full", {}),
    "peft_bias": Case("peft", "aligner", {}),
    "peft_bias_v": Case("peft", "aligner", {"gates": "kv_head"}, "v"),
    "peft_lora": Case("peft", "lora", {"rank": 4, "targets": ("q", "v")}),
    "peft_prompt": Case("peft", "aligner", {"num_tokens": 4, "gates": "layer"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MODEL, help="anything that aj.load_base reads (default %(default)s)")
    parser.add_argument("--cases", type=names(tuple(CASES)), default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="dtype of their computation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        differences = compare(args.base, args.cases, args.dtype, Path(scratch))
    if max(differences) > TOLERANCE:
        sys.exit(f"error: logits differ by {max(differences):.1e}, more than {TOLERANCE:.0e}")


def compare(name: str, cases: list[str], dtype: str, scratch: Path) -> list[float]:
    """Prints a table row for every case; returns the largest differences of logits."""
    base, stored = aj.load_base(name), open_stored(name)
    rows_bt = _rows(base)
    differences = []
    print(f"{name}, {_NUM_ROWS} rows of {_LENGTH} tokens; ours in float32, theirs in {dtype}")
    print("| case | adapter | form | largest difference of logits | largest effect of the adapter |")
    print("|---|---|---|---|---|")
    with Worker.peer() as peer:
        plain = _write(stored, None, CASES["none"], scratch / "plain")
        before_btv = np.asarray(aj.apply(base.params, None, jnp.asarray(rows_bt, jnp.int32), config=base.config))
        for case_name in cases:
            case = CASES[case_name]
            adapter = random_adapter(base, case.method, case.options)
            ours_btv = np.asarray(aj.apply(base.params, adapter, jnp.asarray(rows_bt, jnp.int32), config=base.config))
            folder = _write(stored, adapter, case, scratch / case_name)
            if case.form == "peft":
                peer.ask("load", folder=str(plain), dtype=dtype)
                peer.ask("load_adapter", folder=str(folder))
            else:
                peer.ask("load", folder=str(folder), dtype=dtype)
            peer.ask("logits", rows=rows_bt.tolist(), to=str(scratch / "peer.npy"))
            theirs_btv = np.load(scratch / "peer.npy")
            differences.append(float(np.abs(ours_btv - theirs_btv).max()))
            effect = np.abs(ours_btv - before_btv).max()
            print(f"| {case_name} | {adapter} | {case.form} | {differences[-1]:.1e} | {effect:.2g} |", flush=True)
    return differences


def _rows(base: aj.Base) -> np.ndarray:
    """Returns the first tokens of examples of the quickstart, or random ones if the base has no tokenizer."""
    if base.tokenizer is None:
        return np.random.default_rng(0).integers(0, base.config.vocab_size, (_NUM_ROWS, _LENGTH))
    texts = [f"{example.question}\n{example.answer}" for example in load_examples(str(DATA))]
    rows = [row[:_LENGTH] for text in texts if len(row := base.tokenizer.encode(text)) >= _LENGTH]
    return np.asarray(rows[:_NUM_ROWS])


def random_adapter(base: aj.Base, method: str | None, options: Mapping[str, Any]) -> aj.Adapter | None:
    """Returns an adapter with small random numbers in place of arrays that are zero at first; None without a method."""
    if method is None:
        return None
    adapter = aj.init_adapter(method, base.config, key=1, **options)
    rng, scale = np.random.default_rng(1), _SCALES[method]
    arrays = {
        name: x if np.any(x) else jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32)
        for name, x in adapter.trainable.items()
    }
    return adapter.replace(trainable=arrays)


def _write(base: StoredBase, adapter: aj.Adapter | None, case: Case, folder: Path) -> Path:
    folder.mkdir()
    EXPORT_FORMS[case.form].write(Job(base, () if adapter is None else (adapter,), case.target, "float32"), folder)
    return folder


if __name__ == "__main__":
    main()
