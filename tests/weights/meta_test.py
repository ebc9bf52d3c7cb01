"""Meta's folders: bit-equal to the Hugging Face folder of the same weights, for any number of files."""

import base64
import dataclasses
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from model_folders import CONFIG, Tensors, draw, meta_params, meta_parts, write_hf, write_meta

from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.model.config import RopeScaling, llama_config
from aligner_jax.model.llama import forward, unembed
from aligner_jax.weights import fill
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import load_base
from aligner_jax.weights.hf import load_hf
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.meta import load_meta, open_meta
from aligner_jax.weights.meta_config import meta_config
from aligner_jax.weights.torch_file import torch_sources

TENSORS = draw()
WQ, WO, NORM = "layers.0.attention.wq.weight", "layers.1.attention.wo.weight", "layers.2.ffn_norm.weight"


@pytest.fixture(scope="module")
def of_hf(tmp_path_factory: pytest.TempPathFactory):
    return load_hf(write_hf(tmp_path_factory.mktemp("hf") / "model", CONFIG, TENSORS, files=2))


def assert_equal(left: tuple, right: tuple) -> None:
    assert left[0] == right[0]
    assert jax.tree.structure(left[1]) == jax.tree.structure(right[1])
    for (path, a), b in zip(jax.tree.leaves_with_path(left[1]), jax.tree.leaves(right[1]), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("parts", "embedding_axis"), [(1, 1), (2, 1), (2, 0)])
def test_equals_the_hugging_face_folder_of_the_same_weights(tmp_path, of_hf, parts, embedding_axis):
    by_part = meta_parts(CONFIG, TENSORS, parts, embedding_axis)
    assert_equal(load_meta(write_meta(tmp_path, meta_params(CONFIG), by_part)), of_hf)


def test_logits_are_those_of_the_hugging_face_folder_bit_for_bit(tmp_path, of_hf):
    config, params = load_meta(write_meta(tmp_path, meta_params(CONFIG), meta_parts(CONFIG, TENSORS, 2)))
    tokens_bt = jnp.arange(12).reshape(2, 6)
    compute = jax.jit(lambda params: unembed(params, forward(params, tokens_bt, config=config)))
    np.testing.assert_array_equal(compute(params), compute(of_hf[1]))


def test_pairs_that_are_not_put_apart_would_be_another_model(tmp_path, of_hf):
    by_part = meta_parts(CONFIG, TENSORS)
    by_part[0][WQ] = TENSORS["model.layers.0.self_attn.q_proj.weight"]
    q_ldnh = load_meta(write_meta(tmp_path, meta_params(CONFIG), by_part))[1].layers.q_ldnh
    assert not np.array_equal(q_ldnh[0], of_hf[1].layers.q_ldnh[0])
    np.testing.assert_array_equal(q_ldnh[1], of_hf[1].layers.q_ldnh[1])


@pytest.mark.parametrize("chunk_bytes", [1, 700])
def test_chunks_and_parts_leave_no_seams(monkeypatch, tmp_path, of_hf, chunk_bytes):
    # These parts end within a head, as no model's do.
    config = dataclasses.replace(CONFIG, num_heads=2, num_kv_heads=1, head_dim=16)
    by_part = meta_parts(config, TENSORS | _narrow_keys(), 4)
    whole = load_hf(write_hf(tmp_path / "hf", config, TENSORS | _narrow_keys()))
    monkeypatch.setattr(fill, "_CHUNK_BYTES", chunk_bytes)
    assert_equal(load_meta(write_meta(tmp_path / "meta", meta_params(config), by_part)), whole)


