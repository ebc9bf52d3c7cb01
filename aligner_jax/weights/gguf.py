"""GGUF files: llama.cpp's single file of metadata and (mostly quantized) tensors."""

import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from aligner_jax.data.gguf_metadata import GGUFHeader, TensorEntry, read_gguf_header
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.assemble import assemble
from aligner_jax.weights.gguf_config import gguf_config, is_interleaved
from aligner_jax.weights.leaves import Finish, Shardings
from aligner_jax.weights.source import Checkpoint, Format, Slot, Source

_BLOCK = "blk.{l}."

_QUANTIZED = (
    GGMLQuantizationType.Q8_0,
    GGMLQuantizationType.Q4_0,
    GGMLQuantizationType.Q4_1,
    GGMLQuantizationType.Q4_K,
    GGMLQuantizationType.Q6_K,
)


def _dequantizer(kind: GGMLQuantizationType):
    # The package works through 16 rows at a time, which for narrow rows is all overhead; blocks do not mind the shape.
    return lambda rows: dequantize(rows.reshape(1, -1), kind).reshape(rows.shape[0], -1)


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
    # rope_freqs is read for the configuration; attn_rot_embd are rotary tables that llama.cpp does not use either.
    ignored=(r"rope_freqs\.weight", r"blk\.\d+\.attn_rot_embd(\.weight)?"),
)

# llama.cpp's LLaMA turns neighbouring dimensions, so its converter interleaves the halves of every query and key head.
_INTERLEAVED = dataclasses.replace(
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
    path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
) -> tuple[LlamaConfig, Params]:
    """A model from a GGUF file, dequantized: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K.

    The host never holds more than the model in `dtype` and a few megabytes.

    Args:
      dtype: of the parameters: "float32" or "bfloat16".
      shardings, finish: see `assemble`.

    Raises:
      InputError: the file is cut short or damaged, the architecture is not LLaMA's, or a tensor is missing, unknown,
        of the wrong shape, or of a type that is not read.
    """
    return assemble(open_gguf(path), dtype, shardings=shardings, finish=finish)


def open_gguf(path: Path) -> Checkpoint:
    """A GGUF file, of which no weight is read yet.

    Raises:
      InputError: see `load_gguf`.
    """
    header = read_gguf_header(path)
    sources = gguf_sources(path, header)
    rope_freqs = next((source for source in sources if source.name == "rope_freqs.weight"), None)
    factors = None
    if rope_freqs is not None:
        FORMAT.check_encoding(rope_freqs)
        factors = FORMAT.decode(rope_freqs).astype(np.float64).ravel()
    config = gguf_config(path, header, factors)
    form = _INTERLEAVED if is_interleaved(header) else FORMAT
    return Checkpoint(config, sources, form, path)


def gguf_sources(path: Path, header: GGUFHeader) -> list[Source]:
    """Every tensor of a GGUF file, not read yet; shapes as NumPy has them, slowest axis first.

    Raises:
      InputError: the file ends before a tensor does.
    """
    sources = [_source(path, header, name, entry) for name, entry in header.tensors.items()]
    size = path.stat().st_size
    for source in sources:
        if source.offset + source.nbytes > size:
            raise InputError(
                f"{path} is cut short: tensor {source.name} ends at byte {source.offset + source.nbytes}, "
                f"the file at byte {size}"
            )
    return sources


def _source(path: Path, header: GGUFHeader, name: str, entry: TensorEntry) -> Source:
    shape = tuple(reversed(entry.shape))
    try:
        kind = GGMLQuantizationType(entry.type)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        encoding = kind.name
    except (ValueError, KeyError):
        # Its size is unknown, but a tensor of unknown type is refused before it is read.
        encoding, block, block_bytes = f"ggml type {entry.type}", 1, 0
    if entry.shape and entry.shape[0] % block:
        raise InputError(f"{path}: tensor {name} has rows of {entry.shape[0]}, but {encoding} has blocks of {block}")
    nbytes = math.prod(shape) // block * block_bytes
    return Source(name, path, shape, encoding, header.data_offset + entry.offset, nbytes)
