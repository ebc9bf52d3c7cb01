"""Checks that all processes of a run have the same config, environment and files."""

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from aligner_jax.errors import InputError
from aligner_jax.files.content import open_file
from aligner_jax.runtime import distributed
from aligner_jax.runtime.config import TrainConfig, as_dict
from aligner_jax.runtime.platform import compute_dtype
from aligner_jax.runtime.same_run import changes

_WEIGHTS_AND_WORDS = {".safetensors", ".gguf", ".pth", ".json", ".model", ".jinja"}
_DECIDING = ("jax", "jaxlib", "numpy", "optax", "grain", "tokenizers", "sentencepiece", "jinja2")
"""Packages whose versions change batches, steps or updates."""
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable")
_MAX_FILES = 1000
_READ_WHOLE = 256 * 2**20
"""Size in bytes up to which a file is compared as a whole, not by samples."""
_SAMPLE, _SAMPLES = 4096, 32


def exchange(text: str) -> list[str]:
    """Gathers a text from every process, in process order. A collective: all processes must call it."""
    if distributed.is_alone():
        return [text]
    content = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(content)))).reshape(-1)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(content)] = content
    of_each = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes().decode(errors="surrogatepass") for row, length in zip(of_each, lengths, strict=True)]


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Ends all processes if a check fails in one of them. A collective: all processes must enter the context.

    Without it, a process that fails leaves the others waiting, and may remove files that they still need.

    Raises:
      InputError: this process's own failure, or else the first of another process, which is named.
    """
    failure = None
    try:
        yield
    except InputError as error:
        failure = error
    of_each = exchange(str(failure or ""))
    if failure is not None:
        raise failure
    for process, sentence in enumerate(of_each):
        if sentence:
            raise InputError(f"process {process} of {len(of_each)} cannot go on: {sentence}")


def check_same_config(config: TrainConfig) -> None:
    """Refuses processes that were started with different configs or in different environments.

    All processes call it before any other collective. A single process compares nothing and reads nothing.

    Raises:
      InputError: processes differ; raised in all of them, with the process and the difference.
    """
    if distributed.is_alone():
        return
    devices = collections.Counter(device.process_index for device in jax.devices())
    for process, number in sorted(devices.items()):
        if number != devices[0]:
            raise InputError(
                f"process {process} of {len(devices)} has {number} devices and process 0 has {devices[0]}: all "
                "processes need as many"
            )
    mine = {"config": as_dict(config), "installed": _installed(config)}
    first, *others = map(json.loads, exchange(json.dumps(mine)))
    for process, other in enumerate(others, 1):
        if different := changes(first["config"], other["config"]):
            fields = "; ".join(f"{name} is {new!r} there and {old!r} on process 0" for name, old, new in different)
            raise InputError(
                f"process {process} of {1 + len(others)} was started with another configuration ({fields}): give all "
                "processes the same command and config file"
            )
        if different := changes(first["installed"], other["installed"]):
            parts = "; ".join(f"{name} is {new!r} there and {old!r} on process 0" for name, old, new in different)
            raise InputError(
                f"process {process} of {1 + len(others)} runs in another environment ({parts}): all processes need "
                "the same versions, settings of JAX and kind of machine"
            )


def _installed(config: TrainConfig) -> dict[str, str]:
    """Returns the versions and settings that, beside the config, determine the program and its results."""
    code = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        code.update(f"{file.relative_to(package)}\n".encode(errors="surrogatepass") + file.read_bytes())
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "aligner_jax": code.hexdigest()[:12],
        **{name: importlib.metadata.version(name) for name in _DECIDING},
        **{name: str(getattr(jax.config, name)) for name in _SETTINGS},
        "dtype of the base": compute_dtype(config.base.dtype),
    }


def check_same(input_digests: Mapping[str, str]) -> None:
    """Refuses processes whose digests differ. A collective: all processes must call it.

    Args:
      input_digests: digests of the inputs that this process has read, by names that can stand in a sentence.

    Raises:
      InputError: digests differ; raised in all processes, with the process and the names.
    """
    first, *others = map(json.loads, exchange(json.dumps(input_digests)))
    for process, other in enumerate(others, 1):
        _check_digests(process, 1 + len(others), first, other, list(input_digests))


def _check_digests(process: int, count: int, first: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    if different := [name for name in names if first[name] != other[name]]:
        raise InputError(
            f"process {process} of {count} has another {' and another '.join(different)} than process 0: all "
            "processes need the same files"
        )


def files_digest(path: Path) -> str:
    """Returns a digest of a base model's files. Large files are sampled, since two models differ nearly everywhere.

    Args:
      path: a file, or a folder with weights, configuration and tokenizer in it or one level below.
    """
    files = [path]
    if path.is_dir():
        found = [*path.glob("*"), *path.glob("[!.]*/*")]
        files = sorted(file for file in found if file.suffix in _WEIGHTS_AND_WORDS and file.is_file())[:_MAX_FILES]
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode(errors="surrogatepass"))
        with open_file(file) as content:
            if size <= _READ_WHOLE:
                digest.update(hashlib.file_digest(cast(BufferedReader, content), "sha256").digest())
                continue
            # Headers are at the start of a file, so this sample is longer.
            digest.update(content.read(_SAMPLES * _SAMPLE))
            for i in range(1, _SAMPLES + 1):
                content.seek(max(size - _SAMPLE, 0) * i // _SAMPLES)
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()