def _narrow_keys() -> Tensors:
    names = [f"model.layers.{layer}.self_attn.{kind}_proj.weight" for layer in range(3) for kind in "kv"]
    return {name: TENSORS[name][:16] for name in names}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numbers_of_two_bytes(tmp_path, dtype):
    by_part = [{name: x.astype(dtype) for name, x in part.items()} for part in meta_parts(CONFIG, TENSORS, 2)]
    params = load_meta(write_meta(tmp_path, meta_params(CONFIG), by_part))[1]
    expected = TENSORS["model.embed_tokens.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(params.embed_vd, expected)


@pytest.mark.parametrize(("parts", "embedding_axis"), [(1, 1), (2, 0)])
def test_a_head_that_is_the_embedding_is_tied(tmp_path, parts, embedding_axis):
    tensors = TENSORS | {"lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    by_part = meta_parts(CONFIG, tensors, parts, embedding_axis)
    config, params = load_meta(write_meta(tmp_path / "twice", meta_params(CONFIG), by_part))
    assert config.tied_embeddings
    assert params.head_dv is None
    for part in by_part:
        del part["output.weight"]
    assert_equal(load_meta(write_meta(tmp_path / "once", meta_params(CONFIG), by_part)), (config, params))


def test_rotary_frequencies_are_ignored(tmp_path, of_hf):
    by_part = meta_parts(CONFIG, TENSORS, 2)
    for number, part in enumerate(by_part):
        part["rope.freqs"] = np.full(4, number, np.float32)
    assert_equal(load_meta(write_meta(tmp_path, meta_params(CONFIG), by_part)), of_hf)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        (
            "llama_7b",
            {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1},
        ),
        (
            "llama2_13b",
            {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-5, "vocab_size": -1},
        ),
        (
            "llama2_70b",
            {"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
             "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1},
        ),
        (
            "llama3_8b",
            {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,
             "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0},
        ),
        (
            "llama3_1_8b",
            {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,
             "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True},
        ),
        (
            "llama3_2_1b",
            {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 256,
             "ffn_dim_multiplier": 1.5, "norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True},
        ),
    ],
)  # fmt: skip
def test_published_params_give_the_published_configuration(name: str, params: dict):
    expected = llama_config(name)
    shapes = {"layers.0.feed_forward.w1.weight": (expected.d_mlp, expected.d_model)}
    shapes["tok_embeddings.weight"] = (expected.vocab_size, expected.d_model)
    if not expected.tied_embeddings:
        shapes["output.weight"] = shapes["tok_embeddings.weight"]
    assert meta_config(Fields(params, Path("params.json")), shapes) == expected


def test_what_newer_params_say_is_believed():
    params = {**meta_params(CONFIG), "max_seq_len": 99, "use_scaled_rope": True, "rope_scaling_factor": 16}
    shapes = {"layers.0.feed_forward.w1.weight": (48, 32), "tok_embeddings.weight": (64, 32)}
    config = meta_config(Fields(params, Path("params.json")), shapes)
    assert (config.context_length, config.rope_scaling) == (99, RopeScaling(16.0, 1.0, 4.0, 8192))


def test_what_mistral_says_is_understood():
    """Source: params.json of Mistral 7B v0.1 and of Mistral Nemo, whose heads are narrower than dim / n_heads."""
    shapes = {"layers.0.feed_forward.w1.weight": (14336, 5120), "tok_embeddings.weight": (32000, 5120)}
    params = {
        "dim": 5120, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-05, "sliding_window": 4096, "vocab_size": 32000, "model_type": "transformer",
    }  # fmt: skip
    config = meta_config(Fields(params, Path("params.json")), shapes)
    assert (config.head_dim, config.d_mlp, config.context_length, config.rope_theta) == (128, 14336, 4096, 10_000.0)


@pytest.mark.parametrize(("scaled", "theta"), [(False, 10_000.0), (True, 500_000.0)])
def test_an_absent_rope_theta_is_that_of_the_generation(scaled: bool, theta: float):
    shapes = {"layers.0.feed_forward.w1.weight": (48, 32), "tok_embeddings.weight": (64, 32)}
    params = {**meta_params(CONFIG), "use_scaled_rope": scaled}
    assert meta_config(Fields(params, Path("params.json")), shapes).rope_theta == theta


def test_settings_that_are_left_out_as_null_or_false_are_no_settings():
    shapes = {"layers.0.feed_forward.w1.weight": (48, 32), "tok_embeddings.weight": (64, 32)}
    params = {**meta_params(CONFIG), "use_qk_norm": False, "moe_args": None, "nope_layer_interval": None}
    given = meta_config(Fields(params, Path("params.json")), shapes)
    assert given == meta_config(Fields(meta_params(CONFIG), Path("params.json")), shapes)


@pytest.fixture
def refused(tmp_path) -> Callable[..., str]:
    """Returns the refusal of a folder in two files after `edit(params, parts)` and the function it returns, if any."""

    def load(edit, parts: int = 2) -> str:
        folder, params, by_part = tmp_path / "meta", meta_params(CONFIG), meta_parts(CONFIG, TENSORS, parts)
        after = edit(params, by_part)
        write_meta(folder, params, by_part)
        if callable(after):
            after()
        with pytest.raises(InputError) as error:
            load_meta(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    return load


@pytest.mark.parametrize(
    ("parts", "edit", "sentence"),
    [
        (1, lambda params, parts: parts[0].pop(WO), f"tensor {WO} is missing"),
        (2, lambda params, parts: parts[0].pop(WO), f"consolidated.00.pth: tensor {WO} is missing, which cons"),
        (2, lambda params, parts: parts[1].pop(WO), f"consolidated.01.pth: tensor {WO} is missing, which cons"),
        (1, lambda params, parts: parts[0].pop("tok_embeddings.weight"), "tensor tok_embeddings.weight is missing"),
        (1, lambda params, parts: parts[0].pop("layers.0.feed_forward.w1.weight"), "w1.weight is missing"),
        (2, lambda params, parts: parts.pop(), "1 of the 2 files that the model is split into: consolidated.01"),
        (4, lambda params, parts: parts.pop(), "3 of the 4 files that the model is split into: consolidated.03"),
        (
            2,
            lambda params, parts: parts[1].update({WO: parts[1][WO][:, 1:]}),
            f"consolidated.01.pth: tensor {WO} is F32 of shape [32, 15], but in consolidated.00.pth F32 of [32, 16]",
        ),
        (
            2,
            lambda params, parts: parts[1].update({WO: parts[1][WO].astype(np.float16)}),
            f"consolidated.01.pth: tensor {WO} is F16 of shape [32, 16], but in consolidated.00.pth F32 of [32, 16]",
        ),
        (
            2,
            lambda params, parts: parts[1].update({NORM: parts[1][NORM] + 1}),
            f"consolidated.01.pth: tensor {NORM} differs from that in consolidated.00.pth",
        ),
        (2, lambda params, parts: parts.__setitem__(1, parts[0]), "01.pth holds the same part of the model as cons"),
        (
            2,
            lambda params, parts: [part.update({WO: part[WO][1:]}) for part in parts],
            f"tensor {WO} has shape [31, 16], of all its parts [31, 32], but the model's configuration asks for [32,",
        ),
        (
            1,
            lambda params, parts: parts[0].update({WO: parts[0][WO].reshape(-1)}),
            f"tensor {WO} has shape [1024], but the model's configuration asks for [32, 32]",
        ),
        (1, lambda params, parts: parts[0].update({"layers.3.attention.wq.weight": np.ones((2, 2))}), "no place"),
        (1, lambda params, parts: parts[0].update({"layers.0.attention.lora.weight": np.ones(2)}), "no place"),
        (1, lambda params, parts: params.update(dim=30), "dim is 30, not a multiple of n_heads 4"),
        (1, lambda params, parts: params.pop("n_layers"), "params.json: n_layers is missing"),
        (1, lambda params, parts: params.pop("norm_eps"), "params.json: norm_eps is missing"),
        (1, lambda params, parts: params.update(n_kv_heads=3), "params.json: num_heads 4 is not a multiple"),
        (1, lambda params, parts: params.update(vocab_size=-2), "vocab_size is -2, not a positive integer"),
        (1, lambda params, parts: params.update(vocab_size=65), "asks for [65, 32]"),
        (1, lambda params, parts: params.update(use_scaled_rope="yes"), "use_scaled_rope is 'yes'"),
        (1, lambda params, parts: params.update(use_scaled_rope=1), "use_scaled_rope is 1, not true or false"),
        (1, lambda params, parts: params.update(norm_eps=float("nan")), "norm_eps is nan, not a positive number"),
        (1, lambda params, parts: params.update(norm_eps=float("inf")), "norm_eps is inf, not a positive number"),
        (1, lambda params, parts: params.update(norm_eps="1e-5"), "norm_eps is '1e-5', not a positive number"),
        (1, lambda params, parts: params.update(rope_theta=0), "rope_theta is 0, not a positive number"),
        (1, lambda params, parts: params.update(n_layers=True), "n_layers is True, not a positive integer"),
        (1, lambda params, parts: params.update(n_layers=10**12), "n_layers is 1000000000000, not a positive integer"),
        (1, lambda params, parts: params.update(n_layers=10**9), "too few for the 1000000000 layers"),
        (1, lambda params, parts: params.update(n_heads=[4]), "n_heads is [4], not a positive integer"),
        (1, lambda params, parts: params.update(n_heads=0), "n_heads is 0, not a positive integer"),
        (1, lambda params, parts: params.update(dim=32.0), "dim is 32.0, not a positive integer"),
        (1, lambda params, parts: params.update(head_dim=16), "asks for [64, 32]"),
        (1, lambda params, parts: params.update(head_dim=7), "params.json: head_dim 7 is odd"),
        (1, lambda params, parts: params.update(hidden_dim=64), "hidden_dim is 64, but the weights of the MLP have 48"),
        (1, lambda params, parts: params.update(vocab_size=-1.0), "vocab_size is -1.0, not a positive integer"),
        (1, lambda params, parts: params.update(multiple_of="x"), "multiple_of is 'x', not a positive integer"),
        (1, lambda params, parts: params.update(ffn_dim_multiplier=True), "ffn_dim_multiplier is True, not a positive"),
        (1, lambda params, parts: params.update(sliding_window=4095), "sliding_window is 4095, less than the"),
        (1, lambda params, parts: params.update(rope_scaling_factor=0.5), "rope_scaling_factor is 0.5, not a positive"),
        (1, lambda params, parts: params.update(rope_high_freq_factor=1), "rope_high_freq_factor is 1, not more"),
        (1, lambda params, parts: params.update(model_type="mamba"), "model_type is 'mamba'"),
        (1, lambda params, parts: params.update(use_qk_norm=True), "use_qk_norm is not a setting that is known here"),
        (1, lambda params, parts: params.update(rope_thetta=5e5), "rope_thetta is not a setting that is known here"),
        (1, lambda params, parts: params.update(quantization_args={}), "quantized weights are not supported"),
        (1, lambda params, parts: params.update(moe={"num_experts": 8}), "mixtures of experts"),
        (1, lambda params, parts: params.update(moe_args={}), "mixtures of experts"),
        (1, lambda params, parts: parts[0].update({WQ: parts[0][WQ] * np.nan}), f"tensor {WQ} holds numbers that are"),
        (2, lambda params, parts: parts[1].update({NORM: np.ones((4, 4, 2))}), f"tensor {NORM} is F32 of shape [4, 4"),
        (1, lambda params, parts: params.update(vision_chunk_size=448), "models of images"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_refused(refused, parts, edit, sentence):
    assert sentence in refused(edit, parts)


def test_files_that_are_not_what_they_should_be(refused, tmp_path):
    first, second = (tmp_path / "meta" / f"consolidated.0{i}.pth" for i in (0, 1))

    def edit(change):
        return lambda params, parts: change

    assert "has consolidated.01.pth, but no consolidated.00.pth" in refused(edit(first.unlink))
    third = second.with_name("consolidated.02.pth")
    assert "has consolidated.02.pth, but no consolidated.01.pth" in refused(edit(lambda: second.rename(third)))
    third.unlink()
    again = second.with_name("consolidated.1.pth")
    assert "has the same number as consolidated.01.pth" in refused(edit(lambda: again.write_bytes(b"")))
    again.unlink()
    cut = edit(lambda: second.write_bytes(second.read_bytes()[:-100]))
    assert "consolidated.01.pth is not a torch file" in refused(cut)
    assert "it is a pickle without an archive" in refused(edit(lambda: second.write_bytes(b"\x80\x02\x8a\nl\xfc\x9c")))
    assert "it is empty" in refused(edit(lambda: second.write_bytes(b"")))
    assert "has a params.json, but no consolidated.00.pth" in refused(edit(lambda: (first.unlink(), second.unlink())))
    params = first.with_name("params.json")
    assert "params.json:2 is not JSON" in refused(edit(lambda: params.write_text("{\n")))


def _saved_as(path: Path, name: str) -> None:
    """Renames the folder in a file's archive to the name that torch would have given it."""
    with zipfile.ZipFile(path) as old:
        members = {member.replace("archive", name): old.read(member) for member in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)


@pytest.mark.parametrize("names", [("consolidated.01", "consolidated.00"), ("consolidated.00", "consolidated.00")])
def test_files_in_each_others_place_are_refused(tmp_path, names, of_hf):
    honest = write_meta(tmp_path / "honest", meta_params(CONFIG), meta_parts(CONFIG, TENSORS, 2))
    other = write_meta(tmp_path / "other", meta_params(CONFIG), meta_parts(CONFIG, TENSORS, 2))
    for number, name in enumerate(names):
        _saved_as(honest / f"consolidated.{number:02}.pth", f"consolidated.{number:02}")
        _saved_as(other / f"consolidated.{number:02}.pth", name)
    assert_equal(load_meta(honest), of_hf)
    with pytest.raises(InputError, match=r"was saved as consolidated\.0\d\.pth, as the folder in its archive says"):
        load_meta(other)


def test_a_single_file_may_have_been_renamed(tmp_path, of_hf):
    folder = write_meta(tmp_path, meta_params(CONFIG), meta_parts(CONFIG, TENSORS))
    _saved_as(folder / "consolidated.00.pth", "consolidated.07")
    assert_equal(load_meta(folder), of_hf)


@pytest.mark.parametrize("chunk_bytes", [700, 2**20])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_flipped_bit_of_any_tensor_is_refused(tmp_path, monkeypatch, chunk_bytes: int, dtype: str):
    monkeypatch.setattr(fill, "_CHUNK_BYTES", chunk_bytes)
    folder = write_meta(tmp_path, meta_params(CONFIG), meta_parts(CONFIG, TENSORS, 2))
    for file in (folder / "consolidated.00.pth", folder / "consolidated.01.pth"):
        whole = file.read_bytes()
        for source in torch_sources(file).values():
            data = bytearray(whole)
            data[source.offset + source.nbytes - 3] ^= 1
            file.write_bytes(data)
            with pytest.raises(InputError, match=r"does not match its checksum|differs from"):
                load_meta(folder, dtype)
            file.write_bytes(whole)


@pytest.mark.parametrize("axis", [0, -1])
def test_a_flipped_bit_is_refused_where_leaves_are_read_in_parts(tmp_path, axis: int):
    """One process reads parts for several of its devices, here the last part first."""
    folder = write_meta(tmp_path, meta_params(CONFIG), meta_parts(CONFIG, TENSORS))

    def load() -> None:
        parts = open_parts(open_meta(folder), "float32")
        for leaf, spec in leaf_specs(CONFIG).items():
            whole = [slice(None)] * len(spec.shape)
            for block in (slice(1, None), slice(0, 1)):
                whole[axis] = block
                parts(leaf, [list(whole)])

    load()
    file = folder / "consolidated.00.pth"
    content = file.read_bytes()
    for source in torch_sources(file).values():
        data = bytearray(content)
        data[source.offset + 1] ^= 1
        file.write_bytes(data)
        with pytest.raises(InputError, match="does not match its checksum"):
            load()


def test_the_tokenizer_may_be_one_folder_up(tmp_path, monkeypatch):
    folder = write_meta(tmp_path / "llama" / "7B", meta_params(CONFIG), meta_parts(CONFIG, TENSORS))
    assert load_base(folder).tokenizer is None
    ranks = b"".join(base64.b64encode(bytes([i])) + f" {i}\n".encode() for i in range(4))
    (tmp_path / "llama" / "tokenizer.model").write_bytes(ranks)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "llama" / "tokenizer.model"))):
        load_base(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(
        InputError, match=r"tokenizer\.model is a tiktoken vocabulary, which is not read: put tokenizer"
    ):
        load_base(".")


def test_a_folder_of_hugging_face_that_keeps_metas_too_is_of_hugging_face(tmp_path):
    folder = write_hf(tmp_path / "model", CONFIG, TENSORS)
    (folder / "params.json").write_text("{}")
    assert load_base(folder).config == CONFIG
