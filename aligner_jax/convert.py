"""Write an adapter in another form: this project's file or a Hugging Face PEFT folder.

python -m aligner_jax.convert --adapter=aligner.pth --to=aligner.safetensors [--base=PATH]
python -m aligner_jax.convert --adapter=lora.safetensors --to=lora_peft
"""

from pathlib import Path
from typing import cast

from absl import flags

from aligner_jax.errors import InputError
from aligner_jax.peft.artifact import load_adapter, recorded_base, recorded_prompt_format, save_adapter
from aligner_jax.peft.hf_peft import write_peft
from aligner_jax.runtime import command
from aligner_jax.weights.base import load_base

ADAPTER = flags.DEFINE_string(
    "adapter", None, "A .safetensors of this project, a .pth of an Aligner or of lit-llama, or a PEFT folder."
)
TO = flags.DEFINE_string("to", None, "Where to write it: a name that ends in .safetensors, or a folder for PEFT.")
BASE = flags.DEFINE_string(
    "base", None, "The adapter's base: a Hugging Face folder or name, or a .gguf file. Shapes are checked against it."
)
FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", "aligner", "peft"], "Of what is written; auto: aligner if --to ends in .safetensors."
)


def main() -> None:
    if not ADAPTER.value or not TO.value:
        raise InputError("give an adapter and where to write it: --adapter=IN --to=OUT")
    source, target = Path(ADAPTER.value), Path(TO.value)
    if source.resolve() == target.resolve():
        raise InputError(f"{source} would be overwritten: give another name as --to")
    to_peft = _is_for_peft(target)
    # Fingerprints are of weights rounded to bfloat16, and of the rest only shapes are needed.
    base = load_base(BASE.value, "bfloat16") if BASE.value else None
    adapter = load_adapter(source, base)
    known = base or recorded_base(source)
    if not to_peft:
        save_adapter(adapter, target, known, prompt_format=recorded_prompt_format(source) or None)
    elif known is None:
        raise InputError(
            f"{source} does not say what its base looks like, which PEFT's form depends on: add --base=PATH"
        )
    else:
        write_peft(adapter, target, config=known.config, base_name=BASE.value)
    print(f"{adapter}: {adapter.num_params:,} trained parameters, written to {target}")


def _is_for_peft(target: Path) -> bool:
    is_file = target.suffix == ".safetensors"
    wanted = cast(str, FORMAT.value)
    if wanted == "aligner" and not is_file:
        raise InputError(f"--format=aligner writes a file, whose name ends in .safetensors, not {target}")
    if wanted == "peft" and is_file:
        raise InputError(f"--format=peft writes a folder, whose name does not end in .safetensors as {target} does")
    return not is_file


if __name__ == "__main__":
    command.run(main)
