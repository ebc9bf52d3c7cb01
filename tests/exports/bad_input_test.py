"""Exports of wrong or damaged input: one clear sentence, no traceback, and nothing left behind."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import adapter_files
import gguf_files
import jax.numpy as jnp
import numpy as np
import places
import pytest
from command_runs import Ended, run_command

import aligner_jax as aj

LLAMA = places.GOLDENS / "models" / "llama"
FORMS = ("hf", "gguf", "orbax", "peft")


def saved(path: Path, base: aj.Base, factor: float = 1.0, **options) -> Path:
    fresh = aj.init_adapter("aligner", base.config, key=1, **{"start_layer": 1, **options})
    rng = np.random.default_rng(2)
    arrays = {name: jnp.asarray(0.15 * rng.normal(size=x.shape), jnp.float32) for name, x in fresh.trainable.items()}
    adapter = fresh.replace(trainable={name: x * factor for name, x in arrays.items()})
    aj.save_adapter(adapter, path, base=base, canary=False)
    return path


@pytest.fixture(scope="module")
def gguf_base(tmp_path_factory) -> Path:
    return gguf_files.write_gguf(tmp_path_factory.mktemp("gguf") / "base.gguf", *gguf_files.converted(LLAMA))


@pytest.fixture(scope="module")
def made(gguf_base, tmp_path_factory) -> Callable[[str], Path]:
    """Returns the path of an input by its name."""
    folder = tmp_path_factory.mktemp("made")
    base = aj.load_base(LLAMA)
    one = saved(folder / "one.safetensors", base)
    saved(folder / "ten.safetensors", base, num_tokens=10)
    saved(folder / "huge.safetensors", base, factor=1e25)
    aj.save_adapter(aj.init_adapter("lora", base.config), folder / "lora.safetensors", base=base, canary=False)
    header, data = adapter_files.parts(one)

    adapter_files.write(folder / "nan.safetensors", header, np.float32("nan").tobytes() + data[4:])
    (folder / "empty").mkdir()
    (folder / "text.gguf").write_text("no model")
    for name in ("cut", "gptq", "other"):
        shutil.copytree(LLAMA, folder / name)
    weights = (LLAMA / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[:-100])
    # The last but one byte of a float32 is not rounded away in the fingerprint's bfloat16.
    (folder / "other" / "model.safetensors").write_bytes(weights[:-2] + bytes([weights[-2] ^ 1]) + weights[-1:])
    config = json.loads((LLAMA / "config.json").read_text())
    (folder / "gptq" / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    fields, tensors = gguf_files.converted(LLAMA)
    bias = {"blk.1.attn_output.bias": np.zeros(base.config.d_model, np.float32)}
    gguf_files.write_gguf(folder / "partly.gguf", fields, tensors | bias)
    return lambda name: {"LLAMA": LLAMA, "gguf": gguf_base}.get(name, folder / name)


def export(made: Callable[[str], Path], out: Path, **changes: str) -> Ended:
    given = {"base": "LLAMA", "adapter": "one.safetensors", "to": "hf", **changes}
    paths = {name: str(made(value)) if name in ("base", "adapter") else value for name, value in given.items()}
    return run_command("export", *(f"--{name}={value}" for name, value in {"out": str(out), **paths}.items()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": "other"}, "was trained on a base of the same shape with other weights"),
        ({"base": "cut"}, "is not a whole safetensors file"),
        ({"base": "empty"}, "empty has no config.json"),
        ({"base": "none"}, "there is no base model at"),
        ({"base": "text.gguf"}, "is not a GGUF file"),
        ({"base": "one.safetensors"}, "is not a .gguf file; give a Hugging Face folder"),
        ({"base": "gptq"}, "quantization_config is set, but only unquantized safetensors can be read"),
        ({"base": "partly.gguf"}, "tensor blk.1.attn_output.bias has no place in this model"),
        ({"adapter": "nan.safetensors"}, "'gates_ln' holds numbers that are not finite"),
        ({"adapter": "empty"}, "is no folder of a PEFT adapter"),
        ({"adapter": "LLAMA"}, "llama is no adapter: it has the form of a base model, a Hugging Face folder"),
        ({"adapter": "gguf"}, "base.gguf is no adapter: it has the form of a base model, a .gguf file"),
        ({"adapter": "lora.safetensors", "bias": "v"}, "--bias=v has no effect on these adapters"),
        ({"adapter": "none"}, "none does not exist"),
        ({"to": "gguf", "base": "gguf", "dtype": "q4_0"}, "--dtype=q4_0: value should be one of"),
        ({"dtype": "q8_0"}, "--dtype=q8_0 is a type of GGUF files, and --to=hf has none"),
        ({"strength": "x"}, "--strength=x: should be a number"),
        ({"strength": "inf"}, "--strength=inf is not a finite number"),
        ({"nearest": "true", "data": "x", "adapter": "ten.safetensors"}, "name it: --template=alpaca"),
        ({"nearest": "true", "data": "x", "template": "chat"}, "the base has no tokenizer"),
        ({"nearest": "true", "data": "x", "rows": "0"}, "--rows=0: 0 is not a positive integer"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_sentence(made, changes, sentence, tmp_path):
    _refused(export(made, tmp_path / "out", **changes), sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_several_tokens_are_offered_the_nearest_bias(made, form, tmp_path):
    ended = export(made, tmp_path / "out", adapter="ten.safetensors", base="gguf", to=form)
    if form == "peft":
        _refused(ended, "cannot be written for PEFT")
    else:
        _refused(ended, "the adapter has 10 prefix tokens")
        assert "add --nearest --data=FILE" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_an_effect_beyond_float32_is_refused(made, form, tmp_path):
    ended = export(made, tmp_path / "out", adapter="huge.safetensors", base="gguf", to=form)
    _refused(ended, "o_bias_ld in layer 1 holds numbers beyond float32: the adapter's numbers, or its strength")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", [*FORMS, "adapter"])
def test_what_is_there_is_not_overwritten(made, form, tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")
    full.mkdir()
    (full / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    base = {} if form == "adapter" else {"base": "gguf"}
    for out, sentence in [
        (file, "is a file, but a folder is to be written there"),
        (full, "is a folder with other things in it; name a new one"),
        (file / "out", f"cannot be written: {file} is a file, not a folder"),
    ]:
        _refused(export(made, out, to=form, **base), sentence)
    assert sorted(tmp_path.rglob("*")) == before
    assert file.read_text() == "mine"


@pytest.mark.parametrize(("form", "most"), [("hf", 16384), ("gguf", 16384), ("peft", 128), ("adapter", 128)])
def test_a_disk_that_is_full_half_way_leaves_nothing(made, form, most, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that outgrows its limit fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        ended = export(made, tmp_path / "out", to=form, base="gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _refused(ended, "out cannot be written: File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("form", "file"), [("hf", ""), ("gguf", "model.gguf"), ("orbax", "")])
def test_strength_0_is_the_base_bit_for_bit(made, form, file, tmp_path):
    ended = export(made, tmp_path / "out", to=form, base="gguf", strength="0")
    assert (ended.status, ended.err) == (0, "")
    tokens_bt = jnp.arange(9, dtype=jnp.int32)[None]
    found, expected = (
        np.asarray(aj.apply(base.params, None, tokens_bt, config=base.config))
        for base in map(aj.load_base, (tmp_path / "out" / file, made("gguf")))
    )
    np.testing.assert_array_equal(found, expected)


def _refused(ended: Ended, sentence: str) -> None:
    assert (ended.status, ended.out) == (1, ""), ended
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert len(ended.err) <= 420
