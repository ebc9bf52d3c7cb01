"""Writes bases as Orbax checkpoints, block by block, and reads them in the parts that devices hold.

A base is a folder:

    base.json            index; see `orbax_index`
    params/q_ldnh/0      block 0 of leaf q_ldnh of `Params`: an Orbax checkpoint of {"q_ldnh": array}. A block holds
                         consecutive layers of the leaf, and all of a leaf without layers. Its chunks have at most a
                         mebibyte, so that a device's part is read without the rest.
    tokenizer/           files of the vocabulary if the base has one; see `data.tokenizer_files`

A block is no larger than the model's largest matrix (or 16 MiB). Orbax needs a whole array at once, and a host may not
have room for all layers of a leaf. Checksums are per chunk, because a chunk is the smallest unit that can be read. So a
process checks what it reads, and reads nothing only to check it.
"""

import concurrent.futures
import contextlib
import functools
import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file, is_folder
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, Spec
from aligner_jax.runtime.files import new_folder, system_reason
from aligner_jax.weights.assemble import Parts
from aligner_jax.weights.fill import aligned
from aligner_jax.weights.finite import check_finite, rounded
from aligner_jax.weights.form import Form
from aligner_jax.weights.leaves import (
    DTYPES,
    Finish,
    Shardings,
    build_params,
    check_dtype,
    leaf_specs,
    make_on_devices,
)
from aligner_jax.weights.orbax_block import Block, are_checksums, checksum_of, checksums
from aligner_jax.weights.orbax_index import (
    INDEX,
    PARAMS,
    TOKENIZER,
    blocks_of,
    check_files,
    checksums_of,
    config_of,
    digests_of,
    files_of,
    orbax_config,
    orbax_fields,
    write_index,
)

_CHUNK_BYTES = 2**20
_BLOCK_BYTES = 2**24
_MAX_THREADS = 32


def write_orbax(
    folder: str | Path, config: LlamaConfig, parts: Parts, dtype: str, tokenizer: Mapping[str, bytes]
) -> None:
    """Writes a base block by block. The host holds a few blocks at a time. `folder` appears only once it is complete.

    Args:
      folder: path of a new or empty folder.
      parts: reads the base's leaves; see `open_parts`.
      dtype: dtype of the arrays.
      tokenizer: content of the vocabulary's files, by name; empty if the base has no vocabulary.

    Raises:
      InputError: `folder` is not empty or cannot be written, or a value is not finite in `dtype`; or see `parts`.
    """
    with new_folder(folder) as temporary:
        fill_orbax(temporary, config, parts, dtype, tokenizer)


def fill_orbax(folder: Path, config: LlamaConfig, parts: Parts, dtype: str, tokenizer: Mapping[str, bytes]) -> None:
    """Writes a base into an existing empty folder; see `write_orbax`.

    Raises:
      OSError: the folder cannot be written.
      InputError: a value is not finite in `dtype`, or the folder's name is not UTF-8; or see `parts`.
    """
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"{folder}: a name on the way to it is not UTF-8, as those of Orbax must be") from None
    blocks = _blocks(config, DTYPES[dtype].itemsize)
    digits: dict[str, list[str]] = {leaf: [] for leaf in blocks}
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        for leaf, spec in leaf_specs(config).items():
            start = 0
            for number, length in enumerate(blocks[leaf]):
                index = [slice(start, start + length), *[slice(None)] * (len(spec.shape) - 1)]
                digits[leaf].append(_write_block(checkpointer, folder, leaf, number, parts(leaf, [index])[0]))
                start += length
                # Orbax leaves the array in a reference cycle, and the next one is as large.
                gc.collect()
    for name, content in tokenizer.items():
        (folder / TOKENIZER).mkdir(exist_ok=True)
        (folder / TOKENIZER / name).write_bytes(content)
    write_index(folder, config, dtype, blocks, digits)


def _write_block(checkpointer: ocp.Checkpointer, folder: Path, leaf: str, number: int, block: np.ndarray) -> str:
    """Writes one block and returns its checksums."""
    check_finite(block, f"block {number} of leaf {leaf}, as {block.dtype},")
    target, what = folder / PARAMS / leaf / str(number), f"block {number} of leaf {leaf}"
    options = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    items = ocp.args.StandardSave({leaf: jax.device_put(block)}, save_args={leaf: options})
    try:
        checkpointer.save(target.absolute(), args=items)
    except Exception as error:
        if found := system_reason(error):
            raise OSError(0, found) from error
        raise
    return checksums(block, Block(target, leaf, what).chunks)


def _blocks(config: LlamaConfig, itemsize: int) -> dict[str, list[int]]:
    """Returns the lengths of a leaf's blocks along its first axis, by leaf."""
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
    """Loads a base that `write_orbax` wrote.

    Args:
      dtype, shardings, finish: see `assemble`. A process reads only the chunks that its own devices hold a part of.

    Raises:
      InputError: the folder is not such a base, or is damaged. Names the file, or the leaf and block.
    """
    numbers = check_dtype(dtype)
    reader = OrbaxReader(path)
    parts_of = reader.parts(dtype)

    def make(leaf: str, spec: Spec, sharding: NamedSharding | None) -> jax.Array:
        parts = functools.partial(parts_of, leaf)
        if sharding is None:
            return jax.device_put(parts([[slice(None)] * len(spec.shape)])[0])
        return make_on_devices(spec.shape, sharding, numbers, parts)

    return reader.config, build_params(reader.config, make, shardings=shardings, finish=finish)


