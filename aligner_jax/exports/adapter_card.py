"""Model card of a published adapter."""

from aligner_jax.exports.card import CardBase, adapter_section, fenced, front_matter, joined, training_section
from aligner_jax.exports.markup import code
from aligner_jax.exports.run_folder import RunFolder
from aligner_jax.peft import METHODS
from aligner_jax.peft.artifact import Artifact
from aligner_jax.weights.hub import is_hub_name


def adapter_card(
    artifact: Artifact, name: str, base: CardBase, run: RunFolder | None = None, *, has_canary: bool = True
) -> str:
    """Returns the card of a folder that holds an adapter of this project.

    Args:
      artifact: the adapter.
      name: name of the folder, or of the repository on a hub.
      base: its base.
      run: the run that trained it.
      has_canary: True if the folder's file has a canary, which `aligner_jax.verify` needs.
    """
    adapter = artifact.adapter
    base_path, path = base.hub_name or "PATH/OF/THE/BASE", name if is_hub_name(name) else "PATH/OF/THIS/FOLDER"
    strength = ""
    if METHODS[adapter.method].with_strength is not None:
        strength = ", or give `--strength=0` to `python -m aligner_jax.generate`"
    check = (
        "This says whether the adapter has its effect:",
        fenced("sh", f"python -m aligner_jax.verify {path} --base={base_path}"),
    )
    return joined(
        front_matter("aligner_jax", "adapter", (adapter.method,), name, base, run),
        f"# {code(name)}",
        f"An adapter of {adapter.num_params:,} trained numbers for {base.words}, which is needed too.",
        adapter_section(artifact, base),
        training_section(run),
        "## Use",
        fenced(
            "sh",
            f'python -m aligner_jax.generate --base={base_path} --adapter={path} --prompt="Why is the sky blue?"',
        ),
        "The command asks with the template that the adapter records. In Python:",
        fenced(
            "python",
            "import aligner_jax as aj",
            "",
            f'base = aj.load_base("{base_path}")',
            f'adapter = aj.load_adapter("{path}", base)',
            "logits_btv = aj.apply(base.params, adapter, tokens_bt, config=base.config)",
        ),
        *(check if has_canary else ()),
        "## Undo",
        f"Leave the adapter out{strength}: the files of the base were never changed.\n",
    )
