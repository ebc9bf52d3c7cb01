"""Reads and writes base.json, the index of a base in Orbax's form. Its digests reveal damage.

    {"format": "aligner_jax base", "version": 1, "dtype": "bfloat16", "float16" or "float32",
     "config": the fields of `LlamaConfig`,
     "blocks": {leaf: [length of every block along the leaf's first axis]},
     "files": {path of every other file: its size in bytes},
     "digests": {"index": SHA-256 of the rest of this object, "files": {path: SHA-256 of every file outside params/},
                 "blocks": {leaf: [CRC-32s of the chunks of every block; see `orbax_block.checksums`]}}}

Bases of earlier releases have no digests and are read without this check.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, open_file
from aligner_jax.files.fields import Fields, read_fields
from aligner_jax.model.config import LlamaConfig
from aligner_jax.weights.leaves import DTYPES, leaf_specs

INDEX, PARAMS, TOKENIZER = "base.json", "params", "tokenizer"
_FORMAT, _VERSION = "aligner_jax base", 1
_FIELDS = ("format", "version", "dtype", "config", "blocks", "files", "digests")
_MAX_BYTES = 2**62


def write_index(
    folder: Path, config: LlamaConfig, dtype: str, blocks: Mapping[str, list[int]], checksums: Mapping[str, list[str]]
) -> None:
    """Writes the index of a folder, after all its other files."""
    names = sorted(_names(folder, "."))
    index = {
        "format": _FORMAT,
        "version": _VERSION,
        "dtype": dtype,
        "config": dataclasses.asdict(config),
        "blocks": blocks,
        "files": {name: (folder / name).stat().st_size for name in names},
    }
    others = [name for name in names if not name.startswith(f"{PARAMS}/")]
    digests = {"files": {name: _sha256((folder / name).read_bytes()) for name in others}, "blocks": checksums}
    digests["index"] = _digest({**index, "digests": digests})
    (folder / INDEX).write_text(json.dumps({**index, "digests": digests}, indent=1))


def orbax_fields(path: Path) -> Fields:
    """Returns the fields of a base's index.

    Raises:
      InputError: the index cannot be read, is of another format or version, or has an unknown dtype or field.
    """
    fields = read_fields(path / INDEX)
    if (form := fields.text("format")) != _FORMAT:
        raise fields.error("format", f"is {form[:100]!r}, not {_FORMAT!r}")
    if (version := fields.integer("version")) != _VERSION:
        raise fields.error("version", f"is {version}, but this release reads version {_VERSION}")
    fields.choice("dtype", DTYPES)
    for name in fields.values:
        if name not in _FIELDS:
            raise fields.error(name, "is not a field of a base's index")
    return fields


def orbax_config(path: Path) -> LlamaConfig:
    """Returns the configuration of the base in a folder. Raises InputError if its index is not valid."""
    fields = orbax_fields(path)
    config = config_of(fields)
    digests_of(fields)
    return config


def config_of(fields: Fields) -> LlamaConfig:
    """Returns the configuration that an index holds. Raises InputError if it is missing or not valid."""
    section = fields.section("config")
    if section is None:
        raise fields.error("config", "is missing")
    return LlamaConfig.from_fields(section)


def blocks_of(fields: Fields, config: LlamaConfig) -> dict[str, list[int]]:
    """Returns the lengths of a leaf's blocks, by leaf. Raises InputError unless they add up to the model's leaves."""
    section, specs = fields.section("blocks"), leaf_specs(config)
    if section is None:
        raise fields.error("blocks", "is missing")
    for leaf in section.values:
        if leaf not in specs:
            raise section.error(leaf, "is no leaf of this model")
    for leaf, spec in specs.items():
        if not section.has(leaf):
            raise section.error(leaf, "is missing")
        if sum(section.integers(leaf)) != spec.shape[0]:
            raise section.error(leaf, f"is {str(section.get(leaf))[:100]}, which are not {spec.shape[0]} rows together")
    return {leaf: section.integers(leaf) for leaf in specs}


def digests_of(fields: Fields) -> Fields | None:
    """Returns the digests of an index, or None if it has none.

    Raises:
      InputError: the index was changed since it was written.
    """
    digests = fields.section("digests")
    if digests is None:
        return None
    left = {name: value for name, value in digests.values.items() if name != "index"}
    if digests.text("index") != _digest({**fields.values, "digests": left}):
        raise InputError(f"{fields.file} was changed since it was written (its digest differs): convert the base anew")
    return digests


def checksums_of(digests: Fields | None, blocks: Mapping[str, list[int]]) -> dict[str, list[str]] | None:
    """Returns the checksums of a leaf's blocks, by leaf; None without digests. Raises InputError if one is missing."""
    if digests is None:
        return None
    section = digests.section("blocks")
    checksums = {leaf: [] if section is None else section.texts(leaf) for leaf in blocks}
    for leaf, lengths in blocks.items():
        if len(checksums[leaf]) != len(lengths):
            raise digests.error(f"blocks.{leaf}", f"is not the checksums of {len(lengths)} blocks")
    return checksums


def files_of(fields: Fields) -> dict[str, int]:
    """Returns the size in bytes of every file that an index names. Raises InputError if a name or size is not valid."""
    files = fields.section("files")
    if files is None:
        raise fields.error("files", "is missing")
    for name in files.values:
        _check_name(files, name)
    return {name: files.integer(name, least=0, most=_MAX_BYTES) for name in files.values}


def check_files(path: Path, files: Mapping[str, int], digests: Fields | None) -> None:
    """Refuses a folder in which a file is missing, unlisted, or of another size or digest.

    Raises:
      InputError: names the file.
    """
    for name, size in files.items():
        if not is_file(path / name):
            raise InputError(f"{path} is damaged: its file {name} is missing")
        if (found := (path / name).stat().st_size) != size:
            raise InputError(f"{path} is damaged: its file {name} has {found} bytes, and had {size}")
    # A reader might prefer an unlisted file. Users may have added a vocabulary to a base without digests.
    for part in (PARAMS,) if digests is None else (PARAMS, TOKENIZER):
        for name in _names(path, part):
            if name not in files:
                raise InputError(f"{path} is damaged: its file {name} is none of those that were written")
    listed = None if digests is None else digests.section("files")
    for name in () if listed is None else listed.values:
        assert listed is not None
        _check_name(listed, name)
        with open_file(path / name) as file:
            found = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
        if found != listed.text(name):
            raise InputError(f"{path} is damaged: its file {name} is not what was written (its digest differs)")


def _check_name(files: Fields, name: str) -> None:
    pure = PurePosixPath(name)
    if not name or str(pure) != name or pure.is_absolute() or ".." in pure.parts or re.search(r"[\0\\]", name):
        raise files.error(name, "is not the path of a file in this folder")


def _names(folder: Path, part: str) -> Iterator[str]:
    """Yields the paths, relative to the folder, of all files in one of its parts."""
    for above, _, names in os.walk(folder / part):
        yield from ((Path(above) / name).relative_to(folder).as_posix() for name in names)


def _digest(values: Mapping[str, object]) -> str:
    return _sha256(json.dumps(values, sort_keys=True).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
