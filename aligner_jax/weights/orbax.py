"""Bases as Orbax checkpoints: written block by block, and read in the parts that devices hold.

A base is a folder:

    base.json            {"format": "aligner_jax base", "version": 1, "dtype": "bfloat16" or "float32",
                          "config": the fields of `LlamaConfig`,
                          "blocks": {leaf: the number of layers in each of its blocks},
                          "files": {path of every other file: its bytes}}
    params/q_ldnh/0      one Orbax checkpoint of {"q_ldnh": array} for every block of every leaf of `Params`: some
                         layers of it, shaped as there, in chunks of at most a mebibyte, so that a device's part of it
                         is read without the rest. A leaf without layers is one block.
    tokenizer/           the vocabulary's files, where the base has one; see `data.tokenizer.tokenizer_files`

A block is no larger than the model's largest matrix (or 16 MiB), because Orbax wants all of an array at once, which of
a stacked leaf a host may not have room for. TensorStore takes a chunk that is missing for zeros, so the files' sizes
are checked before anything is read.
"""

import contextlib
import dataclasses
import gc
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields, read_fields
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, Spec
from aligner_jax.runtime.files import new_folder, reason
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.fill import aligned
from aligner_jax.weights.leaves import DTYPES, Finish, Shardings, build_params, check_dtype, join_blocks, leaf_specs

INDEX, TOKENIZER = "base.json", "tokenizer"
_PARAMS = "params"
_FORMAT, _VERSION = "aligner_jax base", 1
_CHUNK_BYTES = 2**20
_BLOCK_BYTES = 2**24


def write_orbax(
    folder: str | Path, config: LlamaConfig, parts: Parts, dtype: str, tokenizer: Mapping[str, bytes]
) -> None:
    """Writes a base block by block: `folder` is whole or not there, and the host holds a few blocks at a time.

    Args:
      folder: a new one.
      parts: reads the base's leaves; see `open_parts`.
      dtype: of the arrays.
      tokenizer: the vocabulary's files by name; none where the base has none.

    Raises:
      InputError: something is at `folder`, or it cannot be written, for the reason given; or see `parts`.
    """
    blocks = _blocks(config, DTYPES[dtype].itemsize)
    with new_folder(folder) as temporary, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        for leaf, spec in leaf_specs(config).items():
            start = 0
            for number, length in enumerate(blocks[leaf]):
                index = [slice(start, start + length), *[slice(None)] * (len(spec.shape) - 1)]
                with _failure_is_one_sentence(f"{folder} cannot be written"):
                    _save(checkpointer, temporary.absolute() / _PARAMS / leaf / str(number), leaf, parts(leaf, [index]))
                start += length
                # Orbax leaves the array in a circle of references, and the next is as large.
                gc.collect()
        for name, content in tokenizer.items():
            (temporary / TOKENIZER).mkdir(exist_ok=True)
            (temporary / TOKENIZER / name).write_bytes(content)
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        index = {
            "format": _FORMAT,
            "version": _VERSION,
            "dtype": dtype,
            "config": dataclasses.asdict(config),
            "blocks": blocks,
            "files": {path.relative_to(temporary).as_posix(): path.stat().st_size for path in files},
        }
        (temporary / INDEX).write_text(json.dumps(index, indent=1))


def _save(checkpointer: ocp.Checkpointer, folder: Path, leaf: str, block: list[np.ndarray]) -> None:
    options = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    items = ocp.args.StandardSave({leaf: jax.device_put(block.pop())}, save_args={leaf: options})
    checkpointer.save(folder, args=items)


