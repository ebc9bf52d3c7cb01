"""The adapter's file: exact, reproducible, small, bound to its base, and refused in one sentence when damaged."""

import dataclasses
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import GOLDENS, ROOT

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.params import Params
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, read_artifact, read_shapes, save_adapter
from aligner_jax.weights.base import Base
from aligner_jax.weights.hf import hf_config


class NamedBase(NamedTuple):
    """A base with a given fingerprint in place of a computed one."""

    config: LlamaConfig
    fingerprint: str = "0123456789abcdef" * 4


@pytest.fixture
def base(config: LlamaConfig) -> NamedBase:
    return NamedBase(config)


@pytest.fixture
def saved(tmp_path: Path, trained_adapter, base: NamedBase) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained_adapter(3), path, base)
    return path


def _parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write(path: Path, header: dict, body: bytes, *, keep_digest: bool = False) -> None:
    """Writes a file without a digest, as before digests existed, so that the reader checks its content."""
    if not keep_digest:
        header["__metadata__"].pop("digest", None)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _refusal(path: Path, base: NamedBase | None) -> str:
    with pytest.raises(InputError) as caught:
        load_adapter(path, base)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_is_loaded(dtype: str, tmp_path: Path, trained_adapter, base: NamedBase):
    adapter = jax.tree.map(lambda x: x.astype(dtype), trained_adapter(3, start_layer=1))
    path = tmp_path / "new" / "adapter.safetensors"
    save_adapter(adapter, path, base)
    for loaded in (load_adapter(path, base), load_adapter(path)):
        assert jax.tree.structure(loaded) == jax.tree.structure(adapter)
        for name, leaf in adapter.trainable.items():
            assert loaded.trainable[name].dtype == dtype
            np.testing.assert_array_equal(loaded.trainable[name], leaf)


def test_metadata_say_what_it_is_and_whose(saved: Path, base: NamedBase):
    metadata = _parts(saved)[0]["__metadata__"]
    assert metadata["method"] == "aligner"
    assert json.loads(metadata["options"]) == {"num_tokens": 3, "start_layer": 1, "gates": "head", "tokens": "model"}
    assert metadata["format_version"] == "1"
    assert metadata["base_fingerprint"] == base.fingerprint
    assert LlamaConfig.from_fields(Fields(json.loads(metadata["base_config"]), "it")) == base.config


def test_equal_adapters_are_equal_files_in_every_process(tmp_path: Path):
    program = (
        "import sys, aligner_jax.peft as peft; from aligner_jax.model.config import llama_config;"
        "from aligner_jax.peft.artifact import save_adapter;"
        "save_adapter(peft.init_adapter('aligner', llama_config('stories_260k')), sys.argv[1])"
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for path in files[1:]:
        save_adapter(init_adapter("aligner", llama_config("stories_260k")), path)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(files[0])], check=True, env=environment, timeout=300)
    assert len({path.read_bytes() for path in files}) == 1


def test_5056_numbers_are_20_kb_and_little_more(tmp_path: Path):
    config = llama_config("llama_7b")
    adapter = init_adapter("aligner", config)
    save_adapter(adapter, tmp_path / "adapter.safetensors", NamedBase(config))
    assert adapter.num_params == 5056
    assert (tmp_path / "adapter.safetensors").stat().st_size - 4 * 5056 < 1024


def test_the_prompt_format_comes_back(tmp_path: Path, trained_adapter, saved: Path):
    path = tmp_path / "chat.safetensors"
    save_adapter(trained_adapter(1), path, prompt_format={"template": "chat", "system": None})
    assert read_artifact(path).prompt_format == PromptFormat("chat", None)
    assert read_artifact(saved).prompt_format is None


@pytest.mark.parametrize(
    ("recorded", "sentence"),
    [
        ('{"template": 3}', "its metadata field 'prompt_format': template is 3, not text"),
        ('{"template": "chat", "system": ["a"]}', "its metadata field 'prompt_format': system is a list"),
        ('["chat"]', "its metadata field 'prompt_format' is not a JSON object"),
        ("chat", "its metadata field 'prompt_format' is not JSON"),
    ],
)
def test_an_odd_prompt_format_is_refused_where_it_is_read_and_the_adapter_loads(recorded, sentence, saved, base):
    adapter, (header, body) = load_adapter(saved, base), _parts(saved)
    header["__metadata__"]["prompt_format"] = recorded
    _write(saved, header, body)
    artifact = read_artifact(saved, base)
    for loaded in (load_adapter(saved), artifact.adapter):
        jax.tree.map(np.testing.assert_array_equal, loaded, adapter)
    with pytest.raises(InputError) as caught:
        _ = artifact.prompt_format
    assert str(caught.value).startswith(f"{saved}: {sentence}")


