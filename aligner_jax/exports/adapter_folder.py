"""Writes an adapter as the folder that is published on a hub, which `load_adapter` takes as it takes a file."""

import dataclasses
import json
import shutil
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.exports.adapter_card import adapter_card
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.run_folder import RunFolder
from aligner_jax.files.identity import identity
from aligner_jax.peft.adapter_file import AdapterFile, adapter_bytes, read_adapter_file
from aligner_jax.peft.artifact import Artifact, FingerprintedBase, save_adapter
from aligner_jax.peft.canary import Canary
from aligner_jax.peft.location import ADAPTER_FILE

CONFIG_FILE = "aligner_config.json"
"""Description of the adapter for people and tools; `load_adapter` reads the adapter's own file alone.

It is not named adapter_config.json and has no peft_type, because PEFT and transformers would take the folder for one of
PEFT.
"""


def fill_adapter_folder(
    folder: Path,
    artifact: Artifact,
    name: str,
    card_base: CardBase,
    *,
    base: FingerprintedBase | None = None,
    run: RunFolder | None = None,
    canary: Canary | None = None,
) -> None:
    """Writes adapter.safetensors, aligner_config.json and README.md.

    Args:
      folder: existing folder; see `runtime.files.new_folder`.
      artifact: the adapter. A file of this project that records its base is copied byte for byte, if no canary is added
        to it; others are converted.
      name: name for the card: of the folder, or of the repository on a hub.
      card_base: the base, as card and description name it.
      base: the base that a converted adapter records.
      run: the run that trained the adapter.
      canary: the adapter's canary, if its file has none.

    Raises:
      InputError: neither the adapter's file nor the caller names its base.
    """
    if artifact.base is None and base is None:
        raise InputError(
            f"{artifact.path} does not name its base, which a published adapter is checked against: add --base=PATH"
        )
    if artifact.base is None:
        prompt_format = artifact.prompt_format
        save_adapter(
            artifact.adapter, folder / ADAPTER_FILE, base, canary=canary or artifact.canary or True,
            prompt_format=prompt_format and dataclasses.asdict(prompt_format),
        )  # fmt: skip
    elif canary is None:
        shutil.copyfile(artifact.path, folder / ADAPTER_FILE)
    else:
        metadata, tensors = read_adapter_file(artifact.path)
        content = AdapterFile({**metadata, "canary": canary.as_json()}, tensors)
        (folder / ADAPTER_FILE).write_bytes(adapter_bytes(content))
    (folder / CONFIG_FILE).write_text(_description(artifact, card_base), encoding="utf-8")
    has_canary = "canary" in read_adapter_file(folder / ADAPTER_FILE).metadata
    card = adapter_card(artifact, name, card_base, run, has_canary=has_canary)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _description(artifact: Artifact, base: CardBase) -> str:
    adapter = artifact.adapter
    values = {
        "library_name": "aligner_jax",
        "method": adapter.method,
        "options": adapter.options.as_dict(),
        "num_trained": adapter.num_params,
        "base_model_name_or_path": base.hub_name,
        "base_config": None if base.config is None else identity(base.config),
        "base_fingerprint": base.fingerprint,
    }
    return json.dumps(values, indent=2) + "\n"
