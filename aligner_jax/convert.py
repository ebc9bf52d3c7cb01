"""Converts an adapter to another format, or a base to an Orbax checkpoint.

Writes an adapter as a file of this project, or as a Hugging Face PEFT folder. The latter takes LoRA, and an Aligner or
LLaMA-Adapter with one gate per layer:

python -m aligner_jax.convert --adapter=aligner.pth --to=aligner.safetensors [--base=PATH]
python -m aligner_jax.convert --adapter=lora.safetensors --to=lora_peft

With --dtype=int8 (or bfloat16, int4, coded) the file is smaller, see docs/adapter_files.md. --base gives it the canary
of the rounded adapter:

python -m aligner_jax.convert --adapter=aligner.safetensors --to=small.safetensors --dtype=int8 [--base=PATH]

Writes a base (a Hugging Face folder or name, a .gguf file, a Meta folder) as an Orbax folder with its tokenizer. Every
command accepts the folder as --base, and each device reads only its own shards. Host memory stays within a few times
the largest matrix:

python -m aligner_jax.convert --base=PATH --out=DIR [--dtype=bfloat16]
"""

import dataclasses
import math
import os
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags

from aligner_jax.data.tokenizer_files import tokenizer_files
from aligner_jax.errors import InputError
from aligner_jax.exports.base_name import recorded_base_name
from aligner_jax.exports.source import StoredBase, load_whole, open_stored
from aligner_jax.files.content import exists
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter
from aligner_jax.peft.artifact import Artifact, read_artifact, save_adapter
from aligner_jax.peft.compact import AdapterDtype, check_dtype, rounded
from aligner_jax.peft.hf_peft import peft_files, write_peft
from aligner_jax.peft.hf_peft_config import FILE as PEFT_FILE
from aligner_jax.peft.location import locate_adapter
from aligner_jax.runtime import command
from aligner_jax.runtime.files import check_new, place, replace_folder
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import form_of, locate, open_base
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.orbax import write_orbax

ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "A .safetensors of this project, a .pth of an Aligner or lit-llama, a folder of a run or of PEFT, or a hub name.",
)
TO = flags.DEFINE_string("to", None, "Path to write: a name that ends in .safetensors, or a folder for PEFT.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces the file or the PEFT folder --to, if it is there already.")
BASE = flags.DEFINE_string(
    "base", None, "With --adapter: its base, against which shapes are checked. With --out: the base to write."
)
BASE_MODEL = flags.DEFINE_string(
    "base_model", None, "Hub name or path of the base, for PEFT's configuration; default: --base, else the one of the "
    "run in whose folder the adapter is.",
)  # fmt: skip
OUT = flags.DEFINE_string("out", None, "A new folder, for --base as an Orbax checkpoint.")
DTYPE = flags.DEFINE_enum(
    "dtype", "stored", ["stored", "float32", "bfloat16", "float16", "int8", "int4", "coded"],
    "Of a base, dtype of the weights in --out; stored: bfloat16 if all of the base is stored so, else float32, which "
    "is exact. float16 is refused unless it is exact, too. Of an adapter, form of the arrays in the file --to: "
    "float32, bfloat16, int8, int4 or coded; stored: as they are loaded.",
)  # fmt: skip
FORMAT = flags.DEFINE_enum(
    "format", "auto", ["auto", "aligner", "peft"], "Format to write; auto: aligner if --to ends in .safetensors."
)

_OTHER_FILES = (".gguf", ".pth", ".pt", ".bin", ".ckpt", ".npz", ".onnx")
_GGUF = (
    "; llama.cpp's convert_lora_to_gguf.py makes GGUF of the folder of a LoRA, and aligner_jax.export --to=gguf a "
    "model with the adapter folded in"
)


def main() -> None:
    if OUT.value:
        _write_base(place(OUT.value, "--out"))
    else:
        _write_adapter()


def _write_base(target: Path) -> None:
    given = [name for name in ("adapter", "to", "format") if flags.FLAGS[name].present]
    if given:
        raise InputError(f"--out writes a base, and --{given[0]} is of adapters: convert one after the other")
    if not BASE.value:
        raise InputError("give the base that is to be written to --out: --base=IN")
    dtype = cast(str, DTYPE.value)
    if dtype in ("int8", "int4", "coded"):
        raise InputError(f"--dtype={dtype} is of adapters; a base is written in float32, bfloat16 or float16")
    local = locate(BASE.value)
    checkpoint = open_base(local)
    dtype = checkpoint.stored_dtype if dtype == "stored" else dtype
    # The tokenizer is loaded so that a damaged vocabulary is reported now, not when the folder is first used.
    form = form_of(local)
    vocabulary = form.vocabulary(local) if form.tokenizer(local) is not None else None
    files = {} if vocabulary is None else tokenizer_files(vocabulary)
    write_orbax(target, checkpoint.config, open_parts(checkpoint, dtype), dtype, files)
    count = sum(math.prod(spec.shape) for spec in leaf_specs(checkpoint.config).values())
    print(f"{count:,} parameters in {dtype}, written to {target}")


