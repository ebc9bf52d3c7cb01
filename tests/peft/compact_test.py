"""Adapters in few bytes: they load as what was rounded, the error is that of the format, and damage is refused."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_files import NamedBase, parts, refusal, write

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.params import Params
from aligner_jax.peft import METHODS, Adapter, init_adapter
from aligner_jax.peft.adapter_file import adapter_bytes, read_adapter_file
from aligner_jax.peft.artifact import load_adapter, read_artifact, read_shapes, save_adapter
from aligner_jax.peft.bank import Bank
from aligner_jax.peft.canary_logits import compute_canary
from aligner_jax.peft.compact import COMPACT, DTYPES, pack, rounded, unpack
from aligner_jax.weights.base import Base

OPTIONS = {"sum": {"aligner": ({"start_layer": 1},), "bias": ({"start_layer": 0},)}}
LARGEST_ERROR = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.505 / 127, "int4": 0.505 / 7}
"""Largest error of a number, relative to the largest number of its array."""


def random_adapter(config: LlamaConfig, method: str = "aligner", **options) -> Adapter:
    adapter, rng = init_adapter(method, config, **{**OPTIONS.get(method, {}), **options}), np.random.default_rng(1)
    drawn = {name: rng.standard_normal(x.shape) * rng.uniform(0.01, 9) for name, x in adapter.trainable.items()}
    return adapter.replace(trainable={name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_loads_what_was_rounded(method: str, dtype, tmp_path: Path, base: NamedBase):
    adapter, path = random_adapter(base.config, method), tmp_path / "adapter.safetensors"
    save_adapter(adapter, path, base, dtype=dtype)
    expected, nbytes = rounded(adapter, dtype)
    assert len(parts(path)[1]) == nbytes
    for loaded in (load_adapter(path, base), load_adapter(path)):
        assert jax.tree.structure(loaded) == jax.tree.structure(adapter)
        for name, x in expected.trainable.items():
            assert loaded.trainable[name].dtype == np.float32
            np.testing.assert_array_equal(loaded.trainable[name], x)
    assert read_shapes(path, base.config) == jax.eval_shape(lambda: expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", LARGEST_ERROR)
def test_the_error_is_half_a_step(method: str, dtype, config: LlamaConfig):
    adapter = random_adapter(config, method)
    for name, x in rounded(adapter, dtype).adapter.trainable.items():
        exact = np.asarray(adapter.trainable[name])
        assert np.abs(exact - x).max() <= LARGEST_ERROR[dtype] * np.abs(exact).max()


def test_every_row_has_its_own_scale():
    adapter = random_adapter(llama_config("stories_260k"), "lora", rank=2)
    scaled = adapter.trainable["b_q_lrnh"] * jnp.asarray([1e-6, 1.0])[None, :, None, None]
    adapter = adapter.replace(trainable={**adapter.trainable, "b_q_lrnh": scaled})
    found = np.asarray(rounded(adapter, "int8").adapter.trainable["b_q_lrnh"])
    small = np.asarray(scaled)[:, 0]
    assert 0 < np.abs(found[:, 0] - small).max() <= LARGEST_ERROR["int8"] * np.abs(small).max()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_what_was_rounded_is_rounded_to_itself(dtype, config: LlamaConfig):
    once = rounded(random_adapter(config, num_tokens=3), dtype)
    again = rounded(once.adapter, dtype)
    jax.tree.map(np.testing.assert_array_equal, again, once)


def test_an_aligner_of_one_token_in_bytes():
    adapter = random_adapter(llama_config("llama_7b"))
    sizes = {dtype: rounded(adapter, dtype).nbytes for dtype in DTYPES}
    # Two bytes a scale: of the token and 30 layers; of groups of 32. In int4 the gates are int8.
    assert {name: sizes[name] for name in DTYPES[:4]} == {
        "float32": 4 * 5056, "bfloat16": 2 * 5056, "int8": 5056 + 2 * 31,
        "int4": 4096 // 2 + 2 * 4096 // 32 + 960 + 2 * 30,
    }  # fmt: skip
    assert sizes["coded"] < 5056


@pytest.mark.parametrize("dtype", COMPACT)
def test_odd_numbers_are_kept(dtype):
    arrays = {
        "zeros_ld": np.zeros((3, 5), np.float32),
        "tiny_ld": np.full((1, 33), 1e-44, np.float32),
        "large_d": np.asarray([3e38, -1.0, 0.0], np.float32),
        "one_": np.asarray([[2.5]], np.float32),
        "scalar_": np.asarray(-4.0, np.float32),
    }
    content = pack(arrays, dtype)
    found = unpack(content, {name: x.shape for name, x in arrays.items()}, dtype, "x")
    for name in ("zeros_ld", "one_", "scalar_"):
        np.testing.assert_allclose(found[name], arrays[name], rtol=5e-3)
    assert np.abs(found["tiny_ld"]).max() < 1e-38
    # Half a step of a quarter of the root mean square.
    assert found["large_d"][0] == pytest.approx(3e38, rel=0.1 if dtype == "coded" else 5e-3)


def test_a_fresh_lora_whose_half_is_zero_is_coded(tmp_path: Path):
    adapter, path = init_adapter("lora", llama_config("stories_260k")), tmp_path / "a.safetensors"
    save_adapter(adapter, path, dtype="coded")
    assert not load_adapter(path).trainable["b_q_lrnh"].any()


def test_the_canary_is_that_of_what_is_loaded(tmp_path: Path, config: LlamaConfig, params: Params):
    base, path = Base(params, config), tmp_path / "adapter.safetensors"
    adapter = random_adapter(config)
    save_adapter(adapter, path, base, dtype="int4")
    canary = read_artifact(path, base).canary
    assert canary is not None
    assert canary == compute_canary(base, load_adapter(path, base))
    assert canary != compute_canary(base, adapter)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_keeps_the_rounded_numbers_and_its_own_metadata(dtype, bank: Bank, tmp_path: Path, base: NamedBase):
    path = tmp_path / "adapter.safetensors"
    save_adapter(random_adapter(base.config), path, base, dtype=dtype, prompt_format={"template": "chat"})
    artifact = read_artifact(path, base)
    bank.register("ada", artifact.adapter, metadata=artifact.metadata)
    assert set(bank.metadata("ada")) == {"prompt_format"}
    jax.tree.map(np.testing.assert_array_equal, dict(bank.get("ada").read()), artifact.adapter.trainable)


def test_numbers_that_cannot_be_rounded_are_refused(tmp_path: Path, config: LlamaConfig):
    adapter, path = random_adapter(config), tmp_path / "a.safetensors"
    for value, dtype, sentence in (
        (float("nan"), "int8", "holds numbers that are not finite"),
        (float("inf"), "coded", "holds numbers that are not finite"),
        (3.4e38, "bfloat16", "holds numbers that bfloat16 cannot hold"),
        (1.0, "int2", "dtype 'int2' of an adapter's file is not one of float32, bfloat16, int8, int4, coded"),
    ):
        with pytest.raises(InputError, match=sentence):
            save_adapter(jax.tree.map(lambda x, by=value: jnp.full_like(x, by), adapter), path, dtype=dtype)
    with pytest.raises(InputError, match="is of int32, but an adapter's arrays are"):
        save_adapter(jax.tree.map(lambda x: x.astype("int32"), adapter), path, dtype="int8")
    assert not path.exists()


@pytest.fixture(params=COMPACT)
def small(request: pytest.FixtureRequest, tmp_path: Path, base: NamedBase) -> Path:
    path = tmp_path / "small.safetensors"
    save_adapter(random_adapter(base.config, num_tokens=3, start_layer=1), path, base, dtype=request.param)
    return path


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("format_version", "1", "metadata 'dtype', which no adapter has in format version 1"),
        ("dtype", "int2", "'dtype' is 'int2', but should be one of bfloat16, int8, int4, coded"),
        ("dtype", "float32", "'dtype' is 'float32', but"),
        ("shapes", "", "'shapes' is not JSON"),
        ("shapes", "[]", "'shapes' is not a JSON object"),
        ("shapes", '{"tokens_pd": [3, 16]}', "numbers"),
        ("shapes", '{"tokens_pd": [3, 16], "gates_ln": [2, 5]}', "numbers"),
        ("shapes", '{"tokens_pd": [16, 3], "gates_ln": [2, 4]}', "tensor 'tokens_pd' has shape (16, 3), but (3, 16)"),
        ("shapes", '{"tokens_pd": 3, "gates_ln": [2, 4]}', "tokens_pd is"),
        ("shapes", '{"tokens_pd": [3, 0], "gates_ln": [2, 4]}', "tokens_pd"),
        ("shapes", '{"tokens_pd": [3, -16], "gates_ln": [2, 4]}', "tokens_pd"),
        ("shapes", '{"tokens_pd": [3, 1e3], "gates_ln": [2, 4]}', "tokens_pd"),
        ("shapes", '{"tokens_pd": [1099511627776, 1099511627776], "gates_ln": [2, 4]}', "of another number of"),
        ("shapes", '{"tokens_pd": [1,1,1,1,1,1,1,1,1], "gates_ln": [2, 4]}', "tokens_pd has more than 8 axes"),
        ("options", '{"num_tokens": 2, "start_layer": 1}', "tensor 'tokens_pd' has shape (3, 16), but (2, 16)"),
    ],
)
def test_tampered_metadata_are_refused(field: str, value: str, sentence: str, small: Path, base: NamedBase):
    header, body = parts(small)
    header["__metadata__"][field] = value
    write(small, header, body)
    if not (field == "shapes" and "[16, 3]" in value and header["__metadata__"]["dtype"] != "coded"):
        assert sentence in refusal(small, base)
    else:
        # Another number of scales is found first.
        assert "small.safetensors" in refusal(small, base)


def test_missing_metadata_and_other_tensors_are_refused(small: Path):
    header, body = parts(small)
    for name in ("dtype", "shapes"):
        metadata = {key: text for key, text in header["__metadata__"].items() if key != name}
        write(small, {**header, "__metadata__": metadata}, body)
        assert f"'{name}' is" in refusal(small, None)
    packed = header["packed"]
    for changed in (
        {"packet": packed},
        {"packed": {**packed, "dtype": "I8"}},
        {"packed": {**packed, "shape": [1, *packed["shape"]]}},
        {"packed": packed, "more": {"dtype": "U8", "shape": [0], "data_offsets": [len(body), len(body)]}},
    ):
        write(small, {"__metadata__": header["__metadata__"], **changed}, body)
        assert "its tensors are not one of bytes, 'packed'" in refusal(small, None)


def test_lengths_and_numbers_that_are_wrong_are_refused(small: Path):
    header, body = parts(small)
    nan = np.asarray([np.nan, np.inf], jnp.bfloat16).tobytes()
    coded = header["__metadata__"]["dtype"] == "coded"
    for content, sentence in (
        (b"", "of another number of"),
        (body[:-1], "its code is not that of 56 numbers" if coded else "of another number of"),
        (body[2:], "its code is not that of 56 numbers" if coded else "of another number of"),
        (body + b"\0", "its code is not that of 56 numbers" if coded else "of another number of"),
        (nan + body[4:], "holds numbers that are not finite"),
    ):
        size = len(content)
        header["packed"] = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        write(small, header, content)
        assert sentence in refusal(small, None)


def test_a_nibble_after_the_last_number_is_damage(tmp_path: Path):
    arrays = {"a_d": np.ones(3, np.float32)}
    content = pack(arrays, "int4")
    np.testing.assert_allclose(unpack(content, {"a_d": (3,)}, "int4", "x")["a_d"], 1, rtol=5e-3)
    with pytest.raises(InputError, match="x: tensor 'a_d' goes on after its last number"):
        unpack(content[:-1] + bytes([content[-1] | 0x10]), {"a_d": (3,)}, "int4", "x")


def test_a_bomb_is_refused_before_it_is_expanded(tmp_path: Path, base: NamedBase):
    path, count = tmp_path / "bomb.safetensors", 2**31
    save_adapter(random_adapter(base.config), path, base, dtype="coded")
    header, body = parts(path)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = body[:4] + b"".join(deflate.compress(bytes(2**20)) for _ in range(64)) + deflate.flush()
    header["packed"] = {"dtype": "U8", "shape": [len(bomb)], "data_offsets": [0, len(bomb)]}
    write(path, header, bomb)
    assert "its code is not that of 20 numbers: it is damaged" in refusal(path, None)
    header["__metadata__"]["shapes"] = json.dumps({"tokens_pd": [1, count], "gates_ln": [1, 4]})
    write(path, header, bomb)
    assert "its shapes are of another number of coded numbers" in refusal(path, None)


def test_every_flipped_bit_is_damage(small: Path, base: NamedBase):
    data, expected = small.read_bytes(), load_adapter(small, base)
    refused = 0
    for at in range(8, len(data)):
        small.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            loaded = load_adapter(small, base)
        except InputError:
            refused += 1
            continue
        # The damage may turn a space of the header into other white space.
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert refused > 0.99 * (len(data) - 8)


def test_options_of_the_adapter_stay(small: Path, base: NamedBase):
    assert dataclasses.asdict(load_adapter(small).options) == dataclasses.asdict(load_adapter(small, base).options)
    assert load_adapter(small).options["num_tokens"] == 3


def test_metadata_are_added_without_rounding_again(small: Path, base: NamedBase):
    """`exports.adapter_folder` adds a canary so."""
    before, content = load_adapter(small, base), read_adapter_file(small)
    small.write_bytes(adapter_bytes(content._replace(metadata={**content.metadata, "canary": "{}"})))
    assert parts(small)[1] == content.tensors["packed"].tobytes()
    jax.tree.map(np.testing.assert_array_equal, load_adapter(small, base), before)
