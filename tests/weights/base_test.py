"""`load_base`: the kinds of path that it takes, and its refusals of others."""

import functools
import re
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
import tokenizers
from gguf_files import converted, write_gguf
from model_folders import CONFIG, draw, meta_params, meta_parts, write_hf, write_meta

from aligner_jax.data.tokenizer import make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.peft import apply
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.sharding import make_mesh, param_shardings
from aligner_jax.weights import base as base_module
from aligner_jax.weights.base import FORMS, Base, base_config, form_of, load_base, unused_model
from aligner_jax.weights.fingerprint import fingerprint
from aligner_jax.weights.form import Form
from aligner_jax.weights.gguf import GGUF
from aligner_jax.weights.hf import HF
from aligner_jax.weights.meta import META
from aligner_jax.weights.orbax import ORBAX
from scripts.lib.tiny_llama import write_tiny_llama

MODELS = places.GOLDENS / "models"
STORIES = places.SHARED / "data" / "models" / "stories260K" / "hf"


def test_a_hugging_face_folder_without_a_tokenizer():
    base = load_base(str(MODELS / "llama"))
    assert base.tokenizer is None
    assert base.config.num_layers == 3
    assert base.params.embed_vd.dtype == jnp.float32


def test_bfloat16():
    base = load_base(MODELS / "llama", dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {jnp.dtype("bfloat16")}


def test_a_base_is_a_pytree_of_its_parameters():
    base = load_base(MODELS / "llama")
    assert jax.tree.leaves(base) == jax.tree.leaves(base.params)
    assert jax.jit(lambda base: base.params.norm_d[: base.config.num_layers])(base).shape == (3,)


@pytest.mark.parametrize(
    ("quantization", "held"), [(None, "bfloat16"), ("int8", "bfloat16 and int8"), ("int4", "bfloat16 and int4")]
)
def test_its_repr_is_one_short_line(tmp_path: Path, quantization: str | None, held: str):
    write_tiny_llama(tmp_path / "m")
    base = load_base(tmp_path / "m", "bfloat16", quantization=quantization)
    count = sum(leaf.size for leaf in jax.tree.leaves(load_base(tmp_path / "m").params))
    assert repr(base) == f"Base(of no published shape, {count:,} parameters in {held}, with its tokenizer)"
    assert repr(base.params) == f"Params({count:,} parameters in {held})"
    assert repr(base.params.layers).startswith("Layers(")
    shardings = param_shardings(base.config, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
    assert re.fullmatch(r"Params\(\d+ leaves of NamedSharding\)", repr(shardings))
    assert repr(base.replace(config=llama_config("smollm2_135m"))).startswith("Base(smollm2_135m, ")


@pytest.mark.skipif(not STORIES.is_dir(), reason="the folder shared/ is not beside the repository")
def test_stories260k():
    base = load_base(STORIES)
    assert sum(leaf.size for leaf in jax.tree.leaves(base)) == 260_032
    assert base.tokenizer.decode(base.tokenizer.encode("Once upon a time")).strip() == "Once upon a time"


def test_a_dtype_is_one_of_three():
    with pytest.raises(InputError, match="dtype 'float64' is not one of float32, bfloat16, float16"):
        load_base(MODELS / "llama", dtype="float64")


@pytest.mark.parametrize("split", [False, True])
def test_float16_is_rounded_to_nearest_and_has_the_fingerprint_of_the_weights(split: bool):
    shardings = functools.partial(param_shardings, mesh=make_mesh()) if split else None
    base, exact = load_base(MODELS / "llama", "float16", shardings=shardings), load_base(MODELS / "llama")
    for half, leaf in zip(jax.tree.leaves(base.params), jax.tree.leaves(exact.params), strict=True):
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, np.asarray(leaf).astype(np.float16))
    assert base.fingerprint == exact.fingerprint
    # These weights are of float32, and of the rounded ones the fingerprint would be another.
    assert fingerprint(base.config, base.params) != exact.fingerprint
    assert base.held_as == "float16"


def test_weights_that_float16_cannot_hold_are_refused_by_name(tmp_path: Path):
    folder = tmp_path / "model"
    tensors = draw()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 65_519  # It rounds to the largest, 65,504.
    write_hf(folder, CONFIG, tensors)
    assert jnp.max(load_base(folder, "float16").params.layers.up_ldf) == 65_504
    shutil.rmtree(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 65_520
    write_hf(folder, CONFIG, tensors)
    for quantization in ("none", "int4"):
        sentence = rf"leaf up_ldf of the base at {folder} holds numbers beyond ±65,504.* load it in float32"
        with pytest.raises(InputError, match=sentence):
            load_base(folder, "float16", quantization=quantization)


def test_weights_that_cannot_be_quantized_are_refused_with_the_path_of_the_base(tmp_path: Path):
    tensors = draw()
    tensors["model.layers.1.mlp.up_proj.weight"][3, :2] = 3e38, -3e38
    folder = write_hf(tmp_path / "model", CONFIG, tensors)
    sentence = rf"leaf up_ldf of the base at {folder} holds numbers .* too large to be quantized"
    with pytest.raises(InputError, match=sentence):
        load_base(folder, quantization="int4")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("files", "path", "sentence"),
    [
        (["m/params.json", "m/consolidated.00.pth"], "m", "m/params.json:1 is not JSON"),
        (["m/_METADATA"], "m", "m is an Orbax checkpoint, but not of a base: aligner_jax.convert writes"),
        (["m/b.gguf"], "m", "m is a folder; give the file itself, such as"),
        (["m/model.safetensors"], "m", "m has no config.json"),
        (["m.bin"], "m.bin", "m.bin is not a .gguf file"),
        ([], "m.gguf", "there is no base model at"),
        ([], "some/where/model", "there is no base model at"),
    ],
)
def test_what_is_no_model(tmp_path, files, path, sentence):
    for file in files:
        touch(tmp_path / file)
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        load_base(tmp_path / path)
    assert str(tmp_path / path) in str(error.value)


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(InputError, match="the path of the base model is empty"):
        load_base("")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", "the path of the base model is empty"),
        (" ", "the path of the base model is empty"),
        ("a\0b", r"a\x00b cannot be read: embedded null byte"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("/".join(["y" * 200] * 30), "cannot be read: File name too long"),
        ("o" * 3000 + "/name", "cannot be read: File name too long"),
        ("\udcff", r"there is no base model at \xff;"),
        ("\x1b[2Jname", r"there is no base model at \x1b[2Jname;"),
        ("ö/ñ", "there is no base model at ö/ñ;"),
        ("~nobody-of-this-name/x", "there is no base model at ~nobody-of-this-name/x"),
        ("/dev/zero", "/dev/zero is a device or a pipe, not a base model"),
        (5, "the path of the base model is of type int"),
        (None, "the path of the base model is of type NoneType"),
        (b"abc", "the path of the base model is of type bytes"),
    ],
    ids=lambda value: str(value)[:12].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("read", [load_base, base_config])
def test_what_is_no_path(read, path, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        read(path)
    # A configuration alone never comes from a hub, so its refusal is shorter.
    assert sentence.rstrip(";") in str(caught.value)
    assert len(str(caught.value)) <= 400


def test_a_folder_that_may_not_be_entered(monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.stat", closed)
    with pytest.raises(InputError, match="closed/base cannot be read: Permission denied"):
        load_base("closed/base")


def test_a_base_knows_its_tokenizer_and_refuses_what_it_has_no_embedding_of(tmp_path):
    write_tiny_llama(tmp_path / "base")
    base = load_base(tmp_path / "base")
    size = base.config.vocab_size
    assert base.tokenizer.num_embeddings == size
    assert base.replace(params=base.params).tokenizer is base.tokenizer
    assert jax.tree.map(lambda x: x, base).tokenizer is base.tokenizer
    # Published models may have more tokens than embeddings; such a tokenizer works until one of these is used.
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    other.add_special_tokens(["<|extra|>"])
    grown = make_tokenizer(HFBackend(other), bos_id=0, eos_id=size, pad_id=size, add_bos=False)
    assert grown.encode("Hi<|extra|>")[-1] == size
    met = Base(base.params, base.config, grown)
    assert met.tokenizer.encode("Hi") == base.tokenizer.encode("Hi")
    for encode in (lambda: met.tokenizer.encode("Hi<|extra|>"), lambda: met.tokenizer.encode("Hi", eos=True)):
        with pytest.raises(
            InputError,
            match=rf"the text has the token {size} \('<\|extra\|>'\), but the base has embeddings of {size} tokens "
            rf"only and its tokenizer has {size + 1}: ",
        ):
            encode()
    for strange in (-1, size):
        with pytest.raises(InputError, match=f"has the token {strange}"):
            met.tokenizer.check_ids([0, strange])
        with pytest.raises(InputError, match=f"the array of tokens has the token {strange}"):
            apply(base.params, None, jnp.asarray([[0, strange]]), config=base.config)


def hub(monkeypatch: pytest.MonkeyPatch, snapshot_download) -> None:
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(MODELS / "sharded", tmp_path / "cache")
    asked = []
    hub(monkeypatch, lambda name, allow_patterns: asked.append((name, allow_patterns)) or str(copy))
    assert load_base("org/name-1.1B").config.vocab_size == 64
    assert asked[0][0] == "org/name-1.1B"
    assert {"*.json", "*.safetensors", "tokenizer.model"} <= set(asked[0][1])


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    def unreachable(name, allow_patterns):
        raise ConnectionError("no route\nto host")

    monkeypatch.chdir(tmp_path)
    hub(monkeypatch, unreachable)
    with pytest.raises(
        InputError, match=r"no base model at org/name here, and no hub .* \(ConnectionError: no route\)"
    ):
        load_base("org/name")


def test_no_hub_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="needs the package huggingface_hub"):
        load_base("org/name")


def test_a_base_of_another_architecture_than_named_is_told():
    config = BaseConfig(path="here", model="stories_260k")
    assert unused_model(config, llama_config("stories_260k")) == ""
    assert unused_model(BaseConfig(path="here"), llama_config("smollm2_135m")) == ""
    assert unused_model(config, llama_config("smollm2_135m")) == (
        "config.base.model stories_260k is not used: its vocab_size is 512, and that of the weights at here is 49152"
    )
    with pytest.raises(InputError, match="stories_26k"):
        unused_model(BaseConfig(path="here", model="stories_26k"), llama_config("smollm2_135m"))


@pytest.fixture(scope="module")
def of_each_form(hf_base: Path, orbax_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in every format, by the format's description."""
    folder, tensors = tmp_path_factory.mktemp("forms"), draw()
    one = write_hf(folder / "one", CONFIG, tensors)
    found = {
        HF: hf_base,
        GGUF: write_gguf(folder / "model.gguf", *converted(one)),
        META: write_meta(folder / "meta", meta_params(CONFIG), meta_parts(CONFIG, tensors)),
        ORBAX: orbax_base,
    }
    return {form.description: path for form, path in found.items()}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.description)
def test_a_form_is_told_from_the_others_and_says_the_same_model(form: Form, of_each_form: dict[str, Path]):
    assert [name for name, path in of_each_form.items() if form.detect(path)] == [form.description]
    path = of_each_form[form.description]
    assert form_of(path) is form
    config, params = form.load(path)
    assert config == form.config(path) == base_config(path)
    assert form.open is None or form.open(path).config == config
    np.testing.assert_array_equal(params.embed_vd, HF.load(of_each_form[HF.description])[1].embed_vd)
    assert load_base(path).tokenizer is form.tokenizer(path) is None


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.description)
def test_a_form_loads_nothing_in_float16_that_is_not_exact(form: Form, of_each_form: dict[str, Path]):
    with pytest.raises(InputError, match="holds numbers that float16 cannot hold exactly; load it in float32"):
        form.load(of_each_form[form.description], "float16")


def test_another_form_is_a_line_of_the_table(tmp_path: Path, of_each_form: dict[str, Path], monkeypatch):
    (tmp_path / "weights.toy").write_text(str(of_each_form[HF.description]))

    def load(path: Path, dtype: str = "float32", **options):
        return HF.load(Path(path.read_text()), dtype, **options)

    toy = Form(
        description="a .toy file", detect=lambda path: path.suffix == ".toy",
        config=lambda path: HF.config(Path(path.read_text())), load=load, open=None, vocabulary=lambda _: None,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"weights\.toy is not a \.gguf file; give "):
        load_base(tmp_path / "weights.toy")
    monkeypatch.setattr(base_module, "FORMS", (*FORMS, toy))
    assert load_base(tmp_path / "weights.toy", "bfloat16").params.embed_vd.dtype == jnp.bfloat16
    assert base_config(tmp_path / "weights.toy").num_layers == CONFIG.num_layers