def _write_adapter() -> None:
    if not ADAPTER.value or not TO.value:
        raise InputError(
            "give an adapter and where to write it: --adapter=IN --to=OUT (or a base and where: --base=IN --out=DIR)"
        )
    source, target = locate_adapter(ADAPTER.value), place(TO.value, "--to")
    if os.path.realpath(source) == os.path.realpath(target):
        raise InputError(f"{source} would be overwritten: give another name as --to")
    to_peft, dtype = _is_for_peft(target), _adapter_dtype()
    if to_peft and flags.FLAGS["dtype"].present:
        raise InputError("--dtype is of a file, whose name ends in .safetensors; arrays of a PEFT folder are float32")
    if BASE_MODEL.value and not to_peft:
        raise InputError("--base_model is of PEFT's configuration, and a file .safetensors has none")
    if not to_peft or exists(target / PEFT_FILE):
        check_new(target, overwrite=OVERWRITE.value)
    stored = open_stored(BASE.value) if BASE.value else None
    artifact = read_artifact(source, stored)
    if DTYPE.value == "float32":
        artifact = dataclasses.replace(artifact, adapter=_in_float32(artifact.adapter))
    adapter, known = artifact.adapter, stored or artifact.base
    if not to_peft:
        _write_file(target, artifact, stored, dtype)
    elif known is None:
        raise InputError(
            f"{source} does not say what its base looks like, which PEFT's form depends on: add --base=PATH"
        )
    else:
        base_name = BASE_MODEL.value or BASE.value or recorded_base_name(source)
        _write_peft(adapter, target, known.config, base_name)
        if base_name is None:
            print(
                f"{target / PEFT_FILE} names no base, which PEFT's AutoPeftModel needs: --base_model=ORG/NAME names it"
            )
    print(f"{adapter}: {adapter.num_params:,} trained parameters, written to {target}")
    if dtype != "float32":
        print(_shown_rounding(artifact, target, dtype))


def _write_peft(adapter: Adapter, target: Path, config: LlamaConfig, base_name: str | None) -> None:
    if exists(target / PEFT_FILE):
        replace_folder(target, peft_files(adapter, config=config, base_name=base_name))
    else:
        write_peft(adapter, target, config=config, base_name=base_name)


def _in_float32(adapter: Adapter) -> Adapter:
    return adapter.replace(trainable={name: x.astype(np.float32) for name, x in adapter.trainable.items()})


def _adapter_dtype() -> AdapterDtype:
    dtype = "float32" if DTYPE.value == "stored" else cast(str, DTYPE.value)
    check_dtype(dtype)
    return cast(AdapterDtype, dtype)


def _write_file(target: Path, artifact: Artifact, stored: StoredBase | None, dtype: AdapterDtype) -> None:
    known, canary = stored or artifact.base, artifact.canary
    if dtype != "float32" and canary is not None:
        # It is that of the adapter before it is rounded.
        canary = None
        if stored is None:
            print(f"{target} has no canary, which the base is needed for: add --base=PATH")
    if stored is not None and canary is None:
        # A canary is computed with the weights as they are stored, since rounded ones give other logits.
        known = load_whole(stored)
    prompt_format = artifact.prompt_format
    save_adapter(
        artifact.adapter, target, known, prompt_format=prompt_format and dataclasses.asdict(prompt_format),
        canary=canary or True, dtype=dtype,
    )  # fmt: skip


def _shown_rounding(artifact: Artifact, target: Path, dtype: AdapterDtype) -> str:
    """Returns a line with the bytes before and after, and the largest error of every array."""
    result, before = rounded(artifact.adapter, dtype), rounded(artifact.adapter, "float32")
    errors = []
    for name, numbers in sorted(artifact.adapter.trainable.items()):
        exact = np.asarray(numbers, np.float32)
        error = np.abs(exact - np.asarray(result.adapter.trainable[name])).max()
        errors.append(f"{name} {error / (np.abs(exact).max() or 1):.2%}")
    sizes = f"{before.nbytes:,} bytes of arrays are {result.nbytes:,}"
    if artifact.path.is_file():
        sizes += f", a file of {artifact.path.stat().st_size:,} bytes is one of {target.stat().st_size:,}"
    return f"{dtype}: {sizes}; largest error relative to the array's largest number: {', '.join(errors)}"


def _is_for_peft(target: Path) -> bool:
    is_file = target.suffix == ".safetensors"
    if target.suffix.lower() in _OTHER_FILES:
        raise InputError(
            f"--to={target} has the name of a {target.suffix} file, which is not written: name a file that ends in "
            f".safetensors, or a folder for PEFT{_GGUF if target.suffix.lower() == '.gguf' else ''}"
        )
    wanted = cast(str, FORMAT.value)
    if wanted == "aligner" and not is_file:
        raise InputError(f"--format=aligner writes a file, whose name ends in .safetensors, not {target}")
    if wanted == "peft" and is_file:
        raise InputError(f"--format=peft writes a folder, whose name does not end in .safetensors as {target} does")
    return not is_file


if __name__ == "__main__":
    command.run(main)