@pytest.mark.parametrize(
    ("prompt_format", "sentence"),
    [
        ({"template": 3}, "prompt_format's template is 3, but should be one of none, alpaca, chat"),
        ({"template": "vicuna"}, "prompt_format's template is 'vicuna', but should be one of none, alpaca, chat"),
        ({"system": "Be brief."}, "prompt_format's template is None, but should be one of none, alpaca, chat"),
        ({"template": "chat", "system": 3}, "prompt_format's system is 3, but should be text or None"),
        ({"template": "chat", "sytem": ""}, "prompt_format has the field 'sytem'; it has template and system only"),
    ],
)
def test_an_odd_prompt_format_is_not_saved(prompt_format: dict, sentence: str, tmp_path: Path, trained_adapter):
    with pytest.raises(InputError) as caught:
        save_adapter(trained_adapter(1), tmp_path / "a.safetensors", prompt_format=prompt_format)
    assert str(caught.value) == sentence
    assert not list(tmp_path.iterdir())


def test_shapes_are_read_without_the_arrays(saved: Path, base: NamedBase, trained_adapter, monkeypatch):
    monkeypatch.setattr("aligner_jax.weights.source.Source.read", None)
    shapes = read_shapes(saved, base.config)
    wanted = jax.eval_shape(lambda: trained_adapter(3))
    assert (shapes, shapes.num_params) == (wanted, 3 * 16 + 2 * 4)
    with pytest.raises(InputError, match="d_model 16 against 64"):
        read_shapes(saved, llama_config("stories_260k"))
    save_adapter(trained_adapter(3), saved)
    with pytest.raises(InputError, match="has shape"):
        read_shapes(saved, llama_config("stories_260k"))
    with pytest.raises(InputError, match="does not exist"):
        read_shapes(saved.with_name("absent.safetensors"), base.config)


def test_shapes_of_other_projects_files_are_those_of_their_adapters():
    released, config = GOLDENS / "lit_llama.pth", hf_config(GOLDENS / "models" / "llama3")
    adapter = load_adapter(released)
    assert read_shapes(released, config) == jax.eval_shape(lambda: adapter)
    with pytest.raises(InputError, match="has shape"):
        read_shapes(released, llama_config("stories_260k"))


def test_a_base_of_another_shape_is_refused(saved: Path, base: NamedBase):
    other = NamedBase(llama_config("stories_260k"), "f" * 64)
    sentence = _refusal(saved, other)
    assert "d_model 16 against 64" in sentence
    assert "num_layers 3 against 5" in sentence
    assert "norm_eps" not in sentence


def test_a_base_with_one_changed_weight_is_refused(tmp_path: Path, trained_adapter, config, params: Params):
    path = tmp_path / "adapter.safetensors"
    base = Base(params, config)
    save_adapter(trained_adapter(1), path, base=base)
    load_adapter(path, base=base)
    changed = params.replace(norm_d=params.norm_d.at[3].multiply(1.01))
    assert "same shape with other weights" in _refusal(path, Base(changed, config))


def test_an_adapter_saved_without_a_base_fits_every_base_of_its_shape(tmp_path: Path, trained_adapter, base: NamedBase):
    path = tmp_path / "adapter.safetensors"
    save_adapter(trained_adapter(1), path)
    assert load_adapter(path).num_params == load_adapter(path, base).num_params == 16 + 2 * 4
    assert "has shape" in _refusal(path, NamedBase(llama_config("stories_260k")))


def test_a_fingerprint_counts_even_without_its_configuration(saved: Path, base: NamedBase):
    header, body = _parts(saved)
    del header["__metadata__"]["base_config"]
    _write(saved, header, body)
    load_adapter(saved, base)
    assert "other weights" in _refusal(saved, base._replace(fingerprint="f" * 64))


@pytest.mark.parametrize("length", [0, 4, 30, -1])
def test_truncated_files_are_refused(length: int, saved: Path):
    saved.write_bytes(saved.read_bytes()[:length])
    assert "not a whole safetensors file" in _refusal(saved, None)


