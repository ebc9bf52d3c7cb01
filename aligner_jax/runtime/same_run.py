"""Origin of a run: saved in its workdir and checkpoints, and compared before the run resumes."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, is_folder
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.runtime.config import TrainConfig, as_dict, parse_config
from aligner_jax.runtime.files import write_atomically
from aligner_jax.runtime.history import FILE as METRICS

MAY_DIFFER = (
    "steps",
    "log_every",
    "eval_every",
    "checkpoint.",
    "nonfinite.",
    "stall.",
    "report.",
    "profile.",
    "metrics.",
    "mesh.",
    "base.model",
    "remat",
)
"""Name prefixes of the fields that a resumed run may change. They do not alter the result of a step, except for
rounding; another mesh also changes LoRA's dropout, whose masks depend on a row's place among the devices.
"""
Parse = Callable[[Mapping[str, Any]], TrainConfig]

_CONFIG, _INPUTS = "config.json", "inputs.json"
_BEFORE_STEPS = {_CONFIG, _INPUTS, "kernels.json", "wandb.json", "wandb"}
"""Names that a run writes before its first step, besides event files and what is still empty."""
_NOTED_LATER = ("form of the base",)
"""Inputs that the first versions did not record. A missing one counts as unchanged."""
_MISPLACED = "put it back where it was written, or choose another --workdir"


@dataclasses.dataclass(frozen=True)
class Origin:
    """All inputs that a run's steps depend on. Checkpoints, `config.json` and `inputs.json` record them.

    Attributes:
      config: config of the run.
      input_digests: digests of the base, the data and other inputs, by names that can stand in a sentence.
      workdir: folder of the run.
      parse: function that parses a recorded config; the one that parsed `config`.
    """

    config: TrainConfig
    input_digests: Mapping[str, str]
    workdir: Path
    parse: Parse = parse_config

    def as_dict(self) -> dict[str, Any]:
        """Returns the origin as JSON values, for a checkpoint."""
        return {"config": as_dict(self.config), "inputs": dict(self.input_digests)}

    def note_inputs(self) -> None:
        """Writes `inputs.json` of a new run. Raises InputError if it cannot be written."""
        write_atomically(self.workdir / _INPUTS, json.dumps(self.input_digests, indent=2) + "\n")

    def check(self, recorded: object, checkpoint: Path) -> TrainConfig:
        """Refuses a checkpoint of another config, base, data or other input.

        Args:
          recorded: result of `as_dict` that the checkpoint holds; None in checkpoints of older versions, for which only
            `inputs.json` is compared.
          checkpoint: folder of the checkpoint.

        Returns:
          The config that the checkpoint was made with; that of `config.json` if the checkpoint does not say.

        Raises:
          InputError: an input differs (named), or `inputs.json` or the record is missing or cannot be used.
        """
        path = self.workdir / _INPUTS
        if not exists(path):
            raise _missing(path)
        if changed := _changed(_read(path), self.input_digests):
            raise InputError(
                f"{self.workdir} holds a run that began with another {changed}: continue it with the same files as "
                "before, or choose another --workdir"
            )
        if recorded is None:
            path = self.workdir / _CONFIG
            return _parse(_read(path), path, self.parse) if exists(path) else self.config
        fields = Fields({"origin": recorded}, checkpoint).section("origin")
        config, inputs = (fields.section(name) if fields else None for name in ("config", "inputs"))
        if config is None or inputs is None:
            raise InputError(f"{checkpoint} does not say of what run it is: remove it, or choose another --workdir")
        made_with = _parse(config.values, checkpoint, self.parse)
        if different := _differing(made_with, self.config):
            raise InputError(f"{checkpoint} is of a run with another configuration ({different}): {_MISPLACED}")
        if changed := _changed(inputs.values, self.input_digests):
            raise InputError(f"{checkpoint} is of a run that began with another {changed}: {_MISPLACED}")
        return made_with


def save_config(config: TrainConfig, workdir: str | Path) -> None:
    """Writes `config.json` into the workdir, which is made if it does not exist.

    Raises:
      InputError: the file cannot be written.
    """
    write_atomically(Path(workdir) / _CONFIG, json.dumps(as_dict(config), indent=2) + "\n")


def check_same_run(config: TrainConfig, workdir: str | Path, parse: Parse = parse_config) -> TrainConfig:
    """Refuses to resume a run with another configuration. One that ended before its first step is replaced.

    Args:
      parse: function that parses the recorded config; the one that parsed `config`.

    Returns:
      The configuration to resume with: the given one, with the `cosine_zero` of the version that began the run.

    Raises:
      InputError: fields differ (all are named, with old and new values), config.json cannot be used, or the workdir has
        checkpoints but no config.json.
    """
    path = Path(workdir) / _CONFIG
    if not exists(path):
        _check_no_checkpoints(Path(workdir), path)
        return config
    old = _parse(_read(path), path, parse)
    optim = config.optim
    if (old.optim.schedule, optim.schedule, old.optim.cosine_zero) == ("cosine", "cosine", "at_last"):
        config = dataclasses.replace(config, optim=dataclasses.replace(optim, cosine_zero="at_last"))
    different = _differing(old, config)
    if different and _has_results(Path(workdir)):
        raise InputError(
            f"{workdir} holds a run with another configuration ({different}): continue it with its own, or choose "
            "another --workdir"
        )
    return config


def changes(was: Mapping[str, Any], now: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    """Returns the fields in which two configs differ, as (dotted name, old value, new value).

    Args:
      but: name prefixes of fields to ignore.
    """
    # JSON turns tuples into lists, as in a recorded config.
    old, new = (_flatten(json.loads(json.dumps(each))) for each in (was, now))
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(but)
    ]


def differences(was: Mapping[str, Any], now: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> str:
    """Returns `changes` in words; "" if there are none."""
    return "; ".join(f"{name} is {new!r} and was {old!r}" for name, old, new in changes(was, now, but=but))


def _read(path: Path) -> dict[str, object]:
    try:
        return read_object(path)
    except InputError as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: InputError) -> InputError:
    return InputError(f"{path} cannot be used: {error}; put back what was there, or choose another --workdir")


def _parse(values: Mapping[str, Any], where: Path, parse: Parse) -> TrainConfig:
    """Parses a recorded config; a cosine schedule without `cosine_zero` is that of older versions, "at_last"."""
    optim = values.get("optim")
    if isinstance(optim, Mapping) and optim.get("schedule") == "cosine":
        values = {**values, "optim": {"cosine_zero": "at_last", **optim}}
    try:
        return parse(values)
    except InputError as error:
        raise _unusable(where, error) from error


def _differing(old: TrainConfig, new: TrainConfig) -> str:
    # The rate of a cosine depends on the number of steps.
    free = MAY_DIFFER[1:] if new.optim.schedule == "cosine" else MAY_DIFFER
    return differences(as_dict(old), as_dict(new), but=free)


def _changed(was: Mapping[str, object], now: Mapping[str, str]) -> str:
    missing = {name: now[name] for name in _NOTED_LATER if name in now}
    return " and another ".join(name for name, digest in now.items() if {**missing, **was}.get(name) != digest)


def _has_results(workdir: Path) -> bool:
    """Returns True if a folder with a config.json has more than a run that ended before its first step leaves."""
    return any(
        not (entry.name in _BEFORE_STEPS or entry.name.startswith((".", "events.out.")))
        and not (is_folder(entry) and not any(entry.iterdir()))
        and not (entry.name == METRICS and entry.stat().st_size == 0)
        for entry in workdir.iterdir()
    )


def _check_no_checkpoints(workdir: Path, missing: Path) -> None:
    checkpoints = workdir / "checkpoints"
    if is_folder(checkpoints) and any(entry.name.isdecimal() for entry in checkpoints.iterdir()):
        raise _missing(missing)


def _missing(path: Path) -> InputError:
    return InputError(
        f"{path} is missing, and without it nothing says what the checkpoints beside it are of: put it back, or choose "
        "another --workdir"
    )


def _flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to one dict with dotted names; drops sections without fields."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
