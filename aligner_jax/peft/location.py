"""Finds the file or PEFT folder that a path or hub name of an adapter stands for."""

from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_file, is_folder
from aligner_jax.peft import hf_peft_config
from aligner_jax.weights.base import FORMS
from aligner_jax.weights.hub import download, is_hub_name

ADAPTER_FILE = "adapter.safetensors"
"""Name of the adapter in the folder of a run, and in a folder that is published on a hub."""
_HUB_FILES = ("*.json", ADAPTER_FILE, "adapter_model.*", "README.md")


def locate_adapter(path: str | Path) -> Path:
    """Returns the local file or PEFT folder of an adapter.

    Args:
      path: a file; a folder of PEFT, of a finished run, or of a published adapter; or the name of a repository with one
        of these on a hub ("org/name"), which is then downloaded. What does not exist is returned as it is.

    Raises:
      InputError: no hub gives a repository of that name, or the folder is that of a run without an adapter or of a
        sweep.
    """
    local = Path(path)
    if not exists(local) and is_hub_name(str(path)):
        local = download(str(path), "adapter", _HUB_FILES)
    if not is_folder(local) or is_file(local / hf_peft_config.FILE):
        return local
    if is_file(local / ADAPTER_FILE):
        return local / ADAPTER_FILE
    if several := sorted(found.name for found in local.glob("adapter_*.safetensors")):
        raise InputError(
            f"{path} holds the {len(several)} adapters of a sweep: give one of them, as {local / several[0]}"
        )
    if is_folder(local / "checkpoints"):
        raise InputError(f"{path} is the folder of a run that has not ended, so it has no {ADAPTER_FILE} yet")
    return local


def check_no_base(path: Path) -> None:
    """Raises InputError if `path`, which `locate_adapter` returned, is the file or folder of a base model."""
    if is_folder(path) and is_file(path / hf_peft_config.FILE):
        return
    for form in FORMS:
        if exists(path) and form.detect(path):
            raise InputError(f"{path} is no adapter: it has the form of a base model, {form.description}")
