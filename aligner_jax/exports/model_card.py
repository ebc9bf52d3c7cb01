"""Model card of a base with adapters folded into its weights."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from aligner_jax.exports.card import CardBase, adapter_section, bullets, fenced, front_matter, joined, training_section
from aligner_jax.exports.engines import added_bias, engine_table, gguf_engines
from aligner_jax.exports.markup import code
from aligner_jax.exports.run_folder import RunFolder
from aligner_jax.peft.artifact import Artifact
from aligner_jax.peft.fold import Fold
from aligner_jax.weights import gguf, hf
from aligner_jax.weights.hf_write import QKV_BIASES
from aligner_jax.weights.hub import is_hub_name
from aligner_jax.weights.leaves import leaf_specs

ModelForm = Literal["hf", "gguf", "orbax"]

_FORMATS = {"hf": hf.FORMAT, "gguf": gguf.FORMAT}
_LIBRARIES = {"hf": "transformers", "gguf": "gguf", "orbax": "aligner_jax"}

_CHECK = (
    "This says whether the adapter has its effect, here or (with `--endpoint=URL --model=NAME`) in a server:",
    fenced("sh", "python -m aligner_jax.verify PATH/OF/THIS/FOLDER"),
)


@dataclasses.dataclass(frozen=True)
class ModelExport:
    """A base with adapters folded in, as an export holds it.

    Attributes:
      form: form of its files.
      fold: the adapters as changes of leaves.
      dtype: dtype of the weights, such as "bfloat16".
      strength: factor of the adapters' effect.
      notes: further sentences about the change, such as the largest difference of logits.
      is_nearest: True if the fold is the bias that is closest to the adapter, and not the adapter itself.
      architecture: llama.cpp's name of the architecture, for the form "gguf".
      has_canary: True if the folder has a canary, which `aligner_jax.verify` needs.
    """

    form: ModelForm
    fold: Fold
    dtype: str
    strength: float = 1.0
    notes: Sequence[str] = ()
    is_nearest: bool = False
    architecture: str = "llama"
    has_canary: bool = True

    @property
    def added(self) -> list[str]:
        """Names of the leaves that hold the adapters and that the base lacks."""
        return [leaf for leaf in self.fold.needs if leaf not in leaf_specs(self.fold.config)]

    @property
    def changed(self) -> list[str]:
        """Names of the base's leaves that the adapters change."""
        return [leaf for leaf in self.fold.needs if leaf in leaf_specs(self.fold.config)]

    @property
    def zeros(self) -> list[str]:
        """Names of the leaves of zeros that the form asks for beside the added ones."""
        folded = self.fold.folded_config
        needed = [*leaf_specs(folded), *(QKV_BIASES if self.form == "hf" and folded.o_bias else ())]
        known = {*leaf_specs(self.fold.config), *self.added}
        return [leaf for leaf in dict.fromkeys(needed) if leaf not in known]


def model_card(
    artifacts: Sequence[Artifact], export: ModelExport, name: str, base: CardBase, run: RunFolder | None = None
) -> str:
    """Returns the card of a base with adapters folded into its weights.

    Args:
      artifacts: the adapters, in the order in which they were folded.
      export: the form, and the change.
      name: name of the folder, or of the repository on a hub.
      base: the base.
      run: the run that trained the adapter.
    """
    methods = tuple(dict.fromkeys(artifact.adapter.method for artifact in artifacts))
    number = "one adapter" if len(artifacts) == 1 else f"{len(artifacts)} adapters"
    folded = f"the bias that is closest to {number}" if export.is_nearest else number
    return joined(
        front_matter(_LIBRARIES[export.form], "finetune", methods, name, base, run),
        f"# {code(name)}",
        f"The weights of {base.words} with {folded} folded in at strength {export.strength:g}.",
        _change_section(export),
        *(adapter_section(artifact, base) for artifact in artifacts),
        training_section(run),
        "## Use",
        _use(export.form, name if is_hub_name(name) else "PATH/OF/THIS/FOLDER"),
        *(_CHECK if export.has_canary else ()),
        "## Undo",
        _undo(export),
        "## Engines",
        _engines(export) + "\n",
    )


def _change_section(export: ModelExport) -> str:
    facts = {"added": export.added, "zeros, as the form asks for": export.zeros, "changed": export.changed}
    return joined(
        "## Change",
        bullets(
            {words: _tensors(export.form, leaves) for words, leaves in facts.items() if leaves}
            | {"everything else": f"as in the base, in {export.dtype}"}
        ),
        *export.notes,
    )


def _use(form: ModelForm, path: str) -> str:
    if form == "gguf":
        return fenced("sh", 'llama-cli -m model.gguf -p "Why is the sky blue?"')
    if form == "orbax":
        return fenced("python", "import aligner_jax as aj", "", 'base = aj.load_base("PATH/OF/THIS/FOLDER")')
    return fenced(
        "python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{path}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
    )


def _undo(export: ModelExport) -> str:
    if export.changed or not export.added:
        return "Use the base: a changed tensor does not tell the adapter's part from the base's."
    return f"Set {_tensors(export.form, export.added)} to zero in all layers, or use the base, which lacks them."


def _engines(export: ModelExport) -> str:
    if export.form == "orbax":
        return "Every command of aligner_jax takes the folder as `--base`; other engines do not read it."
    if export.form == "gguf":
        return gguf_engines(added_bias(export.fold.config, export.fold.folded_config), export.architecture)
    return engine_table(added_bias(export.fold.config, export.fold.folded_config))


def _tensors(form: ModelForm, leaves: Iterable[str]) -> str:
    """Returns the names of leaves in a form's files, as Markdown."""
    names = {leaf: leaf for leaf in leaves}
    if form in _FORMATS:
        slots = _FORMATS[form].slots.items()
        names = {leaf: next(name for name, slot in slots if slot.leaf == leaf) for leaf in names}
    return ", ".join(code(name.replace("{l}", "N")) for name in names.values())
