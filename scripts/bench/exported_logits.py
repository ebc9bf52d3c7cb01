"""Compares logits of exported adapters in transformers and PEFT with ours; run from the repository's root.

    PEER_PYTHON=ENV/bin/python python -m scripts.bench.exported_logits [--base=PATH] [--cases=o,v,lora]

Every case is an adapter with random arrays, exported in float32. Ours are the logits of base and adapter; theirs are
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
from aligner_jax.exports.forms import EXPORT_FORMS
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase, open_stored
from aligner_jax.peft.fold import Target
from aligner_jax.studies.flag_values import MODEL, names
from scripts.bench.protocol import Worker

TOLERANCE = 1e-4
_NUM_ROWS, _LENGTH = 2, 24


@dataclasses.dataclass(frozen=True)
class Case:
    """One export: the method and options of the adapter, the form, and the projection whose bias holds a prefix."""

    form: str
    method: str
    options: Mapping[str, Any]
    target: Target = "o"


CASES = {
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        differences = compare(args.base, args.cases, Path(scratch))
    if max(differences) > TOLERANCE:
        sys.exit(f"error: logits differ by {max(differences):.1e}, more than {TOLERANCE:.0e}")


def compare(name: str, cases: list[str], scratch: Path) -> list[float]:
    """Prints a table row for every case; returns the largest differences of logits."""
    base, stored = aj.load_base(name), open_stored(name)
    rows_bt = np.random.default_rng(0).integers(0, base.config.vocab_size, (_NUM_ROWS, _LENGTH))
    differences = []
    print(f"{name}, {_NUM_ROWS} rows of {_LENGTH} random tokens, float32")
    print("| case | adapter | form | largest difference of logits | largest effect of the adapter |")
    print("|---|---|---|---|---|")
    with Worker.peer() as peer:
        plain = _write(stored, [], CASES["o"], scratch / "plain")
        before_btv = np.asarray(aj.apply(base.params, None, jnp.asarray(rows_bt, jnp.int32), config=base.config))
        for case_name in cases:
            case = CASES[case_name]
            adapter = _random(case, base)
            ours_btv = np.asarray(aj.apply(base.params, adapter, jnp.asarray(rows_bt, jnp.int32), config=base.config))
            folder = _write(stored, [adapter], case, scratch / case_name)
            if case.form == "peft":
                peer.ask("load", folder=str(plain), dtype="float32")
                peer.ask("load_adapter", folder=str(folder))
            else:
                peer.ask("load", folder=str(folder), dtype="float32")
            peer.ask("logits", rows=rows_bt.tolist(), to=str(scratch / "peer.npy"))
            theirs_btv = np.load(scratch / "peer.npy")
            differences.append(float(np.abs(ours_btv - theirs_btv).max()))
            effect = np.abs(ours_btv - before_btv).max()
            print(f"| {case_name} | {adapter} | {case.form} | {differences[-1]:.1e} | {effect:.2g} |", flush=True)
    return differences


def _random(case: Case, base: aj.Base) -> aj.Adapter:
    """Returns an adapter of which random numbers replace the arrays that are zero at first."""
    adapter = aj.init_adapter(case.method, base.config, key=1, **case.options)
    rng, scale = np.random.default_rng(1), 1e-3 if case.method == "full" else 0.05
    arrays = {
        name: x if np.any(x) else jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32)
        for name, x in adapter.trainable.items()
    }
    return adapter.replace(trainable=arrays)


def _write(base: StoredBase, adapters: list[aj.Adapter], case: Case, folder: Path) -> Path:
    folder.mkdir()
    EXPORT_FORMS[case.form].write(Job(base, tuple(adapters), case.target, "float32"), folder)
    return folder


if __name__ == "__main__":
    main()
