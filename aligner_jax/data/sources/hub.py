"""Reads data sets of the Hugging Face hub through the package `datasets`, if it is installed."""

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from aligner_jax.data.sources.records import HUB, Records
from aligner_jax.errors import InputError, one_line
from aligner_jax.files.extras import pip_line

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?::(?:([\w.-]+)/)?([\w.-]+))?")
_RUNS_NO_CODE = 4
"""Major release of `datasets` from which a data set cannot bring code that runs."""


class HubName(NamedTuple):
    """Name of a data set, with its config and split; None for the only config and the split "train"."""

    name: str
    config: str | None
    split: str | None


def parse_name(text: str) -> HubName | None:
    """Returns the parts of ORG/NAME, ORG/NAME:SPLIT or ORG/NAME:CONFIG/SPLIT; None for any other text."""
    found = _NAME.fullmatch(text)
    return HubName(*found.groups()) if found else None


def open_hub(hub: HubName, columns: Collection[str]) -> Records:
    """Returns the rows of a data set, which is downloaded unless it is in the local cache.

    Args:
      columns: names of the columns to read; if the data set has none of them, all are read.

    Raises:
      InputError: `datasets` is not installed or too old, or the data set cannot be loaded or is empty.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"there is no file or folder {hub.name}; to read the data set of that name on the Hugging Face hub, "
            f"{pip_line('data')}"
        ) from None
    version = str(getattr(datasets, "__version__", ""))
    if not version.partition(".")[0].isdecimal() or int(version.partition(".")[0]) < _RUNS_NO_CODE:
        raise InputError(
            f"the data set {hub.name} is not loaded with the package datasets {version}, which may run code of data "
            f"sets: {pip_line('data')}"
        )
    split = hub.split or "train"
    try:
        loaded: Any = datasets.load_dataset(hub.name, hub.config, split=split)
    except Exception as error:  # The package raises many types.
        reason = one_line(str(error), 200) or type(error).__name__
        raise InputError(
            f"there is no file or folder {hub.name}, and the data set of that name cannot be loaded from the Hugging "
            f"Face hub ({reason}): check name and network, or write it as ORG/NAME:CONFIG/SPLIT"
        ) from None
    if not len(loaded):
        raise InputError(f"the split {split!r} of the data set {hub.name} holds no records")
    names = list(loaded.column_names)
    read = [name for name in names if name in columns] or names
    unread = {name: len(loaded) for name in names if name not in read}
    return Records(_rows(loaded.select_columns(read), f"{hub.name}:{split}"), HUB, unread)


def _rows(rows: Any, name: str) -> Iterator[tuple[dict, str]]:
    for number, row in enumerate(rows, 1):
        yield row, f"{name}, row {number}"
