"""Names on a model hub and downloads from it, through the package huggingface_hub, which is optional."""

import re
from collections.abc import Sequence
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.extras import pip_line

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".gguf", ".safetensors", ".pth")


def is_hub_name(text: str) -> bool:
    """Returns True if a text has the form of a hub's "org/name" and does not end like the name of a file."""
    return _NAME.fullmatch(text) is not None and not text.endswith(_FILE_SUFFIXES)


def download(name: str, what: str, patterns: Sequence[str]) -> Path:
    """Returns a local folder with the files of a hub's repository.

    Args:
      name: name of the repository, "org/name".
      what: what it holds, for errors: "base model" or "adapter".
      patterns: names of the files to download; * stands for any text.

    Raises:
      InputError: huggingface_hub is not installed, no hub is reached, or it has no repository of that name.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"there is no {what} at {name} here, and to fetch one of that name from a hub needs the package "
            f"huggingface_hub: {pip_line('hub')}"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # The hub client passes on all errors of its HTTP library.
        reason = str(error).strip().splitlines()
        raise InputError(
            f"there is no {what} at {name} here, and no hub gave one of that name "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}); fetch it where a hub can be "
            f"reached, with `hf download {name} --local-dir DIR`, and give that folder as the path of the {what}"
        ) from None
