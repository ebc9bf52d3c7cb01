"""Adapters as the functions of this folder take them: in memory, as files, or as finished runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from aligner_jax.api.training import TrainedRun
from aligner_jax.errors import InputError

if TYPE_CHECKING:
    from aligner_jax.peft import Adapter

type AdapterLike = "Adapter | TrainedRun | str | Path"


def adapter_path(adapter: AdapterLike, scratch: Path) -> str:
    """Returns the file, folder or hub name of an adapter. One in memory is written below `scratch` first.

    Raises:
      InputError: it is of another type, or cannot be written.
    """
    from aligner_jax.peft import Adapter
    from aligner_jax.peft.artifact import save_adapter

    if isinstance(adapter, TrainedRun):
        return str(adapter.path)
    if isinstance(adapter, Adapter):
        # Tables name an adapter by the folder of its file.
        path = scratch / "in_memory" / "adapter.safetensors"
        save_adapter(adapter, path)
        return str(path)
    if not isinstance(adapter, str | Path):
        raise InputError(f"an adapter is of type {type(adapter).__name__}, but should be an Adapter, a run or a path")
    return str(adapter)


def as_list(adapters: AdapterLike | Iterable[AdapterLike]) -> list[AdapterLike]:
    """Returns adapters that were given as one or as several, as a list."""
    return list(adapters) if isinstance(adapters, list | tuple) else [adapters]  # pyright: ignore[reportReturnType]
