"""Exported Hugging Face folders are byte-identical to the ones that were loaded."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import places
import pytest
from safetensors import safe_open

from aligner_jax.model.params import init_params
from aligner_jax.weights import hf_write
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.hf import load_hf, open_hf

MODELS = places.GOLDENS / "models"


def _stored(file: Path) -> dict[str, tuple[str, bytes]]:
    """Returns dtype and bytes by name of the tensors of a safetensors file."""
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header.pop("__metadata__", None)
    body = raw[8 + size :]
    return {name: (x["dtype"], body[slice(*x["data_offsets"])]) for name, x in header.items()}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "F32"), ("wide_head", "F32"), ("bfloat16", "BF16")])
def test_the_export_is_the_folder_that_was_loaded(tmp_path: Path, name: str, dtype: str):
    """The goldens have transformers' names and layout, so an export must give back every tensor's bytes."""
    config, params = load_hf(MODELS / name, {"F32": "float32", "BF16": "bfloat16"}[dtype])
    hf_write.write_hf_folder(tmp_path, config, params)
    exported, original = _stored(tmp_path / "model.safetensors"), _stored(MODELS / name / "model.safetensors")
    assert {stored[0] for stored in exported.values()} == {dtype}
    assert exported == original
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
    again, _ = load_hf(tmp_path)
    assert again == config


def test_the_export_keeps_rotary_scaling(tmp_path: Path):
    config, params = load_hf(MODELS / "llama3")
    assert config.rope_scaling is not None
    hf_write.write_hf_folder(tmp_path, config, params)
    assert load_hf(tmp_path)[0] == config


def test_queries_keep_their_heads_in_halves():
    """Row n · h + i of q_proj is dimension i of head n, in rotate_half's layout: nothing is interleaved."""
    config, params = load_hf(MODELS / "llama")
    parts = open_parts(open_hf(MODELS / "llama"), "float32")
    tensors = {tensor.name: tensor for tensor in hf_write.hf_tensors(config, parts, "float32")}
    q_dnh = np.asarray(params.layers.q_ldnh[1])
    row = tensors["model.layers.1.self_attn.q_proj.weight"].make()[1 * config.head_dim + 3]
    np.testing.assert_array_equal(row, q_dnh[:, 1, 3])


def test_a_large_model_is_written_in_several_files(tmp_path: Path):
    config, params = load_hf(MODELS / "llama")
    parts = open_parts(open_hf(MODELS / "llama"), "float32")
    hf_write.write_hf(tmp_path, config, parts, "float32", shard_bytes=4096)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert not (tmp_path / "model.safetensors").exists()
    again, loaded = load_hf(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("qkv", "o", "model_type"), [(True, False, "qwen2"), (False, True, "llama"), (True, True, "llama")]
)
def test_every_set_of_biases_has_an_architecture(tmp_path: Path, qkv: bool, o: bool, model_type: str):
    config, _ = load_hf(MODELS / "llama")
    config = dataclasses.replace(config, qkv_bias=qkv, o_bias=o)
    params = jax.tree.map(lambda x: x if x.any() else x + 0.5, init_params(config, 1))
    hf_write.write_hf_folder(tmp_path, config, params)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == model_type
    window = (written.get("use_sliding_window"), written.get("sliding_window"))
    assert window == ((False, config.context_length) if model_type == "qwen2" else (None, None))
    again, loaded = load_hf(tmp_path)
    assert (again.qkv_bias, again.o_bias) == (True, o)
    np.testing.assert_array_equal(loaded.layers.o_lnhd, params.layers.o_lnhd)
    if o:
        np.testing.assert_array_equal(loaded.layers.o_bias_ld, params.layers.o_bias_ld)
    assert np.asarray(loaded.layers.q_bias_lnh).any() == qkv
