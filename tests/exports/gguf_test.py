"""GGUF files with folded adapters: what changes is the adapter's, and every other byte is the base's."""

import dataclasses
import os
import shutil
from pathlib import Path

import gguf
import gguf_files
import jax.numpy as jnp
import numpy as np
import places
import pytest
import small_tokenizers
from command_runs import Ended, run_command
from gguf.constants import GGMLQuantizationType
from tokenizers import pre_tokenizers

import aligner_jax as aj
from aligner_jax.data.gguf_metadata import read_gguf_header
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.data.tokenizer_gguf_write import gguf_vocabulary
from aligner_jax.exports.gguf import export_gguf
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import open_stored
from aligner_jax.weights.gguf import gguf_sources
from aligner_jax.weights.gguf_fields import encoded_fields

LLAMA = places.GOLDENS / "models" / "llama"
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 32, (2, 9)), jnp.int32)
FIELDS = {"general.name": "of a test", "other.number": 7, "tokenizer.ggml.tokens": ["a", "ü"], "general.alignment": 64}


def gguf_base(path: Path, kinds: dict[str, np.dtype] | None = None, architecture: str = "llama", **added) -> Path:
    """Writes the golden LLaMA as a GGUF file; `kinds` maps a part of a tensor's name to the dtype of such tensors."""
    fields, tensors = gguf_files.converted(LLAMA)
    for name, tensor in tensors.items():
        for part, dtype in (kinds or {}).items():
            if part in name:
                tensors[name] = tensor.astype(dtype)
    fields = fields | {key: value for key, value in FIELDS.items() if key != "general.alignment"}
    return gguf_files.write_gguf(path, fields, tensors | added, architecture, alignment=FIELDS["general.alignment"])


def saved(path: Path, base: aj.Base, method: str = "aligner", **options) -> tuple[aj.Adapter, Path]:
    adapter = aj.init_adapter(method, base.config, key=1, **options)
    rng = np.random.default_rng(2)
    arrays = {name: jnp.asarray(0.15 * rng.normal(size=x.shape), jnp.float32) for name, x in adapter.trainable.items()}
    adapter = adapter.replace(trainable=arrays)
    aj.save_adapter(adapter, path, base=base)
    return adapter, path


def exported(base: Path, adapter: Path, out: Path, *flags: str) -> Ended:
    return run_command("export", f"--base={base}", f"--adapter={adapter}", "--to=gguf", f"--out={out}", *flags)


