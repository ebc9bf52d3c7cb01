"""Loads GGUF files: llama.cpp's single file of metadata and (mostly quantized) tensors."""

import dataclasses
import functools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from aligner_jax.data import tokenizer_gguf
from aligner_jax.data.gguf_metadata import GGUFHeader, TensorEntry, read_gguf_header
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.files.content import is_file
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.assemble import assemble
from aligner_jax.weights.form import Form, Load
from aligner_jax.weights.gguf_config import gguf_config, is_interleaved, with_rope_factors
from aligner_jax.weights.leaves import Finish, Shardings
from aligner_jax.weights.source import Checkpoint, Format, Slot, Source

_BLOCK = "blk.{l}."
_SIZES = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
"""Block sizes by ggml type: number of weights, number of bytes."""

# Every quantized type that the gguf package can dequantize.
_QUANTIZED = tuple(
    GGMLQuantizationType[name]
    for name in (
        "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
        "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
    )
)  # fmt: skip


def _dequantizer(kind: GGMLQuantizationType):
    def decode(rows: np.ndarray) -> np.ndarray:
        # `Format.decode` refuses values that are not finite, so NumPy need not warn of scales that are not.
        with np.errstate(all="ignore"):
            # The package works through 16 rows at a time, which is slow for narrow rows. Blocks do not depend on the
            # shape, so all rows are passed as one.
            return dequantize(rows.reshape(1, -1), kind).reshape(rows.shape[0], -1)

    return decode


FORMAT = Format(
    slots={
        "token_embd.weight": Slot("embed_vd", "vd"),
        _BLOCK + "attn_norm.weight": Slot("attn_norm_ld", "d"),
        _BLOCK + "attn_q.weight": Slot("q_ldnh", "(nh)d"),
        _BLOCK + "attn_k.weight": Slot("k_ldkh", "(kh)d"),
        _BLOCK + "attn_v.weight": Slot("v_ldkh", "(kh)d"),
        _BLOCK + "attn_output.weight": Slot("o_lnhd", "d(nh)"),
        _BLOCK + "attn_q.bias": Slot("q_bias_lnh", "(nh)"),
        _BLOCK + "attn_k.bias": Slot("k_bias_lkh", "(kh)"),
        _BLOCK + "attn_v.bias": Slot("v_bias_lkh", "(kh)"),
        _BLOCK + "attn_output.bias": Slot("o_bias_ld", "d"),
        _BLOCK + "ffn_norm.weight": Slot("mlp_norm_ld", "d"),
        _BLOCK + "ffn_gate.weight": Slot("gate_ldf", "fd"),
        _BLOCK + "ffn_up.weight": Slot("up_ldf", "fd"),
        _BLOCK + "ffn_down.weight": Slot("down_lfd", "df"),
        "output_norm.weight": Slot("norm_d", "d"),
        "output.weight": Slot("head_dv", "vd"),
    },
    decoders={
        "F32": lambda rows: rows.view(np.float32),
        "F16": lambda rows: rows.view(np.float16),
        "BF16": lambda rows: rows.view(jnp.bfloat16),
        **{kind.name: _dequantizer(kind) for kind in _QUANTIZED},
    },
    # rope_freqs is read for the configuration. attn_rot_embd holds rotary tables that llama.cpp does not use either.
    ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd(\.weight)?"),
)

# llama.cpp's LLaMA rotates adjacent dimensions, so its converter interleaves the halves of every query and key head.
INTERLEAVED = dataclasses.replace(
    FORMAT,
    slots={
        **FORMAT.slots,
        _BLOCK + "attn_q.weight": Slot("q_ldnh", "(nic)d"),
        _BLOCK + "attn_k.weight": Slot("k_ldkh", "(kic)d"),
        _BLOCK + "attn_q.bias": Slot("q_bias_lnh", "(nic)"),
        _BLOCK + "attn_k.bias": Slot("k_bias_lkh", "(kic)"),
    },
)


def load_gguf(
    path: Path,
    dtype: str = "float32",
    *,
    shardings: Shardings = None,
    finish: Finish = None,
    header: GGUFHeader | None = None,
) -> tuple[LlamaConfig, Params]:
    """Loads a model from a GGUF file: F32, F16, BF16, or any quantized type that the gguf package can dequantize.

    The host never holds more than the model in `dtype` and a few megabytes.

    Args:
      dtype, shardings, finish: see `assemble`.
      header: the file's header if it is already read.

    Raises:
      InputError: the file is truncated or damaged, the architecture is not LLaMA's, a setting is not supported, or a
        tensor is missing, unknown, of the wrong shape, not finite, or of an unsupported type.
    """
    return assemble(open_gguf(path, header), dtype, shardings=shardings, finish=finish)


