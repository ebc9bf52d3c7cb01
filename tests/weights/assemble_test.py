"""Assembling: host memory, buffers that JAX takes without a copy, and chunks that join exactly."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import places
import pytest
from gguf.constants import GGMLQuantizationType
from safetensors.numpy import save_file

from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import abstract_params
from aligner_jax.weights import fill
from aligner_jax.weights.hf import FORMAT, hf_sources, load_hf

MODELS = places.GOLDENS / "models"

LARGE = LlamaConfig(
    vocab_size=8192, d_model=512, d_mlp=2048, num_layers=10, num_heads=8, num_kv_heads=8, head_dim=64,
    tied_embeddings=True,
)  # fmt: skip
"""184 MB in float32, of which the largest tensor is 17 MB."""

MEASURE = """
import sys
from pathlib import Path
import jax
from aligner_jax.weights.base import load_base

def megabytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6

load_base(Path(sys.argv[1]), sys.argv[3])
before = megabytes("VmRSS")
base = load_base(Path(sys.argv[2]), sys.argv[3])
jax.block_until_ready(base.params)
print(megabytes("VmHWM") - before)
"""


def shapes() -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the tensors of LARGE in a Hugging Face file."""
    d, f, nh = LARGE.d_model, LARGE.d_mlp, LARGE.num_heads * LARGE.head_dim
    matrices = {"q_proj": (nh, d), "k_proj": (nh, d), "v_proj": (nh, d), "o_proj": (d, nh)}
    layer = {f"self_attn.{name}": shape for name, shape in matrices.items()}
    layer |= {"mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f)}
    layer |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
    named = {f"model.layers.{i}.{name}.weight": layer[name] for i in range(LARGE.num_layers) for name in layer}
    return named | {"model.embed_tokens.weight": (LARGE.vocab_size, d), "model.norm.weight": (d,)}


def write_hf(path: Path, dtype) -> Path:
    path.mkdir()
    config = {
        "model_type": "llama",
        "vocab_size": LARGE.vocab_size,
        "hidden_size": LARGE.d_model,
        "intermediate_size": LARGE.d_mlp,
        "num_hidden_layers": LARGE.num_layers,
        "num_attention_heads": LARGE.num_heads,
        "tie_word_embeddings": True,
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: np.ones(shape, dtype) for name, shape in shapes().items()}, path / "model.safetensors")
    return path


def write_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LARGE.num_layers)
    writer.add_embedding_length(LARGE.d_model)
    writer.add_feed_forward_length(LARGE.d_mlp)
    writer.add_head_count(LARGE.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk"}
    for name, shape in shapes().items():
        for old, new in names.items():
            name = name.replace(old, new)
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            blocks = np.ones((shape[0], shape[1] // 256 * 210), np.uint8)
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16"), ("Q6_K", "float32")]
)
def test_host_memory_is_below_the_model_and_its_largest_tensor(tmp_path, stored, dtype):
    if stored == "Q6_K":
        path = write_gguf(tmp_path / "model.gguf")
    else:
        path = write_hf(tmp_path / "model", {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[stored])
    command = [sys.executable, "-c", MEASURE, MODELS / "llama", path, dtype]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    root = places.ROOT
    grown = float(subprocess.run(command, env=env, cwd=root, check=True, capture_output=True, text=True).stdout)
    leaves = jax.tree.leaves(abstract_params(LARGE, dtype))
    model = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 1e6
    largest = max(math.prod(shape) for shape in shapes().values()) * np.dtype(leaves[0].dtype).itemsize / 1e6
    assert 0.9 * model < grown < model + largest


def test_buffers_are_taken_without_a_copy():
    source = next(s for s in hf_sources(MODELS / "llama") if s.name == "model.norm.weight")
    place = fill.Place(FORMAT.slots[source.name], None, (16,))
    (host,) = fill.fill("norm_d", (16,), [(source, place)], FORMAT, np.dtype(np.float32), [[slice(None)]])
    assert jax.device_put(host).unsafe_buffer_pointer() == host.ctypes.data


@pytest.mark.parametrize("chunk_bytes", [1, 500])
@pytest.mark.parametrize("name", ["wide_head", "llama3"])
def test_chunks_leave_no_seams(monkeypatch, name, chunk_bytes):
    whole = load_hf(MODELS / name)[1]
    monkeypatch.setattr(fill, "_CHUNK_BYTES", chunk_bytes)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(load_hf(MODELS / name)[1]), strict=True):
        np.testing.assert_array_equal(a, b)
