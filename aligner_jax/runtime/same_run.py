"""The config of a workdir's run: written beside its results, and compared before a run goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.runtime.config import TrainConfig, as_dict, parse_config
from aligner_jax.runtime.files import write_atomically

MAY_DIFFER = (
    "steps",
    "log_every",
    "eval_every",
    "checkpoint.",
    "nonfinite.",
    "stall.",
    "report.",
    "mesh.",
    "base.model",
)
"""Fields that a resumed run may change: they do not alter what a step computes, but for rounding, and with another
mesh for LoRA's dropout, whose masks belong to a row's place among the devices.
"""


def save_config(config: TrainConfig, workdir: str | Path) -> None:
    """Writes `config.json` into the workdir, which is made if it does not exist.

    Raises:
      InputError: the file cannot be written.
    """
    write_atomically(Path(workdir) / "config.json", json.dumps(as_dict(config), indent=2) + "\n")


def check_same_run(config: TrainConfig, workdir: str | Path) -> None:
    """Refuses to go on with a workdir that was begun with another configuration. A workdir without one passes.

    Raises:
      InputError: names every differing field with its old and its new value, or says what is wrong with config.json.
    """
    path = Path(workdir) / "config.json"
    try:
        old = parse_config(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    free = MAY_DIFFER[1:] if config.optim.schedule == "cosine" else MAY_DIFFER
    if changes := differences(as_dict(old), as_dict(config), but=free):
        raise InputError(
            f"{workdir} holds a run with another configuration ({changes}): "
            "continue it with its own, or choose another --workdir"
        )


def check_same_inputs(made_from: Mapping[str, str], workdir: str | Path, *, goes_on: bool) -> None:
    """Refuses to go on where the base, the data or another input is not what the run began with; else notes them.

    Args:
      made_from: a digest of each, by its name.
      goes_on: whether there is a checkpoint; without one the run begins with what there is.

    Raises:
      InputError: names what differs; or the file in which they are noted, `inputs.json`, cannot be used.
    """
    path = Path(workdir) / "inputs.json"
    if goes_on and path.exists():
        try:
            was = dict(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} cannot be used: {error}") from error
        # Runs of earlier releases noted fewer inputs.
        if changed := [name for name, digest in made_from.items() if was.get(name, digest) != digest]:
            raise InputError(
                f"{workdir} holds a run that began with another {' and another '.join(changed)}: continue it with the "
                "same files as before, or choose another --workdir"
            )
        return
    write_atomically(path, json.dumps(made_from, indent=2) + "\n")


def differences(was: Mapping[str, Any], now: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> str:
    """Every field in which two configs differ, in words; "" where they do not.

    Args:
      but: beginnings of the names that do not count.
    """
    # Through JSON, where a tuple is a list.
    old, new = (_flatten(json.loads(json.dumps(each))) for each in (was, now))
    return "; ".join(
        f"{name} is {new.get(name)!r} and was {old.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(but)
    )


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names; a section without fields is dropped."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
