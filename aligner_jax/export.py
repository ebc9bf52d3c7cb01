"""Writes a base with adapters folded in for other engines, or adapters as a PEFT folder.

python -m aligner_jax.export --base=PATH --adapter=runs/quickstart/adapter.safetensors --to=hf --out=DIR

Forms (--to):

- hf: a Hugging Face folder with the tokenizer, which transformers loads without code of its own.
- orbax: an Orbax folder, which every command of this project takes as --base.
- peft: a PEFT folder, for adapters that PEFT can apply exactly.

The base is read a layer at a time, so it may be larger than the host's memory. An adapter that was trained on another
base is refused.
"""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

from aligner_jax.errors import InputError
from aligner_jax.exports import summary
from aligner_jax.exports.forms import EXPORT_FORMS
from aligner_jax.exports.job import Job
from aligner_jax.exports.rounding import logit_difference
from aligner_jax.exports.source import StoredBase, open_stored
from aligner_jax.peft import Adapter, with_strength
from aligner_jax.peft.artifact import read_artifact
from aligner_jax.runtime import command
from aligner_jax.runtime.files import new_folder, place
from aligner_jax.weights.finite import check_finite

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter", None, "An adapter: a .safetensors, a .pth or a PEFT folder; several are applied in their order."
)
TO = flags.DEFINE_enum("to", None, [*EXPORT_FORMS, "gguf"], "Form to write.")
OUT = flags.DEFINE_string("out", None, "Folder to write, new or empty.")
STRENGTH = flags.DEFINE_float("strength", 1.0, "Multiplies what every adapter adds: 0 is the base, 1 the adapter.")
DTYPE = flags.DEFINE_enum(
    "dtype", "stored", ["stored", "float32", "bfloat16", "float16"],
    "Dtype of written weights; stored: that of the base if all its tensors have one, else float32. float16 is refused "
    "where it is not exact for the base's weights.",
)  # fmt: skip
BIAS = flags.DEFINE_enum(
    "bias", "o", ["o", "v"],
    "Projection whose bias holds a prefix of one token; v needs one gate per kv head, and is for engines that drop a "
    "bias of the output projection.",
)  # fmt: skip


def main() -> None:
    _check_flags()
    out, form = place(cast(str, OUT.value), "--out"), EXPORT_FORMS[cast(str, TO.value)]
    with new_folder(out) as folder:
        base = open_stored(cast(str, BASE.value))
        adapters = tuple(_adapter(path, base) for path in cast(list[str], ADAPTER.value))
        dtype = base.stored_dtype if DTYPE.value == "stored" else cast(str, DTYPE.value)
        job = Job(base, adapters, cast(Any, BIAS.value), dtype)
        sentences = form.write(job, folder)
        if form.is_base:
            sentences = [*summary.changes(job), *sentences]
            sentences.append(summary.rounding(job, logit_difference(job, open_stored(str(folder)))))
    for sentence in [*map(str, adapters), *sentences, f"written to {out}"]:
        print(sentence)


def _check_flags() -> None:
    if not (BASE.value and ADAPTER.value and TO.value and OUT.value):
        raise InputError(
            "give a base, an adapter, a form and a folder to write: --base=PATH --adapter=PATH --to=hf --out=DIR"
        )
    if TO.value == "gguf":
        raise InputError(
            "--to=gguf is not supported yet: write --to=hf, and convert the folder with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    if not math.isfinite(cast(float, STRENGTH.value)):
        raise InputError(f"--strength={STRENGTH.value} is not a finite number")
    if TO.value == "peft" and flags.FLAGS["dtype"].present:
        raise InputError("--dtype is of a base's weights, and --to=peft writes adapters, which are float32")


def _adapter(path: str, base: StoredBase) -> Adapter:
    strength = cast(float, STRENGTH.value)
    adapter = with_strength(read_artifact(Path(path), base).adapter, strength)
    for name, x in adapter.trainable.items():
        check_finite(np.asarray(x), f"{path} with --strength={strength:g}: {name}")
    return adapter


if __name__ == "__main__":
    command.run(main)
