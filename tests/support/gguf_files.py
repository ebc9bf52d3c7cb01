"""GGUF files for tests: those that llama.cpp's converter makes of a Hugging Face folder, and hand-written ones."""

import json
import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path

import gguf
import numpy as np
import places
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import load_file

MODELS = places.GOLDENS / "models"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

type Tensors = dict[str, np.ndarray | tuple[np.ndarray, GGMLQuantizationType]]


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Returns the rows of q or k as llama.cpp's converter leaves them, with rotary pairs as neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def converted(folder: Path) -> tuple[dict[str, float | int], Tensors]:
    """Returns metadata (without its prefix) and tensors as llama.cpp's converter makes them of an HF folder."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config.get("rope_theta", rope.get("rope_theta", 10_000.0))),
        "rope.dimension_count": head_dim,
    }
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem)
        target = f"blk.{layer[1]}.{NAMES[layer[2]]}" if layer else NAMES[stem]
        if target.endswith("attn_q"):
            tensor = interleave(tensor, heads)
        if target.endswith("attn_k"):
            tensor = interleave(tensor, kv_heads)
        tensors[f"{target}.{kind}"] = tensor
    return metadata, tensors


def write_gguf(
    path: Path, metadata: dict[str, object], tensors: Tensors, architecture: str = "llama", alignment: int | None = None
) -> Path:
    """Writes a file with the gguf package; keys with one of four prefixes keep their names."""
    writer = gguf.GGUFWriter(path, architecture)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    add = {
        str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, bool: writer.add_bool,
        list: writer.add_array,
    }  # fmt: skip
    for key, value in metadata.items():
        add[type(value)](
            key if key.startswith(("general.", "split.", "other.", "tokenizer.")) else f"{architecture}.{key}", value
        )
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rope_factors(base: float, head_dim: int, factor: float, context: int) -> np.ndarray:
    """Returns llama.cpp's rope_freqs.weight, which divides the rotary frequencies, from wavelengths as there."""
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * i / head_dim)
        if wavelength < context / 4:
            factors.append(1.0)
        elif wavelength > context:
            factors.append(factor)
        else:
            smooth = (context / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def text(content: bytes) -> bytes:
    """Returns a string as in a header, after its length."""
    return struct.pack("<Q", len(content)) + content


def field(key: bytes, kind: int, value: bytes) -> bytes:
    """Returns a metadata field whose value is given in bytes."""
    return text(key) + struct.pack("<I", kind) + value


def entry(name: bytes, axes: Iterable[int], kind: int = 0, offset: int = 0) -> bytes:
    """Returns a line of the tensor table."""
    axes = list(axes)
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, offset)


def header(fields: Iterable[bytes] = (), tensors: Iterable[bytes] = (), counts: tuple[int, int] | None = None) -> bytes:
    """Returns a header; `counts` replace the true counts of tensors and fields."""
    fields, tensors = list(fields), list(tensors)
    said = counts or (len(tensors), len(fields))
    return b"GGUF" + struct.pack("<IQQ", 3, *said) + b"".join(fields) + b"".join(tensors)