def open_gguf(path: Path, header: GGUFHeader | None = None) -> Checkpoint:
    """Opens a GGUF file without loading its weights.

    Raises:
      InputError: see `load_gguf`.
    """
    header = header or read_gguf_header(path)
    sources = gguf_sources(path, header)
    config = gguf_config(path, header)
    for source in sources:
        if source.name == "rope_freqs.weight":
            config = with_rope_factors(path, header, config, _rope_factors(source, config))
    return Checkpoint(config, sources, gguf_format(header), path)


def gguf_format(header: GGUFHeader) -> Format:
    """Returns names and encodings of the tensors of a GGUF file, whose architecture decides the order of rows."""
    return INTERLEAVED if is_interleaved(header) else FORMAT


def _rope_factors(source: Source, config: LlamaConfig) -> np.ndarray:
    wanted = (config.head_dim // 2,)
    if source.encoding != "F32" or source.shape != wanted:
        raise InputError(
            f"{source.file}: tensor {source.name} is stored as {source.encoding} {list(source.shape)}, but rotary "
            f"factors are F32 {list(wanted)}"
        )
    return FORMAT.decode(source).ravel()


def gguf_sources(path: Path, header: GGUFHeader) -> list[Source]:
    """Returns every tensor of a GGUF file, unread. Shapes are in NumPy's order, slowest axis first.

    Tensors follow each other in the order of the table. Each begins at the next multiple of the alignment, and the file
    ends with the last one or its padding. All writers keep to this layout and llama.cpp reads no other, so a wrong
    type, shape, offset or alignment is detected.

    Raises:
      InputError: a tensor is of an unknown type, the layout is different, or the file ends inside a tensor.
    """
    sources = [_source(path, header, name, entry) for name, entry in header.tensors.items()]
    begin, size = header.data_offset, path.stat().st_size
    before, reached = "the header", begin
    for source in sources:
        if source.offset != reached:
            raise InputError(
                f"{path} is damaged: tensor {source.name} begins at byte {source.offset - begin} of the tensor data, "
                f"but {before} leads up to byte {reached - begin}"
            )
        end = source.offset + source.nbytes
        if end > size:
            raise InputError(f"{path} is cut short: tensor {source.name} ends at byte {end}, the file at byte {size}")
        before, reached = f"{source.name} before it, {list(source.shape)} {source.encoding},", _padded(end, header)
    if sources and size > reached:
        raise InputError(
            f"{path} is damaged: it goes on for {size - reached} bytes after its last tensor, {sources[-1].name}, "
            f"{list(sources[-1].shape)} {sources[-1].encoding}"
        )
    return sources


def _padded(end: int, header: GGUFHeader) -> int:
    return header.data_offset - (header.data_offset - end) // header.alignment * header.alignment


def _source(path: Path, header: GGUFHeader, name: str, entry: TensorEntry) -> Source:
    shape = tuple(reversed(entry.shape))
    if entry.type not in _SIZES:
        # The offsets of later tensors cannot be checked without the block size of this type.
        raise InputError(
            f"{path}: tensor {name} is stored as ggml type {entry.type}, which is not one of "
            f"{', '.join(FORMAT.decoders)}"
        )
    kind = GGMLQuantizationType(entry.type)
    block, block_bytes = _SIZES[kind]
    if shape[-1] % block:
        raise InputError(f"{path}: tensor {name} has rows of {shape[-1]}, but {kind.name} has blocks of {block}")
    if len(shape) == 1 and block > 1:
        raise InputError(
            f"{path}: tensor {name} is a vector in blocks of {kind.name}; GGUF files hold those unquantized"
        )
    nbytes = math.prod(shape) // block * block_bytes
    return Source(name, path, shape, kind.name, header.data_offset + entry.offset, nbytes)


def _begin(path: Path) -> tuple[Tokenizer | None, Load]:
    # The header is read once for both: it consists mostly of the vocabulary, and is slow to read.
    header = read_gguf_header(path)
    return tokenizer_gguf.load(path, header), functools.partial(load_gguf, header=header)


def _hint(path: Path) -> str | None:
    files = sorted(path.glob("*.gguf"))
    return f"{path} is a folder; give the file itself, such as {files[0]}" if files else None


GGUF = Form(
    description="a .gguf file",
    detect=lambda path: path.suffix == ".gguf" and is_file(path),
    config=lambda path: open_gguf(path).config,
    load=load_gguf,
    open=open_gguf,
    begin=_begin,
    hint=_hint,
)
