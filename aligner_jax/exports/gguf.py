"""Writes a folded base as a GGUF file for llama.cpp."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from aligner_jax.data.gguf_metadata import Value, read_gguf_header
from aligner_jax.data.tokenizer_gguf_write import gguf_vocabulary
from aligner_jax.errors import InputError
from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase
from aligner_jax.weights.gguf import GGUF, gguf_format, gguf_sources
from aligner_jax.weights.gguf_fields import encoded_fields, model_fields
from aligner_jax.weights.gguf_model import gguf_tensors, read_tensor
from aligner_jax.weights.gguf_write import KINDS, GGUFTensor, Kind, copied_metadata, copied_tensor, write_gguf
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.source import Format, Slot

FILE = "model.gguf"

_REPLACEMENT = KINDS["float16"]
"""Type of a changed tensor whose stored type cannot be written."""


def export_gguf(job: Job, folder: Path) -> list[str]:
    """Writes a GGUF file.

    Over a GGUF base, all metadata and every tensor that the adapters leave alone keep their bytes; added tensors are
    the last ones. Over another base, the file is of llama.cpp's architecture llama, which can hold all biases.

    Args:
      job: adapters that can be folded, over their base. Its dtype is one of `KINDS`, the type of the matrices that are
        written anew, or "stored": over a GGUF base a tensor's own type, or float16 if that is another quantized type
        than q8_0; else the base's.
      folder: existing folder.

    Returns:
      Sentences for the user.

    Raises:
      InputError: an adapter cannot be folded (`Unfoldable`), llama.cpp would refuse the file or tokenize otherwise, the
        base cannot be read, or a value is beyond its type's range.
    """
    return (_patched if job.base.form is GGUF else _whole)(job, folder / FILE)


def architecture_of(base: StoredBase) -> str:
    """Returns llama.cpp's name of the architecture of the file that is written over a base."""
    return str(read_gguf_header(base.path).fields["general.architecture"]) if base.form is GGUF else "llama"


def _whole(job: Job, path: Path) -> list[str]:
    base, config = job.base, job.fold.folded_config
    dtype = base.stored_dtype if job.dtype == "stored" else job.dtype
    vocabulary, sentences = base.form.vocabulary(base.path), []
    fields: dict[str, Value] = {"tokenizer.ggml.model": "none"}
    if base.tokenizer is not None and vocabulary is not None:
        fields, sentences = gguf_vocabulary(base.tokenizer, vocabulary, config.vocab_size)
    else:
        sentences = ["tokenizer: the base has none, so llama.cpp takes token ids alone"]
    fields = model_fields(config, dtype, base.path.name) | fields
    parts = folded_parts(base, job.fold, "float32")
    # A changed leaf is computed as a whole, so reading it by rows would compute it again.
    tensors = list(gguf_tensors(config, parts, KINDS[dtype], at_once=job.fold.needs))
    write_gguf(path, encoded_fields(fields), tensors)
    return [*sentences, f"tensors: {_types(tensors)}"]


def _patched(job: Job, path: Path) -> list[str]:
    header = read_gguf_header(job.base.path)
    _check_architecture(job)
    parts, form = folded_parts(job.base, job.fold, "float32"), gguf_format(header)
    sources = {source.name: source for source in gguf_sources(job.base.path, header)}
    tensors = {name: copied_tensor(source) for name, source in sources.items()}
    new = {}
    for name, slot, layer in _new_tensors(job, form):
        kind = _kind(job.dtype, sources[name].encoding if name in sources else "F32")
        new[name] = read_tensor(name, slot, layer, job.fold.folded_config, parts, kind, at_once=True)
    tensors |= new
    write_gguf(path, copied_metadata(job.base.path, header), list(tensors.values()))
    others = len(tensors) - len(new)
    types = _types(new.values()) or "none"
    return [f"tensors added or replaced: {types}; the other {others} and all metadata have the base's bytes"]


def _new_tensors(job: Job, form: Format) -> Iterator[tuple[str, Slot, int | None]]:
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


def _kind(dtype: str, encoding: str) -> Kind:
    """Returns the type of a matrix that replaces one of type `encoding`."""
    if dtype != "stored":
        return KINDS[dtype]
    return next((kind for kind in KINDS.values() if kind.name == encoding), _REPLACEMENT)


def _check_architecture(job: Job) -> None:
    # llama.cpp counts the tensors that a model's graph takes, and refuses a file with others.
    if architecture_of(job.base) == "qwen2" and job.fold.folded_config.o_bias:
        raise InputError(
            f"{job.base.name} is of llama.cpp's architecture qwen2, which has no bias of the output projection and "
            "refuses a file with one: use --bias=v, which needs one gate per kv head"
        )


def _types(tensors: Iterable[GGUFTensor]) -> str:
    counts = Counter(tensor.kind.name for tensor in tensors)
    return ", ".join(f"{count} in {kind}" for kind, count in counts.items())
