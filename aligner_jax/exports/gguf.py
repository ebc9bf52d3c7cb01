"""Writes a folded base as a GGUF file for llama.cpp."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from aligner_jax.data.gguf_metadata import read_gguf_header
from aligner_jax.errors import InputError
from aligner_jax.exports.folded import FoldedParts, folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.weights.fill import arranged, axes_of
from aligner_jax.weights.gguf import GGUF, gguf_format, gguf_sources
from aligner_jax.weights.gguf_write import (
    KINDS,
    GGUFTensor,
    Kind,
    copied_metadata,
    copied_tensor,
    encoded,
    kind_for,
    write_gguf,
)
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.source import Format, Slot

FILE = "model.gguf"

_REPLACEMENT = KINDS["float16"]
"""Type of a changed tensor whose stored type cannot be written."""


def export_gguf(job: Job, folder: Path) -> list[str]:
    """Writes a GGUF file with the tensors of the base's GGUF file; those that the adapters change are replaced.

    All metadata, and every tensor that the adapters leave alone, keep their bytes. Added tensors are the last ones.

    Args:
      job: adapters that can be folded, over their base. Its dtype is one of `KINDS`, the type of changed matrices, or
        "stored": the tensor's own type, or float16 if that is another quantized type than q8_0.
      folder: existing folder.

    Returns:
      Sentences for the user.

    Raises:
      InputError: an adapter cannot be folded (`Unfoldable`), llama.cpp would refuse the file, the base is no GGUF file
        or cannot be read, or a changed value is beyond its type's range.
    """
    if job.base.form is not GGUF:
        raise InputError(
            f"{job.base.name} is no GGUF file, and --to=gguf writes those of GGUF bases: write --to=hf, and convert "
            "the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    path = job.base.path
    header = read_gguf_header(path)
    _check_architecture(job, str(header.fields["general.architecture"]))
    parts, form = folded_parts(job.base, job.fold, "float32"), gguf_format(header)
    sources = {source.name: source for source in gguf_sources(path, header)}
    tensors = {name: copied_tensor(source) for name, source in sources.items()}
    kinds: dict[str, int] = {}
    for name, slot, layer in _new_tensors(job, form):
        source = sources.get(name)
        shape = source.shape if source else _shape(parts, slot)
        kind = kind_for(_wanted(job.dtype, source.encoding if source else "F32"), shape)
        kinds[kind.name] = kinds.get(kind.name, 0) + 1
        tensors[name] = GGUFTensor(name, shape, kind, functools.partial(_chunks, parts, slot, layer, kind, name))
    write_gguf(folder / FILE, copied_metadata(path, header), list(tensors.values()))
    return [_about(kinds, len(tensors))]


def _chunks(parts: FoldedParts, slot: Slot, layer: int | None, kind: Kind, name: str) -> Iterator[np.ndarray]:
    """Yields the bytes of a tensor that is computed from base and adapters."""
    axes = axes_of(slot.leaf)
    index = [slice(None)] * len(axes)
    if layer is None:
        x = parts(slot.leaf, [index])[0]
    else:
        index[0], axes = slice(layer, layer + 1), axes[1:]
        x = parts(slot.leaf, [index])[0][0]
    yield from encoded(arranged(x, axes, slot.layout), kind, name)


def _new_tensors(job: Job, form: Format) -> Iterable[tuple[str, Slot, int | None]]:
    """Yields the tensors that the base's file lacks or holds with other values: name, slot and layer."""
    base, folded = leaf_specs(job.base.config), leaf_specs(job.fold.folded_config)
    changed = job.changed_layers()
    every = range(job.base.config.num_layers)
    for name, slot in form.slots.items():
        if slot.leaf not in folded or (slot.leaf in base and slot.leaf not in changed):
            continue
        layers = changed[slot.leaf] if slot.leaf in base else every
        if layers is None:
            yield name, slot, None
        else:
            # Layers without the adapter have zeros for an added bias: this project's reader asks for all or none.
            yield from ((name.format(l=layer), slot, layer) for layer in layers)


def _shape(parts: FoldedParts, slot: Slot) -> tuple[int, ...]:
    """Returns the shape of an added bias in the file."""
    return (int(np.prod(leaf_specs(parts.fold.folded_config)[slot.leaf].shape[1:])),)


def _wanted(dtype: str, encoding: str) -> Kind:
    if dtype != "stored":
        return KINDS[dtype]
    return next((kind for kind in KINDS.values() if kind.name == encoding), _REPLACEMENT)


def _check_architecture(job: Job, architecture: str) -> None:
    # llama.cpp counts the tensors that a model's graph takes, and refuses a file with others.
    if architecture == "qwen2" and job.fold.folded_config.o_bias:
        raise InputError(
            f"{job.base.name} is of llama.cpp's architecture qwen2, which has no bias of the output projection and "
            "refuses a file with one: use --bias=v, which needs one gate per kv head"
        )


def _about(kinds: Mapping[str, int], total: int) -> str:
    new = sum(kinds.values())
    types = ", ".join(f"{count} in {kind}" for kind, count in kinds.items())
    return f"tensors added or replaced: {types}; the other {total - new} and all metadata have the base's bytes"
