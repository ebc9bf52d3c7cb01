"""Bases as Orbax checkpoints: written leaf by leaf, and read in the parts that devices hold.

A base is a folder:

    base.json            {"format": "aligner_jax base", "version": 1, "dtype": "bfloat16" or "float32",
                          "config": the fields of `LlamaConfig`, "files": {path of every other file: its bytes}}
    params/q_ldnh/       one Orbax checkpoint of {"q_ldnh": array} for every leaf of `Params`, shaped as there, in
                         chunks of at most a mebibyte, so that a device's part of it is read without the rest
    tokenizer/           the vocabulary's files, where the base has one; see `data.tokenizer.tokenizer_files`

One checkpoint holds one leaf because Orbax wants all arrays of a checkpoint at once, which a host may not have room
for. TensorStore takes a chunk that is missing for zeros, so the files' sizes are checked before anything is read.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, Spec
from aligner_jax.runtime.files import new_folder, reason
from aligner_jax.weights.json_fields import JsonFields, read_json_fields
from aligner_jax.weights.leaves import DTYPES, Finish, Shardings, build_params, check_dtype

INDEX, TOKENIZER = "base.json", "tokenizer"
_PARAMS = "params"
_FORMAT, _VERSION = "aligner_jax base", 1
_CHUNK_BYTES = 2**20

type Write = Callable[[str, jax.Array], None]


def write_orbax(
    folder: str | Path, load: Callable[[Write], LlamaConfig], dtype: str, tokenizer: Mapping[str, bytes]
) -> None:
    """Writes a base as it is loaded: `folder` is whole or not there, and the host holds about one leaf at a time.

    Args:
      folder: a new one.
      load: loads the base, gives each leaf's name and array to what it is called with, and gives them up; returns the
        base's configuration.
      dtype: of the arrays.
      tokenizer: the vocabulary's files by name; none where the base has none.

    Raises:
      InputError: something is at `folder`, or it cannot be written, for the reason given; or see `load`.
    """
    with new_folder(folder) as temporary, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:

        def write(leaf: str, array: jax.Array) -> None:
            options = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
            items = ocp.args.StandardSave({leaf: array}, save_args={leaf: options})
            with _failure_is_one_sentence(f"{folder} cannot be written"):
                checkpointer.save(temporary.absolute() / _PARAMS / leaf, args=items)

        config = load(write)
        for name, content in tokenizer.items():
            (temporary / TOKENIZER).mkdir(exist_ok=True)
            (temporary / TOKENIZER / name).write_bytes(content)
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        index = {
            "format": _FORMAT,
            "version": _VERSION,
            "dtype": dtype,
            "config": dataclasses.asdict(config),
            "files": {path.relative_to(temporary).as_posix(): path.stat().st_size for path in files},
        }
        (temporary / INDEX).write_text(json.dumps(index, indent=1))


def load_orbax(
    path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
) -> tuple[LlamaConfig, Params]:
    """A base that `write_orbax` wrote.

    Args:
      dtype: of the parameters: "float32" or "bfloat16"; rounding is to nearest even.
      shardings, finish: see `assemble`. Each process reads the chunks that its own devices hold a part of.

    Raises:
      InputError: a file is missing or not as long as it was, or the folder is not such a base.
    """
    numbers = check_dtype(dtype)
    fields = orbax_fields(path)
    config = _config(fields)
    _check_files(path, fields)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:

        def make(leaf: str, spec: Spec, sharding: NamedSharding | None) -> jax.Array:
            target = jax.ShapeDtypeStruct(spec.shape, numbers, sharding=sharding)
            with _failure_is_one_sentence(f"{path}: leaf {leaf} cannot be read", always=True):
                folder = path.absolute() / _PARAMS / leaf
                array = checkpointer.restore(folder, args=ocp.args.StandardRestore({leaf: target}))[leaf]
            return array if sharding is not None else jax.device_put(np.asarray(array, numbers))

        return config, build_params(config, make, shardings=shardings, finish=finish)


def orbax_fields(path: Path) -> JsonFields:
    """The fields of a base's base.json.

    Raises:
      InputError: it is of another kind or of a later version.
    """
    fields = read_json_fields(path / INDEX)
    if fields.get("format") != _FORMAT:
        raise fields.error("format", f"is {fields.get('format')!r}, not {_FORMAT!r}")
    if fields.get("version") != _VERSION:
        raise fields.error("version", f"is {fields.get('version')!r}, but this release reads version {_VERSION}")
    if fields.get("dtype") not in DTYPES:
        raise fields.error("dtype", f"is {fields.get('dtype')!r}, not one of {', '.join(DTYPES)}")
    return fields


def _config(fields: JsonFields) -> LlamaConfig:
    section = fields.section("config")
    try:
        return LlamaConfig.from_dict(dict(section.values) if section else {})
    except InputError as error:
        raise InputError(f"{fields.file}: {error}") from None


def _check_files(path: Path, fields: JsonFields) -> None:
    files = fields.section("files")
    if files is None:
        raise fields.error("files", "is missing")
    for name in files.values:
        size = files.integer(name) if files.get(name) else 0
        if not (path / name).is_file():
            raise InputError(f"{path} is damaged: its file {name} is missing")
        if (path / name).stat().st_size != size:
            raise InputError(
                f"{path} is damaged: its file {name} has {(path / name).stat().st_size} bytes, and had {size}"
            )


@contextlib.contextmanager
def _failure_is_one_sentence(beginning: str, *, always: bool = False) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        # TensorStore, which reads and writes the arrays, raises ValueErrors with the system's reason near their end.
        found: Any = re.search(r"([^:\[\]]+?) \[os_error_code", str(error))
        if not always and not found and not isinstance(error, OSError):
            raise
        raise InputError(f"{beginning}: {found.group(1).strip() if found else reason(error)}") from error
