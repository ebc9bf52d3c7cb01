"""Writes a base with adapters folded in for other engines, or adapters as a folder for a hub or for PEFT.

python -m aligner_jax.export --base=PATH --adapter=runs/quickstart/adapter.safetensors --to=hf --out=DIR
python -m aligner_jax.export --adapter=runs/quickstart --to=adapter --out=DIR [--push=ORG/NAME]

Forms (--to):

- hf: a Hugging Face folder with the tokenizer, which transformers loads without code of its own.
- gguf: a folder with model.gguf for llama.cpp. If the base is a GGUF file, it is copied, and the tensors that the
  adapter changes are added or replaced.
- orbax: an Orbax folder, which every command of this project takes as --base.
- peft: a PEFT folder, for adapters that PEFT can apply exactly.
- adapter: one adapter of this project with a model card; `aj.load_adapter` takes the folder.

An Aligner or LLaMA-Adapter of several tokens cannot be folded. --nearest --data=FILE folds the bias that is closest to
it on held-out data, and prints the held-out losses of base, adapter and bias.

The base is read a layer at a time, so it may be larger than the host's memory; but not with --nearest, nor for the
canary of an adapter that cannot be folded. An adapter that was trained on another base is refused. All but peft have a
model card (README.md). --push uploads the folder to a new, private repository of a hub, with the token of HF_TOKEN or
of `hf auth login`.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import flags

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.errors import InputError
from aligner_jax.exports import summary
from aligner_jax.exports.adapter_folder import fill_adapter_folder
from aligner_jax.exports.canary import NO_BASE, NO_TOKENS, measure_export, write_canary
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.engines import added_bias, engine_lines, gguf_engines
from aligner_jax.exports.forms import EXPORT_FORMS, ExportForm
from aligner_jax.exports.gguf import architecture_of
from aligner_jax.exports.hub import check_push, push
from aligner_jax.exports.job import Job
from aligner_jax.exports.model_card import ModelExport, model_card
from aligner_jax.exports.nearest import Nearest, approximate, read_heldout
from aligner_jax.exports.run_folder import RunFolder, read_run_folder, run_beside
from aligner_jax.exports.source import StoredBase, load_whole, open_stored
from aligner_jax.files.content import exists
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter, with_strength
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.peft.canary import Canary
from aligner_jax.peft.gated import GatedOptions
from aligner_jax.peft.sum import parts_of
from aligner_jax.runtime import command
from aligner_jax.runtime.files import new_folder, place
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.gguf import GGUF
from aligner_jax.weights.hub import is_hub_name

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTER = flags.DEFINE_multi_string(
    "adapter", None,
    "An adapter: a .safetensors, a .pth, a folder of a run or of PEFT, or a hub name; several apply in their order.",
)  # fmt: skip
TO = flags.DEFINE_enum("to", None, [*EXPORT_FORMS, "adapter"], "Form to write.")
OUT = flags.DEFINE_string("out", None, "Folder to write, new or empty.")
STRENGTH = flags.DEFINE_float("strength", 1.0, "Multiplies what every adapter adds: 0 is the base, 1 the adapter.")
DTYPE = flags.DEFINE_enum(
    "dtype", "stored", ["stored", "float32", "bfloat16", "float16", "q8_0"],
    "Dtype of written weights; stored: that of the base if all its tensors have one, else float32. float16 is refused "
    "where it is not exact for the base's weights. From GGUF to GGUF, the type of changed tensors; stored: their own, "
    "or float16 if that is a quantized type other than q8_0. Only --to=gguf has q8_0.",
)  # fmt: skip
BIAS = flags.DEFINE_enum(
    "bias", "o", ["o", "v"],
    "Projection whose bias holds a prefix of one token; v needs one gate per kv head, and is for engines that drop a "
    "bias of the output projection.",
)  # fmt: skip
NEAREST = flags.DEFINE_bool(
    "nearest",
    False,
    "Writes the bias that is closest to an adapter of several prefix tokens on the examples of --data.",
)
DATA = flags.DEFINE_string("data", None, "Held-out examples for --nearest, in any format that training reads.")
ROWS = flags.DEFINE_integer("rows", 256, "Most examples of --data that are used.", lower_bound=1)
TEMPLATE = flags.DEFINE_enum(
    "template",
    "auto",
    ["auto", "none", *TEMPLATES],
    "Template of the examples of --data; auto: that of the adapter's file.",
)
RUN = flags.DEFINE_string(
    "run", None, "Folder of the run that the model card describes; default: the folder that the adapter's file is in."
)
BASE_MODEL = flags.DEFINE_string(
    "base_model",
    None,
    "Hub name of the base, for the model card and for PEFT's configuration; default: --base, which only PEFT's "
    "configuration names if it is a path.",
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
    if base is not None:
        card_base = dataclasses.replace(card_base, fingerprint=base.fingerprint)
    canary, sentences = None, []
    if "canary" not in artifact.metadata:
        if base is not None:
            job = Job(base, (artifact.adapter,), "o", base.stored_dtype)
            _, canary = measure_export(job, [artifact])
        if canary is None:
            sentences = [NO_TOKENS if base is not None else NO_BASE]
    fill_adapter_folder(folder, artifact, name, card_base, base=base, run=_run([artifact]), canary=canary)
    return [str(artifact.adapter), *sentences]


def _write_form(folder: Path, name: str) -> list[str]:
    base, form = open_stored(cast(str, BASE.value)), EXPORT_FORMS[cast(str, TO.value)]
    artifacts = [read_artifact(path, base) for path in cast(list[str], ADAPTER.value)]
    _check_bias(artifacts)
    adapters = tuple(_with_strength(artifact) for artifact in artifacts)
    # The content of the card is read first, so that an error in it does not come after the weights are written.
    card_base, run = _card_base(artifacts, base.config), _run(artifacts)
    nearest = _nearest(base, artifacts[0], adapters[0]) if NEAREST.value else None
    if nearest is not None:
        adapters = (nearest.bias,)
    keeps_types = TO.value == "gguf" and base.form is GGUF
    dtype = base.stored_dtype if DTYPE.value == "stored" and not keeps_types else cast(str, DTYPE.value)
    job = Job(base, adapters, cast(Any, BIAS.value), dtype, card_base.hub_name)
    written = form.write(job, folder)
    difference, canary = _measured(folder, job, form, artifacts)
    if canary is not None:
        write_canary(folder, canary)
    else:
        written = [*written, NO_TOKENS]
    told = [*map(str, adapters), *([] if nearest is None else [str(nearest)])]
    if difference is None:
        return [*told, *written]
    rounding = summary.rounding(job, difference, "base and adapter" if nearest is None else "base and bias")
    notes = [f"{note[0].upper()}{note[1:]}." for note in [*told[len(adapters) :], rounding]]
    types = "its own types" if keeps_types else dtype
    export = ModelExport(
        cast(Any, TO.value), job.fold, types, cast(float, STRENGTH.value), notes, nearest is not None,
        architecture=architecture_of(base), has_canary=canary is not None,
    )  # fmt: skip
    card = model_card(artifacts, export, name, card_base, run)
    (folder / "README.md").write_text(card, encoding="utf-8")
    bias = added_bias(base.config, job.fold.folded_config)
    engines = {"hf": engine_lines(bias), "gguf": [f"engines: {gguf_engines(bias, export.architecture)}"]}.get(
        cast(str, TO.value), []
    )
    return [*told, *summary.changes(job), *written, rounding, *engines]


def _nearest(stored: StoredBase, artifact: Artifact, adapter: Adapter) -> Nearest:
    prompt_format = PromptFormat.resolve(cast(str, TEMPLATE.value), None, {str(artifact.path): artifact})
    base = load_whole(stored)
    heldout = read_heldout(cast(str, DATA.value), cast(int, ROWS.value), base, prompt_format)
    return approximate(base, adapter, heldout)


def _measured(
    folder: Path, job: Job, form: ExportForm, artifacts: list[Artifact]
) -> tuple[float | None, Canary | None]:
    if not form.is_base and not job.can_be_folded and STRENGTH.value == 1 and artifacts[0].canary is not None:
        # A PEFT folder of one adapter, whose own file has the canary.
        return None, artifacts[0].canary
    return measure_export(job, artifacts, open_stored(str(folder / form.file)) if form.is_base else None)


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
    if DTYPE.value == "q8_0" and TO.value != "gguf":
        raise InputError(f"--dtype=q8_0 is a type of GGUF files, and --to={TO.value} has none")
    if not math.isfinite(cast(float, STRENGTH.value)):
        raise InputError(f"--strength={STRENGTH.value} is not a finite number")
    _check_nearest()
    if TO.value == "peft" and flags.FLAGS["dtype"].present:
        raise InputError("--dtype is of a base's weights, and --to=peft writes adapters, which are float32")
    if TO.value == "peft" and PUSH.value and not (BASE_MODEL.value or is_hub_name(cast(str, BASE.value))):
        raise InputError(
            f"PEFT's configuration would publish the path --base={BASE.value}, where nobody else has the base: add "
            f"--base_model=ORG/NAME"
        )
    if TO.value == "adapter":
        for name in ("strength", "dtype", "bias", "nearest"):
            if flags.FLAGS[name].present:
                raise InputError(f"--{name} is of a base's weights, and --to=adapter writes the adapter as it is")
        if len(cast(list[str], ADAPTER.value)) > 1:
            raise InputError("--to=adapter writes one adapter to a folder: give one --adapter")
    if PUBLIC.value and not PUSH.value:
        raise InputError("--public is of a repository that --push=ORG/NAME makes")


def _check_nearest() -> None:
    if NEAREST.value and not DATA.value:
        raise InputError("--nearest needs held-out examples on which it compares: add --data=FILE")
    for name in ("data", "rows", "template"):
        if flags.FLAGS[name].present and not NEAREST.value:
            raise InputError(f"--{name} is of --nearest, which approximates an adapter of several prefix tokens")
    if NEAREST.value and len(cast(list[str], ADAPTER.value)) > 1:
        raise InputError("--nearest approximates one adapter: give one --adapter")
    if NEAREST.value and BIAS.value == "v":
        raise InputError("--nearest makes a bias of the output projection, so --bias=v does not go with it")


def _check_bias(artifacts: list[Artifact]) -> None:
    parts = [part for artifact in artifacts for part in parts_of(artifact.adapter)]
    if BIAS.value == "v" and not any(isinstance(part.options, GatedOptions) for part in parts):
        raise InputError(
            "--bias=v has no effect on these adapters: it is of the prefix tokens of Aligners and LLaMA-Adapters"
        )


def _with_strength(artifact: Artifact) -> Adapter:
    strength = cast(float, STRENGTH.value)
    adapter = with_strength(artifact.adapter, strength)
    for name, x in adapter.trainable.items():
        check_finite(np.asarray(x), f"{artifact.path} with --strength={strength:g}: {name}")
    return adapter


if __name__ == "__main__":
    command.run(main)
