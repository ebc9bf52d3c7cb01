"""Where the tensors of a safetensors file are.

The file is validated by the safetensors library and then read by plain reads at known offsets: a memory map, which is
all the library offers, would count every weight a second time in the process's memory.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from aligner_jax.errors import InputError
from aligner_jax.weights.source import Source


def safetensors_sources(path: Path) -> list[Source]:
    """Every tensor of one safetensors file, not read yet.

    Source: https://github.com/huggingface/safetensors#format: a little-endian uint64, the length of the JSON header
    that follows it, then the data, to whose start the header's offsets are relative.

    Raises:
      InputError: there is no such file, or it is not a whole safetensors file.
    """
    try:
        with safe_open(path, "numpy"), path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
    except (OSError, SafetensorError) as error:
        if not path.is_file():
            raise InputError(f"there is no file {path}") from None
        raise InputError(f"{path} is not a whole safetensors file ({error})") from None
    header.pop("__metadata__", None)
    start = 8 + header_bytes
    return [
        Source(
            name=name,
            file=path,
            shape=tuple(entry["shape"]),
            encoding=entry["dtype"],
            offset=start + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]
