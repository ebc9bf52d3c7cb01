"""Name of the base that an adapter was trained on, as the files around the adapter record it."""

import contextlib
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.files.fields import read_fields
from aligner_jax.peft.hf_peft_config import FILE as PEFT_FILE
from aligner_jax.runtime import history


def recorded_base_name(adapter: Path) -> str | None:
    """Returns the base's path or hub name: of the run in whose folder the adapter is, or of a PEFT folder.

    Returns None if neither names one. Files that cannot be read name none: the adapter can be used without.
    """
    if is_folder(adapter):
        file, section, name = adapter / PEFT_FILE, None, "base_model_name_or_path"
    elif exists(adapter.with_name(history.FILE)):
        file, section, name = adapter.with_name("config.json"), "base", "path"
    else:
        return None
    with contextlib.suppress(InputError):
        fields = read_fields(file)
        found = fields if section is None else fields.section(section)
        return (found.text(name, "") if found is not None else "") or None
    return None