class OrbaxReader:
    """Reads parts of the leaves of a base that `write_orbax` wrote. Chunks are checked when they are read.

    Attributes:
      config: configuration of the base.
      stored_dtype: dtype of its arrays.

    Raises:
      InputError: see `load_orbax`.
    """

    def __init__(self, path: Path) -> None:
        fields = orbax_fields(path)
        self.config, self.stored_dtype = config_of(fields), fields.text("dtype")
        lengths, files = blocks_of(fields, self.config), files_of(fields)
        digests = digests_of(fields)
        check_files(path, files, digests)
        digits = checksums_of(digests, lengths)
        stored = DTYPES[self.stored_dtype]
        self._specs, self._leaves = leaf_specs(self.config), {}
        with _threads() as pool:
            for leaf, spec in self._specs.items():
                checks = None if digits is None else digits[leaf]
                self._leaves[leaf] = _open(path, leaf, spec, lengths[leaf], checks, stored, pool)

    def parts(self, dtype: str) -> Parts:
        """Returns a function that reads parts of the leaves; see `open_parts`."""
        numbers = check_dtype(dtype)

        def read(leaf: str, indexes: Sequence[Sequence[slice]]) -> list[np.ndarray]:
            with _threads() as pool:
                return _parts(self._leaves[leaf], self._specs[leaf].shape, numbers, pool, indexes)

        return read


@contextlib.contextmanager
def _threads() -> Iterator[concurrent.futures.Executor]:
    """Yields threads that end with the block, so that none outlives a reader."""
    pool = concurrent.futures.ThreadPoolExecutor(min(_MAX_THREADS, 4 * (os.cpu_count() or 1)))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


type _Leaf = list[tuple[int, Block, str | None]]
"""The blocks of a leaf, with the first row and the checksums of each; None without checksums."""


def _open(
    path: Path,
    leaf: str,
    spec: Spec,
    lengths: Sequence[int],
    digits: Sequence[str] | None,
    dtype: np.dtype,
    pool: concurrent.futures.Executor,
) -> _Leaf:
    """Opens the blocks of a leaf and checks their shapes and dtypes, without reading their chunks."""

    def open_one(number: int) -> Block:
        block = Block(path / PARAMS / leaf / str(number), leaf, f"{path}: block {number} of leaf {leaf}")
        wanted = (lengths[number], *spec.shape[1:])
        if (block.shape, block.dtype) != (wanted, dtype):
            raise InputError(
                f"{block.what} is {block.dtype} {list(block.shape)}, but base.json asks for {dtype} {list(wanted)}"
            )
        if digits is not None and not are_checksums(digits[number], block.num_chunks):
            raise InputError(f"{block.what} has {block.num_chunks} chunks, but base.json not as many checksums of it")
        return block

    blocks, start, leaf_blocks = pool.map(open_one, range(len(lengths))), 0, []
    for number, block in enumerate(blocks):
        leaf_blocks.append((start, block, None if digits is None else digits[number]))
        start += lengths[number]
    return leaf_blocks


def _parts(
    leaf: _Leaf,
    shape: tuple[int, ...],
    dtype: np.dtype,
    pool: concurrent.futures.Executor,
    indexes: Sequence[Sequence[slice]],
) -> list[np.ndarray]:
    """Returns parts of a leaf, in memory that the CPU backend uses without a copy. No chunk is read twice."""
    wanted = [[cut.indices(n)[:2] for cut, n in zip(index, shape, strict=True)] for index in indexes]
    parts = [aligned(tuple(stop - start for start, stop in ends), dtype) for ends in wanted]

    def copy(first: int, block: Block, digits: str | None, at: tuple[int, ...]) -> None:
        crc = None if digits is None else checksum_of(digits, block.number(at))
        numbers = block.read(at, crc)
        check_finite(numbers, block.what)
        numbers = rounded(numbers, dtype, block.what)
        rows, *rest = block.cuts(at)
        lies = [(rows.start + first, rows.stop + first), *((cut.start, cut.stop) for cut in rest)]
        for part, ends in zip(parts, wanted, strict=True):
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(lies, ends, strict=True)]
            if all(start < stop for start, stop in both):
                put = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(both, ends, strict=True))
                pick = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(both, lies, strict=True))
                part[put] = numbers[pick]

    reads = []
    for first, block, digits in leaf:
        places: set[tuple[int, ...]] = set()
        for (start, stop), *rest in wanted:
            start, stop = max(start - first, 0), min(stop - first, block.shape[0])
            if start < stop:
                places.update(block.grid([slice(start, stop), *(slice(*ends) for ends in rest)]))
        reads += [pool.submit(copy, first, block, digits, at) for at in sorted(places)]
    try:
        for read in reads:
            read.result()
    finally:
        for read in reads:
            read.cancel()
        concurrent.futures.wait(reads)
    return parts


def _hint(path: Path) -> str | None:
    if is_file(path / "_METADATA") or is_file(path / "_CHECKPOINT_METADATA"):
        return f"{path} is an Orbax checkpoint, but not of a base: aligner_jax.convert writes those, with a {INDEX}"
    return None


ORBAX = Form(
    description="an Orbax folder that aligner_jax.convert wrote",
    detect=lambda path: is_file(path / INDEX),
    config=orbax_config,
    load=load_orbax,
    open=None,
    vocabulary=lambda path: path / TOKENIZER if is_folder(path / TOKENIZER) else None,
    hint=_hint,
)
