"""Writes a base with adapters folded in for other engines, or adapters as a folder for a hub or for PEFT.

python -m aligner_jax.export --base=PATH --adapter=runs/quickstart/adapter.safetensors --to=hf --out=DIR
python -m aligner_jax.export --adapter=runs/quickstart --to=adapter --out=DIR [--push=ORG/NAME]

Forms (--to):

- hf: a Hugging Face folder with the tokenizer, which transformers loads without code of its own.
- orbax: an Orbax folder, which every command of this project takes as --base.
- peft: a PEFT folder, for adapters that PEFT can apply exactly.
- adapter: one adapter of this project with a model card; `aj.load_adapter` takes the folder.

The base is read a layer at a time, so it may be larger than the host's memory. An adapter that was trained on another
base is refused. All but peft have a model card (README.md). --push uploads the folder to a new, private repository of a
hub, with the token of HF_TOKEN or of `hf auth login`.
"""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

from aligner_jax.errors import InputError
from aligner_jax.exports import summary
from aligner_jax.exports.adapter_folder import fill_adapter_folder
from aligner_jax.exports.canary import canary_rows, write_canary
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.engines import added_bias, engine_lines
from aligner_jax.exports.forms import EXPORT_FORMS, ExportForm
from aligner_jax.exports.hub import check_push, push
from aligner_jax.exports.job import Job
from aligner_jax.exports.model_card import ModelExport, model_card
from aligner_jax.exports.rounding import measure
from aligner_jax.exports.run_folder import RunFolder, read_run_folder, run_beside
from aligner_jax.exports.source import open_stored
from aligner_jax.files.content import exists
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter, with_strength
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.peft.canary import choose
from aligner_jax.peft.fold import Unfoldable
from aligner_jax.runtime import command
from aligner_jax.runtime.files import new_folder, place
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.hub import is_hub_name

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter", None,
    "An adapter: a .safetensors, a .pth, a folder of a run or of PEFT, or a hub name; several apply in their order.",
)  # fmt: skip
TO = flags.DEFINE_enum("to", None, [*EXPORT_FORMS, "adapter", "gguf"], "Form to write.")
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
RUN = flags.DEFINE_string(
    "run", None, "Folder of the run that the model card describes; default: the folder that the adapter's file is in."
)
BASE_MODEL = flags.DEFINE_string(
    "base_model", None, "Hub name of the base for the model card; default: --base, if it is one."
)
PUSH = flags.DEFINE_string(
    "push", None, "Name of a new repository on a hub, ORG/NAME, to which the folder is uploaded."
)
PUBLIC = flags.DEFINE_bool("public", False, "Makes the repository of --push a public one.")


def main() -> None:
    _check_flags()
    out, repository = place(cast(str, OUT.value), "--out"), PUSH.value
    if repository:
        check_push(repository)
    with new_folder(out) as folder:
        write = _write_adapter if TO.value == "adapter" else _write_form
        sentences = write(folder, repository or out.name)
    for sentence in [*sentences, f"written to {out}"]:
        print(sentence)
    if repository:
        print(f"uploaded to {push(out, repository, private=not PUBLIC.value)}")


def _write_adapter(folder: Path, name: str) -> list[str]:
    base = open_stored(BASE.value) if BASE.value else None
    artifact = read_artifact(cast(list[str], ADAPTER.value)[0], base)
    known = base or artifact.base
    card_base = _card_base([artifact], known and known.config)
    fill_adapter_folder(folder, artifact, name, card_base, base=base, run=_run([artifact]))
    return [str(artifact.adapter)]


def _write_form(folder: Path, name: str) -> list[str]:
    base, form = open_stored(cast(str, BASE.value)), EXPORT_FORMS[cast(str, TO.value)]
    artifacts = [read_artifact(path, base) for path in cast(list[str], ADAPTER.value)]
    adapters = tuple(_with_strength(artifact) for artifact in artifacts)
    dtype = base.stored_dtype if DTYPE.value == "stored" else cast(str, DTYPE.value)
    job = Job(base, adapters, cast(Any, BIAS.value), dtype)
    written = form.write(job, folder)
    difference = _measure(folder, job, form, artifacts)
    if difference is None:
        return [*map(str, adapters), *written]
    rounding = summary.rounding(job, difference)
    note = f"{rounding[0].upper()}{rounding[1:]}."
    export = ModelExport(cast(Any, TO.value), job.fold, dtype, cast(float, STRENGTH.value), [note])
    card = model_card(artifacts, export, name, _card_base(artifacts, base.config), _run(artifacts))
    (folder / "README.md").write_text(card, encoding="utf-8")
    engines = [] if TO.value == "orbax" else engine_lines(added_bias(base.config, job.fold.folded_config))
    return [*map(str, adapters), *summary.changes(job), *written, rounding, *engines]


def _measure(folder: Path, job: Job, form: ExportForm, artifacts: list[Artifact]) -> float | None:
    """Writes the canary; returns the largest difference of logits, None if the form is no base."""
    try:
        job.fold  # noqa: B018
    except Unfoldable:
        # A PEFT folder of prefixes: the adapter's own file has the canary, unless other adapters or a strength count.
        if len(artifacts) == 1 and STRENGTH.value == 1 and (canary := artifacts[0].canary) is not None:
            write_canary(folder, canary)
        return None
    rows = canary_rows(job, artifacts)
    measured = measure(job, open_stored(str(folder)) if form.is_base else None, rows)
    write_canary(folder, choose(rows, measured.base_bv, measured.adapted_bv, job.base.tokenizer, "float32"))
    return measured.difference


def _card_base(artifacts: list[Artifact], config: LlamaConfig | None) -> CardBase:
    name = BASE_MODEL.value
    if name is None and BASE.value and is_hub_name(BASE.value) and not exists(BASE.value):
        name = BASE.value
    fingerprints = [artifact.base.fingerprint for artifact in artifacts if artifact.base is not None]
    return CardBase(name, config, fingerprints[0] if fingerprints else None)


def _run(artifacts: list[Artifact]) -> RunFolder | None:
    if RUN.value:
        return read_run_folder(RUN.value)
    return run_beside(artifacts[0].path) if len(artifacts) == 1 else None


def _check_flags() -> None:
    if not (ADAPTER.value and TO.value and OUT.value and (BASE.value or TO.value == "adapter")):
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
    if TO.value == "adapter":
        for name in ("strength", "dtype", "bias"):
            if flags.FLAGS[name].present:
                raise InputError(f"--{name} is of a base's weights, and --to=adapter writes the adapter as it is")
        if len(cast(list[str], ADAPTER.value)) > 1:
            raise InputError("--to=adapter writes one adapter to a folder: give one --adapter")
    if PUBLIC.value and not PUSH.value:
        raise InputError("--public is of a repository that --push=ORG/NAME makes")


def _with_strength(artifact: Artifact) -> Adapter:
    strength = cast(float, STRENGTH.value)
    adapter = with_strength(artifact.adapter, strength)
    for name, x in adapter.trainable.items():
        check_finite(np.asarray(x), f"{artifact.path} with --strength={strength:g}: {name}")
    return adapter


if __name__ == "__main__":
    command.run(main)
