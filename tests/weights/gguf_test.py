"""GGUF files: bit-equal to the Hugging Face folder of the same weights, for any layout and quantization."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import MODELS, Tensors, converted, interleave, rope_factors, write_gguf
from safetensors.numpy import load_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import RopeScaling
from aligner_jax.weights.gguf import FORMAT, load_gguf
from aligner_jax.weights.hf import load_hf


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a golden model as a GGUF file, after `edit(metadata, tensors)`."""

    def make(name: str = "llama", edit=lambda metadata, tensors: None, architecture: str = "llama", **options) -> Path:
        metadata, tensors = converted(MODELS / name)
        edit(metadata, tensors)
        return write_gguf(tmp_path / "model.gguf", metadata, tensors, architecture, **options)

    return make


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


def decoded_by_the_package() -> set[str]:
    """Returns the names of all types that the gguf package can decode."""
    names = set()
    for kind, (_, size) in GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        names.add(kind.name)
    return names


def test_every_type_is_read_that_the_gguf_package_decodes():
    assert set(FORMAT.decoders) == decoded_by_the_package()


def random_blocks(shape: tuple[int, int], kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """Returns random bytes, which are valid blocks if their scales are finite; other blocks are zeros."""
    block, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block, size), np.uint8)
    with np.errstate(all="ignore"):
        numbers = gguf.dequantize(blocks, kind)
    blocks[~np.isfinite(numbers).all(axis=1)] = 0
    assert np.count_nonzero(blocks.any(axis=1)) > len(blocks) // 2
    return blocks.reshape(shape[0], -1)


@pytest.mark.parametrize("kind", sorted(set(FORMAT.decoders) - {"F32"}))
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


def eight_bits(metadata: dict, tensors: Tensors) -> None:
    tensors["output_norm.weight"] = (np.zeros(34, np.uint8), GGMLQuantizationType.Q8_0)


def five_bits(metadata: dict, tensors: Tensors) -> None:
    tensors["rope_freqs.weight"] = (np.zeros((1, 176), np.uint8), GGMLQuantizationType.Q5_K)


def nine_bits(metadata: dict, tensors: Tensors) -> None:
    tensors["rope_freqs.weight"] = (np.zeros((1, 40), np.uint8), GGMLQuantizationType.Q8_1)


def with_nan(metadata: dict, tensors: Tensors) -> None:
    tensors[K1] = np.where(
        np.arange(tensors[K1].size).reshape(tensors[K1].shape) == 77, np.float32(np.nan), tensors[K1]
    )


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
        (five_bits, "tensor rope_freqs.weight is stored as Q5_K [1, 256], but rotary factors are F32 [4]"),
        (nine_bits, "tensor rope_freqs.weight is stored as Q8_1"),
        (eight_bits, "tensor output_norm.weight is a vector in blocks of Q8_0"),
        (with_nan, f"tensor {K1} holds numbers that are not finite"),
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
            "tensor rope_freqs.weight is stored as F32 [2], but rotary factors are F32 [4]",
        ),
        (
            lambda metadata, tensors: tensors.update({"rope_freqs.weight": np.zeros(4, np.float32)}),
            "tensor rope_freqs.weight is not the scaling of LLaMA 3.1",
        ),
        (lambda metadata, tensors: metadata.update(block_count=2**31 - 1), "too few for the 2147483647 layers"),
    ],
)
def test_what_cannot_be_loaded_is_refused(write, edit, sentence):
    path = write("llama", edit)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        load_gguf(path)
    assert str(path) in str(error.value)


def test_a_tensor_that_is_there_twice_is_named(write):
    path = write()
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_k.weight", b"blk.1.attn_q.weight"))
    with pytest.raises(InputError, match=r"blk\.1\.attn_q\.weight appears twice"):
        load_gguf(path)


class Entry:
    """An entry of a file's tensor table, which can be rewritten."""

    def __init__(self, path: Path, name: str) -> None:
        content = path.read_bytes()
        after_name = content.index(name.encode()) + len(name)
        (axes,) = struct.unpack_from("<I", content, after_name)
        self.path, self.type_at = path, after_name + 4 + 8 * axes

    def _change(self, code: str, at: int, value: int) -> int:
        content = bytearray(self.path.read_bytes())
        (before,) = struct.unpack_from(code, content, at)
        struct.pack_into(code, content, at, value)
        self.path.write_bytes(content)
        return before

    def type(self, value: int) -> int:
        return self._change("<I", self.type_at, value)

    def offset(self, value: int) -> int:
        return self._change("<Q", self.type_at + 4, value)