def contents(path: Path) -> tuple[bytes, dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Returns the bytes of the metadata, and type, shape and bytes of every tensor."""
    header = read_gguf_header(path)
    sources = gguf_sources(path, header)
    metadata = path.read_bytes()[16 : header.table_offset]
    return metadata, {s.name: (s.encoding, s.shape, s.read().tobytes()) for s in sources}


def logits(base: aj.Base, adapter: aj.Adapter | None = None) -> np.ndarray:
    return np.asarray(aj.apply(base.params, adapter, TOKENS, config=base.config))


def test_a_bias_is_added_and_every_other_byte_is_the_bases(tmp_path):
    path = gguf_base(tmp_path / "base.gguf", {"ffn_": np.dtype(np.float16)})
    base = aj.load_base(path)
    adapter, file = saved(tmp_path / "a.safetensors", base, start_layer=1)
    ended = exported(path, file, tmp_path / "out")
    assert (ended.status, ended.err) == (0, "")
    out = tmp_path / "out" / "model.gguf"
    (metadata, before), (metadata_after, after) = contents(path), contents(out)
    assert metadata_after == metadata
    assert b"tokenizer.ggml.tokens" in metadata
    assert {name: after[name] for name in before} == before
    assert list(after) == [*before, *(f"blk.{i}.attn_output.bias" for i in range(base.config.num_layers))]
    biases = [np.frombuffer(after[name][2], np.float32) for name in list(after)[len(before) :]]
    token_d, gates_ln = (np.asarray(adapter.trainable[name]) for name in ("tokens_pd", "gates_ln"))
    layers = base.params.layers
    # The golden model has as many kv heads as query heads.
    v_lnh = np.einsum("d,ldnh->lnh", token_d[0], np.asarray(layers.v_ldkh)[1:])
    expected = np.einsum("ln,lnh,lnhd->ld", gates_ln, v_lnh, np.asarray(layers.o_lnhd)[1:])
    assert not biases[0].any()
    np.testing.assert_allclose(biases[1:], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits(aj.load_base(out)), logits(base, adapter), atol=2e-5)
    assert [tensor.name for tensor in gguf.GGUFReader(out).tensors] == list(after)
    assert "the other" in ended.out
    assert "llama.cpp" in (tmp_path / "out" / "README.md").read_text()


def test_a_bias_is_added_to_that_of_the_base(tmp_path):
    rng = np.random.default_rng(4)
    layers, width = aj.load_base(LLAMA).config.num_layers, aj.load_base(LLAMA).config.d_model
    biases = {f"blk.{i}.attn_output.bias": rng.standard_normal(width, np.float32) for i in range(layers)}
    with_biases, without = gguf_base(tmp_path / "with.gguf", **biases), gguf_base(tmp_path / "without.gguf")
    for path in (with_biases, without):
        base = aj.load_base(path)
        _, file = saved(path.with_suffix(".safetensors"), base, start_layer=0)
        assert exported(path, file, tmp_path / path.stem).status == 0
    _, after = contents(tmp_path / "with" / "model.gguf")
    _, alone = contents(tmp_path / "without" / "model.gguf")
    for name, bias in biases.items():
        found, added = (np.frombuffer(tensors[name][2], np.float32) for tensors in (after, alone))
        assert np.abs(added).max() > 0.01
        np.testing.assert_allclose(found, bias + added, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_bias_of_the_values(architecture, tmp_path):
    path = gguf_base(tmp_path / "base.gguf", architecture=architecture)
    base = aj.load_base(path)
    adapter, file = saved(tmp_path / "a.safetensors", base, start_layer=1, gates="kv_head")
    ended = exported(path, file, tmp_path / "out", "--bias=v")
    assert ended.status == 0
    for text in (ended.out, (tmp_path / "out" / "README.md").read_text()):
        assert f"src/models/{architecture}.cpp" in text
        assert ("no scaling of the rotary embedding" in text) == (architecture == "qwen2")
    (_, before), (_, after) = contents(path), contents(tmp_path / "out" / "model.gguf")
    assert {name.split(".", 2)[2] for name in after.keys() - before.keys()} == {
        "attn_q.bias", "attn_k.bias", "attn_v.bias"
    }  # fmt: skip
    again = aj.load_base(tmp_path / "out" / "model.gguf")
    np.testing.assert_allclose(logits(again), logits(base, adapter), atol=2e-5)


@pytest.mark.parametrize(("dtype", "kind", "atol"), [
    ("stored", "F16", 5e-3), ("float32", "F32", 2e-5), ("float16", "F16", 5e-3), ("bfloat16", "BF16", 5e-2),
    ("q8_0", "Q8_0", 1e-1),
])  # fmt: skip
def test_only_the_matrices_of_a_lora_are_replaced(dtype, kind, atol, tmp_path):
    path = gguf_base(tmp_path / "base.gguf", {"attn_q": np.dtype(np.float16), "down": np.dtype(np.float16)})
    base = aj.load_base(path)
    adapter, file = saved(tmp_path / "a.safetensors", base, "lora", rank=2, targets=("q", "down"))
    ended = exported(path, file, tmp_path / "out", f"--dtype={dtype}")
    assert (ended.status, ended.err) == (0, "")
    (metadata, before), (metadata_after, after) = contents(path), contents(tmp_path / "out" / "model.gguf")
    assert metadata_after == metadata
    assert list(after) == list(before)
    changed = {name for name in before if after[name] != before[name]}
    layers = range(base.config.num_layers)
    assert changed == {f"blk.{i}.{name}.weight" for i in layers for name in ("attn_q", "ffn_down")}
    assert {after[f"blk.{i}.ffn_down.weight"][0] for i in layers} == {kind}
    # Blocks of 32 do not divide the 16 columns of the queries.
    assert {after[f"blk.{i}.attn_q.weight"][0] for i in layers} == {"F16" if dtype == "q8_0" else kind}
    again = aj.load_base(tmp_path / "out" / "model.gguf")
    np.testing.assert_allclose(logits(again), logits(base, adapter), atol=atol)


def test_a_quantized_type_that_is_not_written_becomes_float16(tmp_path):
    _, tensors = gguf_files.converted(LLAMA)
    name = "blk.1.ffn_down.weight"
    blocks = gguf.quantize(tensors[name], GGMLQuantizationType.Q4_0)
    path = gguf_base(tmp_path / "base.gguf", **{name: (blocks, GGMLQuantizationType.Q4_0)})
    base = aj.load_base(path)
    _, file = saved(tmp_path / "a.safetensors", base, "lora", rank=2, targets=("down",))
    assert exported(path, file, tmp_path / "out").status == 0
    (_, before), (_, after) = contents(path), contents(tmp_path / "out" / "model.gguf")
    assert (before[name][0], after[name][0]) == ("Q4_0", "F16")


def test_a_value_beyond_float16_is_refused(tmp_path):
    path = gguf_base(tmp_path / "base.gguf")
    base = aj.load_base(path)
    adapter, _ = saved(tmp_path / "a.safetensors", base, "lora", rank=2, targets=("q",))
    large = adapter.replace(trainable={name: x * 1e4 for name, x in adapter.trainable.items()})
    aj.save_adapter(large, tmp_path / "large.safetensors", base=base)
    ended = exported(path, tmp_path / "large.safetensors", tmp_path / "out", "--dtype=float16")
    assert ended.status != 0
    assert "tensor blk.0.attn_q.weight holds numbers that F16 cannot hold" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_bias_that_llama_cpp_refuses(tmp_path):
    path = gguf_base(tmp_path / "base.gguf", architecture="qwen2")
    _, file = saved(tmp_path / "a.safetensors", aj.load_base(path), start_layer=1)
    ended = exported(path, file, tmp_path / "out")
    assert ended.status != 0
    assert "qwen2, which has no bias of the output projection" in ended.err
    assert not (tmp_path / "out").exists()


def test_more_tokens_are_refused(tmp_path):
    path = gguf_base(tmp_path / "base.gguf")
    _, file = saved(tmp_path / "a.safetensors", aj.load_base(path), num_tokens=3)
    ended = exported(path, file, tmp_path / "out")
    assert ended.status != 0
    assert "3 prefix tokens" in ended.err


def whole(base: Path, folder: Path, dtype: str) -> tuple[Path, list[str]]:
    """Writes a base of another form as a GGUF file."""
    folder.mkdir()
    sentences = export_gguf(Job(open_stored(str(base)), (), "o", dtype), folder)
    return folder / "model.gguf", sentences


@pytest.mark.parametrize(
    ("model", "dtype", "kind"),
    [("llama", "float32", "F32"), ("bfloat16", "stored", "BF16"), ("llama3", "float32", "F32")],
)
def test_a_model_of_another_form_keeps_its_fingerprint(model, dtype, kind, tmp_path):
    base = LLAMA.parent / model
    path, _ = whole(base, tmp_path / "out", dtype)
    again = open_stored(str(path))
    assert again.config == open_stored(str(base)).config
    assert again.fingerprint == open_stored(str(base)).fingerprint
    _, tensors = contents(path)
    assert {kind} == {tensor[0] for tensor in tensors.values() if len(tensor[1]) > 1}
    assert {"F32"} == {tensor[0] for tensor in tensors.values() if len(tensor[1]) == 1}
    assert ("rope_freqs.weight" in tensors) == (model == "llama3")
    fields = gguf.GGUFReader(path).fields
    assert fields["general.file_type"].contents() == {"F32": 0, "BF16": 32}[kind]


def test_the_tensors_are_those_of_llama_cpps_converter(tmp_path):
    path, _ = whole(LLAMA, tmp_path / "out", "float32")
    metadata, expected = gguf_files.converted(LLAMA)
    _, tensors = contents(path)
    assert {name: x.tobytes() for name, x in expected.items()} == {name: x[2] for name, x in tensors.items()}
    fields = read_gguf_header(path).fields
    for key, value in metadata.items():
        assert fields[f"llama.{key}"] == pytest.approx(value, rel=1e-6), key


def test_adapter_and_tokenizer_over_another_form(tiny_model, tmp_path):
    base = aj.load_base(tiny_model)
    adapter, file = saved(tmp_path / "a.safetensors", base, start_layer=1)
    ended = exported(tiny_model, file, tmp_path / "out")
    assert (ended.status, ended.err) == (0, "")
    again = aj.load_base(tmp_path / "out" / "model.gguf")
    np.testing.assert_allclose(logits(again), logits(base, adapter), atol=1e-4)
    text = "Hello there, it's 1984!\n<|im_end|>\n  ½ é"
    assert again.tokenizer.encode(text) == base.tokenizer.encode(text)
    for name in ("bos_id", "eos_id", "pad_id", "add_bos", "stop_ids", "chat_template"):
        assert getattr(again.tokenizer, name) == getattr(base.tokenizer, name), name


def test_quantized_matrices_of_another_form(tiny_model, tmp_path):
    (path, _), (exact, _) = (whole(tiny_model, tmp_path / dtype, dtype) for dtype in ("q8_0", "float32"))
    (_, tensors), (_, expected) = contents(path), contents(exact)
    for name, (kind, shape, content) in tensors.items():
        numbers = np.frombuffer(expected[name][2], np.float32).reshape(shape)
        # Blocks of 32 do not divide all rows.
        wanted = "F32" if len(shape) == 1 else "F16" if shape[-1] % 32 else "Q8_0"
        assert kind == wanted, name
        assert content == gguf.quantize(numbers, GGMLQuantizationType[wanted]).tobytes(), name
    assert any(kind == "Q8_0" for kind, _, _ in tensors.values())


def test_a_folder_may_have_any_name(tiny_model, tmp_path):
    base = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(tiny_model, base)
    path, _ = whole(base, tmp_path / "out", "float32")
    assert read_gguf_header(path).fields["general.name"] == "caf?"


def test_the_id_of_no_token_is_left_out(tiny_model, tmp_path):
    path, _ = whole(tiny_model, tmp_path / "out", "float32")
    fields = read_gguf_header(path).fields
    with pytest.raises(aj.InputError, match="padding_token_id is -1, beyond the range of its type in a GGUF file"):
        encoded_fields(fields | {"tokenizer.ggml.padding_token_id": -1})
    with pytest.raises(aj.InputError, match="chat_template holds a text that is no UTF-8"):
        encoded_fields(fields | {"tokenizer.chat_template": "\ud800"})
    signed = gguf.GGUFWriter(tmp_path / "tokenizer.gguf", "llama")
    signed.add_int32("tokenizer.ggml.padding_token_id", -1)
    signed.add_uint32("tokenizer.ggml.bos_token_id", 1)
    signed.write_header_to_file()
    signed.write_kv_data_to_file()
    signed.close()
    vocabulary, _ = gguf_vocabulary(aj.load_base(tiny_model).tokenizer, tmp_path, 512)
    assert vocabulary == {"tokenizer.ggml.bos_token_id": 1}


def test_a_sentencepiece_vocabulary(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small_tokenizers.train_sentencepiece(remove_extra_whitespaces=False))
    tokenizer = load_tokenizer(path)
    fields, sentences = gguf_vocabulary(tokenizer, path, 410)
    assert sentences == []
    expected = read_gguf_header(
        small_tokenizers.write_sentencepiece_gguf(tmp_path / "expected.gguf", path.read_bytes())
    ).fields
    for name in ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id"):
        found = fields[f"tokenizer.ggml.{name}"]
        cut = found[:400] if isinstance(found, list | np.ndarray) else found
        np.testing.assert_array_equal(cut, expected[f"tokenizer.ggml.{name}"])
    assert fields["tokenizer.ggml.tokens"][400:] == [f"[PAD{i}]" for i in range(400, 410)]
    with pytest.raises(aj.InputError, match="400 tokens, but the model's embedding 300 rows"):
        gguf_vocabulary(tokenizer, path, 300)


def test_end_tokens_that_a_file_cannot_name_are_told(tmp_path):
    path = tmp_path / "tokenizer.json"
    small_tokenizers.train_byte_level().save(str(path))
    tokenizer = dataclasses.replace(load_tokenizer(path), eos_id=None, stop_ids=frozenset({2, 20, 21, 22, 23}))
    fields, sentences = gguf_vocabulary(tokenizer, path, 400)
    assert (fields["tokenizer.ggml.eot_token_id"], fields["tokenizer.ggml.eom_token_id"]) == (20, 21)
    tokens = [tokenizer.backend.token(i) for i in (11, 22, 23)]
    assert [sentence.split(": ", 1)[1] for sentence in sentences] == [
        f"it has no end token, so llama.cpp takes token 11, {tokens[0]!r}, for one",
        f"llama.cpp does not end an answer at {tokens[1]!r}, {tokens[2]!r}, since its files name few end tokens",
    ]


def test_unknown_vocabularies_are_refused(tmp_path):
    tokenizer = small_tokenizers.train_byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(aj.InputError, match="its pre-tokenizer is none of those of llama"):
        gguf_vocabulary(load_tokenizer(tmp_path / "tokenizer.json"), tmp_path / "tokenizer.json", 400)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(small_tokenizers.train_sentencepiece(remove_extra_whitespaces=True))
    with pytest.raises(aj.InputError, match="normalizes texts"):
        gguf_vocabulary(load_tokenizer(path), path, 400)
