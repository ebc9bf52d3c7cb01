"""GGUF files: bit-equal to the Hugging Face folder of the same weights, whatever the layout and the quantization."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import load_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import RopeScaling
from aligner_jax.weights.gguf import load_gguf
from aligner_jax.weights.hf import load_hf

MODELS = Path(__file__).parent / "goldens" / "models"
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
    """What llama.cpp's converter does to q and k, so that rotary pairs are neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def converted(folder: Path) -> tuple[dict[str, float | int], Tensors]:
    """Metadata (without its prefix) and tensors that llama.cpp's converter would make of a Hugging Face folder."""
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


def write_gguf(path: Path, metadata: dict[str, object], tensors: Tensors, architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
    for key, value in metadata.items():
        add[type(value)](f"{architecture}.{key}", value)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A golden model as a GGUF file, after `edit(metadata, tensors)`."""

    def make(name: str = "llama", edit=lambda metadata, tensors: None, architecture: str = "llama") -> Path:
        metadata, tensors = converted(MODELS / name)
        edit(metadata, tensors)
        return write_gguf(tmp_path / "model.gguf", metadata, tensors, architecture)

    return make


def rope_factors(base: float, head_dim: int, factor: float, context: int) -> np.ndarray:
    """llama.cpp's rope_freqs.weight: what each rotary frequency is divided by; written by wavelengths, as there."""
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


def add_llama3_factors(metadata: dict, tensors: Tensors) -> None:
    metadata["rope.scaling.original_context_length"] = 256
    tensors["rope_freqs.weight"] = rope_factors(500_000.0, 8, 8.0, 256)


def assert_equal(left: tuple, right: tuple) -> None:
    assert left[0] == right[0]
    assert jax.tree.structure(left[1]) == jax.tree.structure(right[1])
    for (path, a), b in zip(jax.tree.leaves_with_path(left[1]), jax.tree.leaves(right[1]), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("llama", lambda metadata, tensors: None),
        ("wide_head", lambda metadata, tensors: None),
        ("mistral", lambda metadata, tensors: None),
        ("llama3", add_llama3_factors),
    ],
)
def test_equals_the_hugging_face_folder_of_the_same_weights(write, name, edit, dtype):
    assert_equal(load_gguf(write(name, edit), dtype), load_hf(MODELS / name, dtype))


def test_qwen2_keeps_the_halves_of_a_head_apart(write):
    def undo_interleaving(metadata, tensors):
        weights = load_file(MODELS / "llama" / "model.safetensors")
        for layer in range(3):
            for kind in "qk":
                name = f"model.layers.{layer}.self_attn.{kind}_proj.weight"
                tensors[f"blk.{layer}.attn_{kind}.weight"] = weights[name]

    assert_equal(load_gguf(write("llama", undo_interleaving, "qwen2")), load_hf(MODELS / "llama"))


