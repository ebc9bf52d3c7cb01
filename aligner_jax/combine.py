"""Adds adapters of one base, each with a weight, and writes the sum as an adapter.

python -m aligner_jax.combine --adapter=form.safetensors:1.0 --adapter=tone.safetensors:-0.5 --out=both.safetensors
    [--base=PATH]

The sum of Aligners of one token is a bias that is computed with the base's projections, so it needs --base. In Python,
`aj.combine` does the same.
"""

import dataclasses
import os
from collections.abc import Sequence

from absl import flags

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.exports.source import load_whole, open_stored
from aligner_jax.peft.artifact import Artifact, RecordedBase, read_artifact, save_adapter
from aligner_jax.peft.combine import combine
from aligner_jax.peft.location import locate_adapter
from aligner_jax.runtime import command
from aligner_jax.runtime.files import check_new, place

if __name__ != "__main__":
    # An import would set the attribute `combine` of the package, which is the function aj.combine, to this module.
    raise ImportError("aligner_jax.combine is a command; import the function from aligner_jax.peft.combine")

ADAPTER = flags.DEFINE_multi_string(
    "adapter", None, "An adapter and its weight after a colon, as in PATH:-0.5; given once for every adapter."
)
BASE = flags.DEFINE_string("base", None, "The base of the adapters, against which they are checked.")
OUT = flags.DEFINE_string("out", None, "File to write; its name ends in .safetensors.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces the file --out, if it is there already.")


def main() -> None:
    if not ADAPTER.value or not OUT.value:
        raise InputError("give adapters with weights and where to write the sum: --adapter=IN:1.0 … --out=OUT")
    given, target = [_weighted(text) for text in ADAPTER.value], place(OUT.value, "--out")
    if target.suffix != ".safetensors":
        raise InputError(f"--out is a file whose name ends in .safetensors, not {target}")
    for path, _ in given:
        if os.path.realpath(locate_adapter(path)) == os.path.realpath(target):
            raise InputError(f"{path} would be overwritten: give another name as --out")
    check_new(target, overwrite=OVERWRITE.value)
    base = None
    if BASE.value:
        base = load_whole(open_stored(BASE.value))
    artifacts = [read_artifact(path, base) for path, _ in given]
    known = base or _recorded_base(artifacts)
    adapter = combine([(each.adapter, weight) for each, (_, weight) in zip(artifacts, given, strict=True)], base)
    prompt_format = _prompt_format(artifacts)
    save_adapter(adapter, target, known, prompt_format=prompt_format and dataclasses.asdict(prompt_format))
    print(f"{adapter}: {adapter.num_params:,} numbers, written to {target}")


def _weighted(text: str) -> tuple[str, float]:
    path, _, weight = text.rpartition(":")
    if not path.strip() and ":" in text:
        raise InputError(f"--adapter={text} names no adapter before the weight, as in PATH:1.0")
    try:
        return path, float(weight)
    except ValueError:
        raise InputError(f"--adapter={text} does not end in a weight after a colon, as in PATH:1.0") from None


def _recorded_base(artifacts: Sequence[Artifact]) -> RecordedBase:
    """Returns the base that all adapters were trained on, which their files record."""
    first = artifacts[0].base
    for each in artifacts:
        if each.base is None or first is None:
            raise InputError(f"{each.path} does not record its base: add --base=PATH")
        if (each.base.config, each.base.fingerprint) != (first.config, first.fingerprint):
            raise InputError(
                f"{each.path} was trained on another base than {artifacts[0].path} (fingerprint "
                f"{each.base.fingerprint[:12]} against {first.fingerprint[:12]})"
            )
    assert first is not None
    return first


def _prompt_format(artifacts: Sequence[Artifact]) -> PromptFormat | None:
    """Returns the prompt format that all adapters record; None, with a printed line, if they differ."""
    formats = {each.prompt_format for each in artifacts}
    if len(formats) > 1:
        print("The adapters record different prompt formats, so the sum records none: give --template to generate.")
        return None
    return formats.pop()


if __name__ == "__main__":
    command.run(main)