def test_a_type_that_nobody_knows_is_refused(write):
    path = write()
    Entry(path, K1).type(999)
    with pytest.raises(InputError, match=re.escape(f"tensor {K1} is stored as ggml type 999, which is not one of F32")):
        load_gguf(path)


EMBEDDING = "token_embd.weight"


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64", "I8"])
def test_a_type_with_which_the_next_tensor_would_begin_elsewhere_is_named(write, kind):
    path = write()
    Entry(path, EMBEDDING).type(GGMLQuantizationType[kind])
    with pytest.raises(InputError, match=rf"{EMBEDDING} before it, \[64, 16\] {kind}, leads up to byte"):
        load_gguf(path)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "MXFP4"])
def test_a_type_whose_blocks_do_not_fit_the_rows_is_named(write, kind):
    path = write()
    Entry(path, EMBEDDING).type(GGMLQuantizationType[kind])
    with pytest.raises(InputError, match=rf"tensor {EMBEDDING} has rows of 16, but {kind} has blocks of"):
        load_gguf(path)


def test_the_type_of_the_last_tensor_must_end_where_the_file_does(write):
    path = write()
    last = list(converted(MODELS / "llama")[1])[-1]
    Entry(path, last).type(GGMLQuantizationType.F16)
    with pytest.raises(InputError, match=rf"goes on for \d+ bytes after its last tensor, {re.escape(last)}, .* F16"):
        load_gguf(path)


def test_a_tensor_where_the_table_does_not_lead_is_named(write):
    path = write()
    entry = Entry(path, K1)
    right = entry.offset(0)
    for wrong in (0, 1, right - 32, right + 32, right + 1, 2**64 - 1):
        entry.offset(wrong)
        with pytest.raises(
            InputError, match=rf"tensor {re.escape(K1)} begins at byte {wrong} .* leads up to byte {right}"
        ):
            load_gguf(path)
    entry.offset(right)
    load_gguf(path)


def test_tensors_that_overlap_are_refused(write):
    path = write()
    for name in converted(MODELS / "llama")[1]:
        Entry(path, name).offset(0)
    with pytest.raises(InputError, match=r"begins at byte 0 of the tensor data, but .* before it"):
        load_gguf(path)


def aligned(path: Path, alignment: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"general.alignment") + len(b"general.alignment") + 4, alignment)
    path.write_bytes(content)


@pytest.mark.parametrize("alignment", [1, 32, 64, 4096])
def test_the_alignment_says_where_tensors_begin(write, alignment):
    # The header ends 4 bytes beyond a multiple of 64, so that the data offset differs for every alignment.
    name = {"general.name": "x"}
    path = write(edit=lambda metadata, tensors: metadata.update(name), alignment=1)
    begin = path.stat().st_size - sum(tensor.nbytes for tensor in converted(MODELS / "llama")[1].values())
    name["general.name"] += "x" * ((4 - begin) % 64)
    path = write(edit=lambda metadata, tensors: metadata.update(name), alignment=alignment)
    assert_equal(load_gguf(path), load_hf(MODELS / "llama"))
    for other in {1, 32, 64, 4096} - {alignment}:
        aligned(path, other)
        with pytest.raises(InputError, match=r"is damaged: (tensor|it goes on)|is cut short: tensor"):
            load_gguf(path)
    aligned(path, 48)
    with pytest.raises(InputError, match=r"general\.alignment is 48, not a power of two"):
        load_gguf(path)


def test_the_padding_of_the_last_tensor_may_be_absent(write):
    path = write(alignment=4096)
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0"))
    path.write_bytes(whole[: end + (-end) % 4])
    assert_equal(load_gguf(path), load_hf(MODELS / "llama"))
    path.write_bytes(whole[: end - 1])
    with pytest.raises(InputError, match="cut short"):
        load_gguf(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="goes on for 1 bytes after its last tensor"):
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
