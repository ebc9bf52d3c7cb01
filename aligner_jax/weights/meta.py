"""Loads Meta's folders: params.json and consolidated.00.pth, or several files with a part of every matrix.

The parts are those of model parallelism (fairscale): a file holds columns of wo and w2, and rows of the other matrices.
The embedding was split by columns up to LLaMA 2, and is split by rows (the vocabulary) since LLaMA 3. Norms are in
every file. Source: github.com/meta-llama/llama, llama/model.py; github.com/meta-llama/llama3, llama/model.py.

Two names say which part a file holds: its own, and that of the folder inside its archive, which torch names after the
file that it saves ("consolidated.00"). Files are refused if the two names contradict each other. All parts have equal
shapes, so files that were saved under another name and then exchanged cannot be detected.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights import hf
from aligner_jax.weights.assemble import assemble
from aligner_jax.weights.fill import chunks
from aligner_jax.weights.form import Form
from aligner_jax.weights.leaves import Finish, Shardings
from aligner_jax.weights.meta_config import meta_config, meta_fields
from aligner_jax.weights.source import Checkpoint, Format, Part, Slot, Source
from aligner_jax.weights.torch_file import TorchSource, share_checks, torch_sources

_LAYER = "layers.{l}."
_EMBEDDING, _HEAD = "tok_embeddings.weight", "output.weight"
_FIRST_QUERY = "layers.0.attention.wq.weight"

FORMAT = Format(
    slots={
        _EMBEDDING: Slot("embed_vd", "vd"),
        _LAYER + "attention_norm.weight": Slot("attn_norm_ld", "d"),
        # Rotary pairs are adjacent: Meta's code rotates them as complex numbers.
        _LAYER + "attention.wq.weight": Slot("q_ldnh", "(nic)d"),
        _LAYER + "attention.wk.weight": Slot("k_ldkh", "(kic)d"),
        _LAYER + "attention.wv.weight": Slot("v_ldkh", "(kh)d"),
        _LAYER + "attention.wo.weight": Slot("o_lnhd", "d(nh)"),
        _LAYER + "ffn_norm.weight": Slot("mlp_norm_ld", "d"),
        _LAYER + "feed_forward.w1.weight": Slot("gate_ldf", "fd"),
        _LAYER + "feed_forward.w3.weight": Slot("up_ldf", "fd"),
        _LAYER + "feed_forward.w2.weight": Slot("down_lfd", "df"),
        "norm.weight": Slot("norm_d", "d"),
        _HEAD: Slot("head_dv", "vd"),
    },
    decoders=hf.FORMAT.decoders,
    # Rotary frequencies, which LLaMA 1 and 2 saved. They follow from the configuration.
    ignored=(r"rope\.freqs",),
)

_SPLIT_BY_COLUMNS = re.compile(r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight")

_FILE = re.compile(r"consolidated\.([0-9]{1,6})\.pth")
_SAVED_AS = re.compile(r"consolidated\.([0-9]{1,6})\b")

type _Tensors = Mapping[str, TorchSource]


def load_meta(
    path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
) -> tuple[LlamaConfig, Params]:
    """Loads a model from a folder with params.json and consolidated.NN.pth files, and runs nothing of theirs.

    The host never holds more than the model in `dtype` and a few megabytes. A head that equals the embedding is tied,
    as in Hugging Face's folders; LLaMA 3.2's files hold both. The checksums of all weights are compared: a single
    process compares them while it reads, several processes as in `torch_file.share_checks`.

    Args:
      dtype, shardings, finish: see `assemble`.

    Raises:
      InputError: params.json is not a LLaMA's; a file is missing, truncated, damaged, not written by torch, duplicated,
        exchanged with another or unlike the others; or a tensor is missing, unknown, of the wrong shape or not finite.
    """
    checkpoint = open_meta(path)
    share_checks(checkpoint.sources, jax.process_index(), jax.process_count())
    return assemble(checkpoint, dtype, shardings=shardings, finish=finish)


def open_meta(path: Path) -> Checkpoint:
    """Opens the files of a folder. Reads only the weights that show that the files are parts of one model.

    Raises:
      InputError: see `load_meta`.
    """
    fields = meta_fields(path)
    files = _files(path)
    d_model = fields.integer("dim")
    by_file = [torch_sources(file) for file in files]
    if len(files) > 1:
        _check_order(files, by_file)
    _check_alike(files, by_file)
    _check_count(path, files, by_file[0], d_model)
    joined = {name: _join(name, [tensors[name] for tensors in by_file], d_model) for name in by_file[0]}
    if _is_tied(joined):
        del joined[_HEAD]
    config = meta_config(fields, {name: parts[0].whole_shape for name, parts in joined.items()})
    return Checkpoint(config, [source for parts in joined.values() for source in parts], FORMAT, path)


def _files(path: Path) -> list[Path]:
    """Returns the folder's files in the order of the numbers in their names."""
    numbered: dict[int, Path] = {}
    for file in sorted(path.glob("consolidated.*.pth")):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        if int(match[1]) in numbered:
            raise InputError(f"{file} has the same number as {numbered[int(match[1])].name}")
        numbered[int(match[1])] = file
    for number in range(max(numbered, default=0)):
        if number not in numbered:
            raise InputError(f"{path} has {numbered[max(numbered)].name}, but no {_file_name(number)}")
    if not numbered:
        raise InputError(f"{path} has a params.json, but no {_file_name(0)}")
    return [numbered[number] for number in sorted(numbered)]


