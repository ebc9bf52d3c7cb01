"""The adapter's file, damaged or tampered with: it is refused in one sentence."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_files import NamedBase, parts, refusal, write
from places import GOLDENS

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, read_artifact, save_adapter


@pytest.mark.parametrize("length", [0, 4, 30, -1])
def test_truncated_files_are_refused(length: int, saved: Path):
    saved.write_bytes(saved.read_bytes()[:length])
    assert "not a whole safetensors file" in refusal(saved, None)


def test_a_file_that_cannot_be_read_is_one_sentence(saved: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("aligner_jax.files.content.os.open", fails)
    assert f"{saved} cannot be read: Input/output error" in refusal(saved, None)


def test_files_that_are_no_adapter_are_refused(saved: Path, base: NamedBase):
    assert "does not exist" in refusal(saved.with_name("absent.safetensors"), base)
    folder = saved.with_name("folder")
    folder.mkdir()
    assert "no folder of a PEFT adapter" in refusal(folder, base)
    model = GOLDENS / "models" / "llama" / "model.safetensors"
    assert "not an adapter of this project" in refusal(model, base)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("format", "peft", "not an adapter of this project"),
        ("method", "pinwheel", "method 'pinwheel', which is not one of"),
        ("format_version", "2", "its metadata field 'dtype' is None, but should be one of bfloat16, int8, int4, coded"),
        ("format_version", "3", "format version '3', and this release reads up to 2"),
        ("dtype", "int8", "metadata 'dtype', which no adapter has in format version 1"),
        ("format_version", "²", "format version '²'"),
        ("format_version", "1" * 5000, "format version '111"),
        ("format_version", "01", "format version '01'"),
        ("base_fingerprint", "\ud800", "'base_fingerprint' is not Unicode text"),
        ("digesu", "x", "metadata 'digesu', which no adapter has"),
        ("options", "[" * 100_000, "'options' is not JSON that can be read: it is nested too deeply"),
        ("options", '{"num_tokens": ' + "9" * 5000 + "}", "'options' is not JSON that can be read: it holds a number"),
        ("options", '{"num_tokens": 3, "num_tokens": 3}', "'num_tokens' twice"),
        ("options", '{"num_tokens": true, "start_layer": 1}', "num_tokens is True"),
        ("options", '{"num_tokens": 3, "start_layer": false}', "start_layer is False"),
        (
            "options",
            '{"num_tokens": 3, "start_layer": 1, "gates": ["head"]}',
            "gates is a list, but should be one of head",
        ),
        ("options", '{"num_tokens": 3, "start_layer": 1, "cls": 1}', "no option 'cls'"),
        ("options", '{"num_tokens": 3, "start_layer": 1, "self": 1}', "no option 'self'"),
        ("options", '{"num_tokens": 3, "start_layer": 1, "method": 1}', "no option 'method'"),
        ("options", '{"num_tokens": 3', "'options' is not JSON"),
        ("options", "[3, 1]", "'options' is not a JSON object"),
        ("options", '{"num_tokens": 0, "start_layer": 1}', "num_tokens is 0"),
        ("options", '{"num_tokens": 3, "start_layer": 9}', "start_layer is 9"),
        ("options", '{"num_tokens": 3, "rank": 1}', "no option 'rank'"),
        ("options", '{"num_tokens": 2, "start_layer": 1}', "tensor 'tokens_pd' has shape (3, 16), but (2, 16)"),
        ("base_config", '{"vocab_size": 40}', "'base_config': d_model is missing"),
        ("base_config", "40", "'base_config' is not a JSON object"),
        ("base_config", '{"rope_theta": NaN, "vocab_size": 40}', "'base_config': "),
    ],
)
def test_tampered_metadata_are_refused(field: str, value: str, sentence: str, saved: Path, base: NamedBase):
    header, body = parts(saved)
    header["__metadata__"][field] = value
    write(saved, header, body)
    assert sentence in refusal(saved, base)


@pytest.mark.parametrize("with_base", [True, False])
def test_tensors_that_do_not_fit_are_refused(with_base: bool, tmp_path: Path, trained_adapter, base: NamedBase):
    adapter, path = trained_adapter(3), tmp_path / "adapter.safetensors"
    tokens_pd, gates_ln = adapter.trainable["tokens_pd"], adapter.trainable["gates_ln"]
    for trainable, sentence in (
        ({"tokens_pd": tokens_pd}, "has no tensor 'gates_ln'"),
        ({"tokens_pd": tokens_pd, "gates_ln": gates_ln, "scale": gates_ln}, "has an unknown tensor 'scale'"),
        ({"tokens_pd": tokens_pd, "gates_ln": gates_ln[:, :3]}, "'gates_ln' has shape (2, 3), but (2, 4)"),
        (
            {"tokens_pd": tokens_pd.at[1, 2].set(jnp.nan), "gates_ln": gates_ln},
            "'tokens_pd' holds numbers",
        ),
    ):
        save_adapter(adapter.replace(trainable=trainable), path, base)
        assert sentence in refusal(path, base if with_base else None)


def test_numbers_that_are_not_finite_are_refused_without_any_base(tmp_path: Path, trained_adapter):
    adapter, path = trained_adapter(1), tmp_path / "adapter.safetensors"
    save_adapter(jax.tree.map(lambda x: x * jnp.inf, adapter), path)
    assert "not finite" in refusal(path, None)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("aligner", {"num_tokens": "x"}, "num_tokens is 'x'"),
        ("aligner", {"foo": 1}, "no option 'foo'"),
        ("aligner", {"cls": 1}, "no option 'cls'"),
        ("aligner", {"start_layer": 2**31}, "start_layer is 2147483648"),
        ("lora", {"alpha": float("nan")}, "alpha is nan"),
        ("lora", {"alpha": float("inf")}, "alpha is inf"),
        ("lora", {"alpha": 10**400}, "alpha is a number of more than 30 digits"),
        ("lora", {"alpha": True}, "alpha is True"),
        ("lora", {"dropout": float("nan")}, "dropout is nan"),
        ("lora", {"targets": [["q"]]}, "targets[0] is a list, but should be one of q, k, v, o"),
        ("lora", {"targets": {"q": 1}}, "targets is an object, but should be a list"),
        ("lora", {"rslora": "no"}, "rslora is 'no'"),
        ("lora", {"rank": 10**400}, "rank is a number of more than 30 digits"),
        ("prompt", {"init_std": float("-inf")}, "init_std is -inf"),
    ],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_options_are_typed_bounded_and_finite(method, options, sentence, with_base, tmp_path, base: NamedBase):
    adapter, path = init_adapter(method, base.config), tmp_path / "a.safetensors"
    save_adapter(adapter, path, base if with_base else None)
    header, body = parts(path)
    header["__metadata__"]["options"] = json.dumps({**adapter.options.as_dict(), **options})
    write(path, header, body)
    assert sentence in refusal(path, base if with_base else None)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("dtype", ["I32", "U32", "F64", "F8_E4M3", "F4", "BOOL", "C64", "I64"])
def test_only_floating_dtypes_are_adapters(dtype: str, with_base: bool, saved: Path, base: NamedBase):
    header, body = parts(saved)
    bits = {"I32": 32, "U32": 32, "F64": 64, "F8_E4M3": 8, "F4": 4, "BOOL": 8, "C64": 64, "I64": 64}[dtype]
    header["gates_ln"] |= {"dtype": dtype, "shape": [8 * 32 // bits]}
    write(saved, header, body)
    assert f"tensor gates_ln is stored as {dtype}, which is not one of F32, BF16, F16" in refusal(
        saved, base if with_base else None
    )


def test_every_flipped_bit_is_damage(saved: Path, base: NamedBase):
    data, expected = saved.read_bytes(), load_adapter(saved, base)
    refused = 0
    for at in range(8, len(data)):
        saved.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            loaded = load_adapter(saved, base)
        except InputError:
            refused += 1
            continue
        # The damage may turn a space of the header into other white space.
        assert loaded.options == expected.options
        jax.tree.map(np.testing.assert_array_equal, loaded.trainable, expected.trainable)
    assert refused > 0.99 * (len(data) - 8)


def test_damage_is_called_so(saved: Path, base: NamedBase):
    header, body = parts(saved)
    for changed in (body[:40] + b"\x01" + body[41:], body):
        if changed == body:
            header["__metadata__"]["options"] = header["__metadata__"]["options"].replace("head", "layer")
        write(saved, header, changed, keep_digest=True)
        for read in (lambda: load_adapter(saved, base), lambda: read_artifact(saved)):
            with pytest.raises(
                InputError, match=r"adapter\.safetensors is damaged: its content is not what its digest"
            ):
                read()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("aligner", {"num_tokens": 2, "gates": "global"}),
        ("llama_adapter", {"num_tokens": 2, "gates": "layer"}),
        ("lora", {"rank": 2, "targets": ("q", "o", "down")}),
        ("prompt", {"num_tokens": 2}),
        ("prefix", {"num_tokens": 2}),
        ("bias", {"target": "v"}),
        ("full", {}),
    ],
)
def test_without_any_base_shapes_are_still_those_of_the_options(method, options, tmp_path: Path, config: LlamaConfig):
    adapter, path = init_adapter(method, config, **options), tmp_path / "a.safetensors"
    save_adapter(adapter, path)
    assert jax.tree.structure(load_adapter(path)) == jax.tree.structure(adapter)
    names = list(adapter.trainable)
    for name, leaf in adapter.trainable.items():
        without = {other: x for other, x in adapter.trainable.items() if other != name}
        wrong = [({**without, name: leaf[None]}, "has shape"), ({**without, name: leaf[:0]}, "has shape")]
        if method != "full" or ("bias" not in name and "head" not in name):
            wrong.append((without, "has no tensor"))
        for trainable, sentence in wrong:
            save_adapter(adapter.replace(trainable=trainable), path)
            assert f"{sentence} " in refusal(path, None) or f"{sentence} '{name}'" in refusal(path, None)
    save_adapter(adapter.replace(trainable={**adapter.trainable, "more": adapter.trainable[names[0]]}), path)
    assert "has an unknown tensor 'more'" in refusal(path, None)


def test_no_token_is_no_adapter(tmp_path: Path, config: LlamaConfig):
    adapter, path = init_adapter("aligner", config, num_tokens=1), tmp_path / "a.safetensors"
    empty = {**adapter.trainable, "tokens_pd": adapter.trainable["tokens_pd"][:0]}
    for num_tokens, sentence in ((0, "num_tokens is 0"), (1, "'tokens_pd' has shape (0, 16)")):
        options = dataclasses.replace(adapter.options, num_tokens=num_tokens)
        save_adapter(adapter.replace(trainable=empty, options=options), path)
        assert sentence in refusal(path, None)


def test_layers_of_two_arrays_are_the_same(tmp_path: Path, config: LlamaConfig):
    adapter, path = init_adapter("llama_adapter", config, num_tokens=2, start_layer=0), tmp_path / "a.safetensors"
    fewer = {**adapter.trainable, "tokens_lpd": adapter.trainable["tokens_lpd"][1:]}
    save_adapter(adapter.replace(trainable=fewer), path)
    assert "has shape (2, 2, 16), but (3, 2, 16) fits" in refusal(path, None)


def test_a_path_that_no_file_can_have_is_one_sentence(base: NamedBase):
    for path in ("x" * 5000, "a\0b", "/dev/zero"):
        with pytest.raises(InputError):
            load_adapter(path, base)