def test_a_file_that_cannot_be_read_is_one_sentence(saved: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("aligner_jax.files.content.os.open", fails)
    assert f"{saved} cannot be read: Input/output error" in _refusal(saved, None)


def test_files_that_are_no_adapter_are_refused(saved: Path, base: NamedBase):
    assert "does not exist" in _refusal(saved.with_name("absent.safetensors"), base)
    folder = saved.with_name("folder")
    folder.mkdir()
    assert "no folder of a PEFT adapter" in _refusal(folder, base)
    model = GOLDENS / "models" / "llama" / "model.safetensors"
    assert "not an adapter of this project" in _refusal(model, base)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("format", "peft", "not an adapter of this project"),
        ("method", "pinwheel", "method 'pinwheel', which is not one of"),
        ("format_version", "2", "format version '2', and this release reads up to 1"),
        ("format_version", "²", "format version '²'"),
        ("format_version", "1" * 5000, "format version '111"),
        ("format_version", "01", "format version '01'"),
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
    header, body = _parts(saved)
    header["__metadata__"][field] = value
    _write(saved, header, body)
    assert sentence in _refusal(saved, base)


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
        assert sentence in _refusal(path, base if with_base else None)


def test_numbers_that_are_not_finite_are_refused_without_any_base(tmp_path: Path, trained_adapter):
    adapter, path = trained_adapter(1), tmp_path / "adapter.safetensors"
    save_adapter(jax.tree.map(lambda x: x * jnp.inf, adapter), path)
    assert "not finite" in _refusal(path, None)


def test_options_from_before_others_existed_are_completed_without_any_base(saved: Path):
    header, body = _parts(saved)
    del header["__metadata__"]["base_config"], header["__metadata__"]["base_fingerprint"]
    header["__metadata__"]["options"] = '{"num_tokens": 3, "start_layer": 1}'
    _write(saved, header, body)
    assert load_adapter(saved).options.as_dict() == {
        "num_tokens": 3, "start_layer": 1, "gates": "head", "tokens": "model",
    }  # fmt: skip


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
    header, body = _parts(path)
    header["__metadata__"]["options"] = json.dumps({**adapter.options.as_dict(), **options})
    _write(path, header, body)
    assert sentence in _refusal(path, base if with_base else None)


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("dtype", ["I32", "U32", "F64", "F8_E4M3", "F4", "BOOL", "C64", "I64"])
def test_only_floating_dtypes_are_adapters(dtype: str, with_base: bool, saved: Path, base: NamedBase):
    header, body = _parts(saved)
    bits = {"I32": 32, "U32": 32, "F64": 64, "F8_E4M3": 8, "F4": 4, "BOOL": 8, "C64": 64, "I64": 64}[dtype]
    header["gates_ln"] |= {"dtype": dtype, "shape": [8 * 32 // bits]}
    _write(saved, header, body)
    assert f"tensor gates_ln is stored as {dtype}, which is not one of F32, BF16, F16" in _refusal(
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
    header, body = _parts(saved)
    for changed in (body[:40] + b"\x01" + body[41:], body):
        if changed == body:
            header["__metadata__"]["options"] = header["__metadata__"]["options"].replace("head", "layer")
        _write(saved, header, changed, keep_digest=True)
        for read in (lambda: load_adapter(saved, base), lambda: read_artifact(saved)):
            with pytest.raises(
                InputError, match=r"adapter\.safetensors is damaged: its content is not what its digest"
            ):
                read()


def test_files_of_before_there_were_digests_load():
    config = llama_config("stories_260k")
    base = NamedBase(config)
    old = GOLDENS / "adapters" / "before_digests.safetensors"
    assert "digest" not in _parts(old)[0]["__metadata__"]
    adapter = load_adapter(old, base)
    np.testing.assert_array_equal(adapter.trainable["gates_ln"], np.arange(24).reshape(3, 8) / 8)
    np.testing.assert_array_equal(
        adapter.trainable["tokens_pd"], init_adapter("aligner", config).trainable["tokens_pd"]
    )
    artifact = read_artifact(old)
    assert artifact.prompt_format == PromptFormat("chat", None)
    assert artifact.base == (config, base.fingerprint, None)


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
            assert f"{sentence} " in _refusal(path, None) or f"{sentence} '{name}'" in _refusal(path, None)
    save_adapter(adapter.replace(trainable={**adapter.trainable, "more": adapter.trainable[names[0]]}), path)
    assert "has an unknown tensor 'more'" in _refusal(path, None)


def test_no_token_is_no_adapter(tmp_path: Path, config: LlamaConfig):
    adapter, path = init_adapter("aligner", config, num_tokens=1), tmp_path / "a.safetensors"
    empty = {**adapter.trainable, "tokens_pd": adapter.trainable["tokens_pd"][:0]}
    for num_tokens, sentence in ((0, "num_tokens is 0"), (1, "'tokens_pd' has shape (0, 16)")):
        options = dataclasses.replace(adapter.options, num_tokens=num_tokens)
        save_adapter(adapter.replace(trainable=empty, options=options), path)
        assert sentence in _refusal(path, None)


def test_layers_of_two_arrays_are_the_same(tmp_path: Path, config: LlamaConfig):
    adapter, path = init_adapter("llama_adapter", config, num_tokens=2, start_layer=0), tmp_path / "a.safetensors"
    fewer = {**adapter.trainable, "tokens_lpd": adapter.trainable["tokens_lpd"][1:]}
    save_adapter(adapter.replace(trainable=fewer), path)
    assert "has shape (2, 2, 16), but (3, 2, 16) fits" in _refusal(path, None)


def test_a_path_that_no_file_can_have_is_one_sentence(base: NamedBase):
    for path in ("x" * 5000, "a\0b", "/dev/zero"):
        with pytest.raises(InputError):
            load_adapter(path, base)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved: Path, trained_adapter, base: NamedBase):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            save_adapter(trained_adapter(3, key=9), saved, base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{saved} cannot be written: File too large" in str(caught.value)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