def random_blocks(shape: tuple[int, int], kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """Any bytes are valid integers of a block; its float16 scales are put where the block has them."""
    block, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    scales_at = {"Q4_K": (0, 2), "Q6_K": (208,), "Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,)}[kind.name]
    for at in scales_at:
        scales = rng.uniform(0.001, 0.1, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales[:, None].view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "F16", "BF16"])
def test_each_encoding_is_decoded_as_the_gguf_package_does(tmp_path, kind):
    kind = GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)
    d, f, n, k, h, v = 256, 512, 4, 2, 64, 30
    metadata = {
        "block_count": 2, "context_length": 64, "embedding_length": d, "feed_forward_length": f,
        "attention.head_count": n, "attention.head_count_kv": k, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    shapes = {
        "attn_q": (n * h, d), "attn_k": (k * h, d), "attn_v": (k * h, d), "attn_output": (d, n * h),
        "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f),
    }  # fmt: skip
    tensors: Tensors = {"output_norm.weight": rng.standard_normal(d, np.float32)}
    matrices = {"token_embd.weight": (v, d), "output.weight": (v, d)}
    for layer in range(2):
        matrices |= {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = rng.standard_normal(d, np.float32)
    expected = {}
    for name, shape in matrices.items():
        if kind.name in ("F16", "BF16"):
            data = gguf.quantize(rng.standard_normal(shape, np.float32), kind)
        else:
            data = random_blocks(shape, kind, rng)
        tensors[name] = (data, kind)
        expected[name] = gguf.dequantize(data, kind)
        assert np.isfinite(expected[name]).all()
    _, params = load_gguf(write_gguf(tmp_path / "model.gguf", metadata, tensors))
    np.testing.assert_array_equal(params.embed_vd, expected["token_embd.weight"])
    np.testing.assert_array_equal(params.head_dv, expected["output.weight"].T)
    layers = params.layers
    for layer in range(2):
        for name, leaf in (("attn_q", layers.q_ldnh), ("attn_k", layers.k_ldkh)):
            rows = np.asarray(leaf)[layer].reshape(d, -1).T
            np.testing.assert_array_equal(interleave(rows, leaf.shape[2]), expected[f"blk.{layer}.{name}.weight"])
        for name, leaf in (
            ("attn_v", layers.v_ldkh.reshape(2, d, -1)),
            ("attn_output", layers.o_lnhd.reshape(2, -1, d)),
            ("ffn_gate", layers.gate_ldf),
            ("ffn_up", layers.up_ldf),
            ("ffn_down", layers.down_lfd),
        ):
            np.testing.assert_array_equal(leaf[layer].T, expected[f"blk.{layer}.{name}.weight"], err_msg=name)


def test_every_cut_is_one_sentence(write):
    path = write("wide_head")
    whole = path.read_bytes()
    header = whole.index(b"output_norm.weight")
    for size in [*range(0, header, 61), *range(header, len(whole) - 1, len(whole) // 40), len(whole) - 33]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=re.escape(str(path))) as error:
            load_gguf(path)
        assert "\n" not in str(error.value)


def test_a_cut_names_the_tensor(write):
    path = write()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size - 10])
    with pytest.raises(InputError, match=rf"cut short: tensor .* ends at byte {size}, the file at byte {size - 10}"):
        load_gguf(path)


K1 = "blk.1.attn_k.weight"


def rename(tensors: Tensors, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def five_bits(metadata: dict, tensors: Tensors) -> None:
    tensors["rope_freqs.weight"] = (np.zeros((1, 176), np.uint8), GGMLQuantizationType.Q5_K)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda metadata, tensors: tensors.pop(K1), f"tensor {K1} is missing"),
        (lambda metadata, tensors: tensors.pop("token_embd.weight"), "tensor token_embd.weight is missing"),
        (lambda metadata, tensors: rename(tensors, K1, "blk.1.attn_kk.weight"), "blk.1.attn_kk.weight has no place"),
        (lambda metadata, tensors: rename(tensors, K1, "blk.3.attn_k.weight"), "blk.3.attn_k.weight has no place"),
        (
            lambda metadata, tensors: tensors.update({K1: tensors[K1][:8]}),
            f"tensor {K1} has shape [8, 16], but the model's configuration asks for [16, 16]",
        ),
        (five_bits, "tensor rope_freqs.weight is stored as Q5_K, which is not one of F32, F16, BF16, Q8_0"),
        (
            lambda metadata, tensors: tensors.update({K1: tensors[K1].astype(np.float64)}),
            f"tensor {K1} is stored as F64",
        ),
        (
            lambda metadata, tensors: tensors.update({"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}),
            "tensor rope_freqs.weight is not the scaling of LLaMA 3.1",
        ),
        (
            lambda metadata, tensors: tensors.update({"rope_freqs.weight": np.array([1, 8], np.float32)}),
            "tensor rope_freqs.weight is not the scaling of LLaMA 3.1",
        ),
        (lambda metadata, tensors: metadata.pop("block_count"), "llama.block_count is missing"),
        (lambda metadata, tensors: metadata.update(block_count=0), "llama.block_count is 0, not a positive integer"),
        (lambda metadata, tensors: metadata.update(block_count=2**32 - 1), "too few for the 4294967295 layers"),
        (lambda metadata, tensors: metadata.update({"attention.head_count": 3}), "not a multiple of num_kv_heads"),
        (lambda metadata, tensors: metadata.update(expert_count=8), "llama.expert_count is 8"),
        (
            lambda metadata, tensors: metadata.update({"rope.scaling.type": "yarn"}),
            "llama.rope.scaling.type is 'yarn'",
        ),
        (
            lambda metadata, tensors: metadata.update({"attention.sliding_window": 16}),
            "llama.attention.sliding_window is 16, less than the context of 2048",
        ),
        (lambda metadata, tensors: metadata.update({"rope.dimension_count": 4}), "llama.rope.dimension_count is 4"),
        (lambda metadata, tensors: metadata.update({"feed_forward_length": 1.5}), "feed_forward_length is 1.5"),
    ],
)
def test_what_cannot_be_loaded_is_refused(write, edit, sentence):
    path = write("llama", edit)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        load_gguf(path)
    assert str(path) in str(error.value)


def test_another_architecture_is_refused(write):
    with pytest.raises(InputError, match=r"general\.architecture is 'gemma', not one of llama"):
        load_gguf(write(architecture="gemma"))


def test_a_tensor_that_is_there_twice_is_named(write):
    path = write()
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_k.weight", b"blk.1.attn_q.weight"))
    with pytest.raises(InputError, match=r"blk\.1\.attn_q\.weight appears twice"):
        load_gguf(path)


def test_a_type_that_nobody_knows_is_refused(write):
    path = write()
    data = path.read_bytes()
    # After the name: the number of axes (uint32), two lengths (uint64), the type (uint32).
    at = data.index(K1.encode()) + len(K1) + 4 + 16
    path.write_bytes(data[:at] + (999).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(InputError, match=re.escape(f"tensor {K1} is stored as ggml type 999")):
        load_gguf(path)


def test_factors_of_one_are_no_scaling(write):
    path = write(edit=lambda metadata, tensors: tensors.update({"rope_freqs.weight": np.ones(4, np.float32)}))
    assert load_gguf(path)[0].rope_scaling is None


def test_the_factors_of_a_published_llama_3_2_are_recognized(write):
    def edit(metadata, tensors):
        metadata["rope.freq_base"] = 500_000.0
        tensors["rope_freqs.weight"] = rope_factors(500_000.0, 8, 32.0, 8192)

    assert load_gguf(write(edit=edit))[0].rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)


def test_tied_embeddings_are_those_without_an_output_tensor(write):
    tied = load_gguf(write(edit=lambda metadata, tensors: tensors.pop("output.weight")))
    assert tied[0].tied_embeddings
    assert tied[1].head_dv is None
    assert tied[1].embed_vd.dtype == jnp.float32
