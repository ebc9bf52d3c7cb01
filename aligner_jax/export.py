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

from typing import Any, cast

from aligner_jax.data.templates import TEMPLATES
from aligner_jax.errors import InputError
from aligner_jax.exports.forms import EXPORT_FORMS
from aligner_jax.exports.request import ExportRequest
from aligner_jax.exports.run import export
from aligner_jax.runtime import command
from aligner_jax.runtime import verb_flags as flags
from aligner_jax.runtime.files import place

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


_OPTIONAL = ("strength", "dtype", "bias", "nearest", "data", "rows", "template", "run", "base_model", "push", "public")


def main() -> None:
    wanted = {"adapter=PATH": ADAPTER.value, "to=hf": TO.value, "out=DIR": OUT.value}
    if TO.value != "adapter":
        wanted["base=PATH"] = BASE.value
    if missing := [f"--{flag}" for flag, value in wanted.items() if not value]:
        raise InputError(
            f"an export has a base, an adapter, a form and a folder to write; missing is {' '.join(missing)}"
        )
    # A flag at its default is no choice of the user's, so it is not refused where it has no effect.
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in _OPTIONAL if flags.FLAGS[name].present}
    out, to, adapters = place(cast(str, OUT.value), "--out"), cast(str, TO.value), cast(list[str], ADAPTER.value)
    export(ExportRequest(base=BASE.value, adapters=tuple(adapters), to=to, out=out, **given), print)


if __name__ == "__main__":
    command.run(main)