def _blocks(config: LlamaConfig, itemsize: int) -> dict[str, list[int]]:
    """How each leaf's first axis is divided: as many layers to a block as are no larger than the largest matrix."""
    specs = leaf_specs(config)
    layer_bytes = {leaf: math.prod(spec.shape[spec.axes[0] == "layers" :]) * itemsize for leaf, spec in specs.items()}
    most = max(_BLOCK_BYTES, *layer_bytes.values())
    blocks = {}
    for leaf, spec in specs.items():
        length = spec.shape[0]
        step = max(1, most // layer_bytes[leaf]) if spec.axes[0] == "layers" else length
        blocks[leaf] = [min(step, length - start) for start in range(0, length, step)]
    return blocks


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
    blocks = _read_blocks(config, fields)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:

        def restore(leaf: str, number: int, shape: tuple[int, ...], sharding: NamedSharding | None) -> Any:
            if sharding is None:
                how = ocp.RestoreArgs(restore_type=np.ndarray, dtype=numbers)
            else:
                how = ocp.ArrayRestoreArgs(sharding=sharding, dtype=numbers, global_shape=shape)
            with _failure_is_one_sentence(f"{path}: block {number} of leaf {leaf} cannot be read", always=True):
                folder = path.absolute() / _PARAMS / leaf / str(number)
                args = ocp.args.PyTreeRestore(restore_args={leaf: how})
                return checkpointer.restore(folder, args=args)[leaf]

        def make(leaf: str, spec: Spec, sharding: NamedSharding | None) -> jax.Array:
            shapes = [(length, *spec.shape[1:]) for length in blocks[leaf]]
            if sharding is None:
                host, start = aligned(spec.shape, numbers), 0
                for number, shape in enumerate(shapes):
                    host[start : start + shape[0]] = restore(leaf, number, shape, None)
                    start += shape[0]
                return jax.device_put(host)
            if len(shapes) == 1:
                return restore(leaf, 0, spec.shape, sharding)
            if sharding.shard_shape(spec.shape)[0] != spec.shape[0]:
                raise InputError(f"{path}: the layers of leaf {leaf} cannot be split, since they are stored in blocks")
            held: dict[Any, list[jax.Array]] = {device: [] for device in sharding.addressable_devices}
            for number, shape in enumerate(shapes):
                for shard in restore(leaf, number, shape, sharding).addressable_shards:
                    held[shard.device].append(shard.data)
            return join_blocks(spec.shape, sharding, numbers, held, axis=0)

        return config, build_params(config, make, shardings=shardings, finish=finish)


def orbax_fields(path: Path) -> Fields:
    """The fields of a base's base.json.

    Raises:
      InputError: it is of another kind or of a later version.
    """
    fields = read_fields(path / INDEX)
    if fields.get("format") != _FORMAT:
        raise fields.error("format", f"is {fields.get('format')!r}, not {_FORMAT!r}")
    if fields.get("version") != _VERSION:
        raise fields.error("version", f"is {fields.get('version')!r}, but this release reads version {_VERSION}")
    if fields.get("dtype") not in DTYPES:
        raise fields.error("dtype", f"is {fields.get('dtype')!r}, not one of {', '.join(DTYPES)}")
    return fields


def orbax_config(path: Path) -> LlamaConfig:
    """The configuration alone. Raises InputError as `load_orbax`."""
    return _config(orbax_fields(path))


def _config(fields: Fields) -> LlamaConfig:
    section = fields.section("config")
    if section is None:
        raise fields.error("config", "is missing")
    return LlamaConfig.from_fields(section)


def _read_blocks(config: LlamaConfig, fields: Fields) -> dict[str, list[int]]:
    """How many rows each block of each leaf has."""
    section = fields.section("blocks")
    blocks: dict[str, Any] = dict(section.values) if section else {}
    for leaf, spec in leaf_specs(config).items():
        lengths = blocks.get(leaf)
        if not isinstance(lengths, list) or not all(isinstance(length, int) and length > 0 for length in lengths):
            raise fields.error(f"blocks.{leaf}", f"is {lengths!r}, not the lengths of its blocks")
        if sum(lengths) != spec.shape[0]:
            raise fields.error(f"blocks.{leaf}", f"is {lengths}, which are not {spec.shape[0]} together")
    return blocks


def _check_files(path: Path, fields: Fields) -> None:
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
    except Exception as error:  # Orbax raises bare ones.
        # TensorStore, which reads and writes the arrays, raises ValueErrors with the system's reason near their end.
        found: Any = re.search(r"([^:\[\]]+?) \[os_error_code", str(error))
        if not always and not found and not isinstance(error, OSError):
            raise
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise InputError(f"{beginning}: {found.group(1).strip() if found else reason(first)[:200]}") from error