def _file_name(number: int) -> str:
    return f"consolidated.{number:02}.pth"


def _check_order(files: Sequence[Path], by_file: Sequence[_Tensors]) -> None:
    """Raises InputError if torch saved a file under the name of another one."""
    for number, (file, tensors) in enumerate(zip(files, by_file, strict=True)):
        saved_as = {source.member.name.partition("/")[0] for source in tensors.values()}
        for match in map(_SAVED_AS.match, saved_as):
            if match and int(match[1]) != number:
                raise InputError(
                    f"{file} was saved as {match[0]}.pth, as the folder in its archive says: the files were exchanged "
                    "or renamed; give each its own name again"
                )


def _check_alike(files: Sequence[Path], by_file: Sequence[_Tensors]) -> None:
    """Raises InputError unless all files have tensors of the same names and shapes, but different weights."""
    first = by_file[0]
    for file, tensors in zip(files[1:], by_file[1:], strict=True):
        for name in first.keys() ^ tensors.keys():
            lacking, having = (files[0], file) if name in tensors else (file, files[0])
            raise InputError(f"{lacking}: tensor {name} is missing, which {having.name} has a part of")
        for name, source in tensors.items():
            other = first[name]
            if (source.shape, source.encoding) != (other.shape, other.encoding):
                raise InputError(
                    f"{file}: tensor {name} is {source.encoding} of shape {list(source.shape)}, "
                    f"but in {files[0].name} {other.encoding} of {list(other.shape)}"
                )
    queries = [tensors[_FIRST_QUERY] for tensors in by_file if _FIRST_QUERY in tensors]
    for number, query in enumerate(queries):
        for other in queries[:number]:
            if _varies(query) and _equal(query, other):
                raise InputError(f"{query.file} holds the same part of the model as {other.file.name}")


def _check_count(path: Path, files: Sequence[Path], tensors: _Tensors, d_model: int) -> None:
    """Raises InputError if the last files are missing, judging by the size of the parts."""
    if _FIRST_QUERY not in tensors or len(tensors[_FIRST_QUERY].shape) != 2:
        return
    rows = tensors[_FIRST_QUERY].shape[0]
    if rows and not d_model % rows and len(files) < d_model // rows:
        raise InputError(
            f"{path} has {len(files)} of the {d_model // rows} files that the model is split into: "
            f"{_file_name(len(files))} is missing"
        )


def _join(name: str, parts: Sequence[Source], d_model: int) -> list[Source]:
    """Returns the sources of one tensor: its parts with their positions, or one of equal copies in all files."""
    first = parts[0]
    if len(parts) == 1:
        return [first]
    if len(first.shape) != 2:
        for other in parts[1:]:
            if not any(re.fullmatch(pattern, name) for pattern in FORMAT.ignored) and not _equal(first, other):
                raise InputError(f"{other.file}: tensor {name} differs from that in {first.file.name}")
        return [first]
    by_columns = bool(_SPLIT_BY_COLUMNS.fullmatch(name)) or (name == _EMBEDDING and first.shape[1] != d_model)
    axis, each = int(by_columns), first.shape[by_columns]
    return [
        dataclasses.replace(source, part=Part(axis, number * each, len(parts) * each))
        for number, source in enumerate(parts)
    ]


def _is_tied(joined: Mapping[str, list[Source]]) -> bool:
    if _EMBEDDING not in joined or _HEAD not in joined:
        return False
    embedding, head = joined[_EMBEDDING], joined[_HEAD]
    same = [(a.shape, a.encoding, a.part) for a in embedding] == [(b.shape, b.encoding, b.part) for b in head]
    return same and all(_equal(a, b) for a, b in zip(embedding, head, strict=True))


def _equal(a: Source, b: Source) -> bool:
    """Returns True if two sources of one shape and encoding hold the same bytes. Stops at the first difference."""
    return a.nbytes == b.nbytes and all(
        np.array_equal(a.read(*rows), b.read(*rows)) for rows in chunks(a.shape[0] if a.shape else 1, a.shape[1:])
    )


def _varies(source: Source) -> bool:
    """Returns True if the first row is not constant, so that a source with the same bytes must be a copy."""
    if not source.nbytes:
        return False
    row = source.read(0, 1)[0].reshape(-1, source.nbytes // math.prod(source.shape))
    return not np.array_equal(row[1:], row[:-1])


_TOKENIZER = "tokenizer.model"


def _vocabulary(path: Path) -> Path:
    """Returns the folder, or the vocabulary in its parent folder, where Meta puts it."""
    above = path.resolve().parent / _TOKENIZER
    here = any(is_file(path / name) for name in (_TOKENIZER, "tokenizer.json"))
    return above if is_file(above) and not here else path


META = Form(
    description="a folder of Meta's (params.json and consolidated.00.pth)",
    detect=lambda path: is_file(path / "params.json"),
    config=lambda path: open_meta(path).config,
    load=load_meta,
    open=open_meta,
    vocabulary=_vocabulary,
)
