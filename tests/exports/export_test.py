"""The command that writes adapters for other engines: what it writes equals base and adapter, or it is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf_files
import jax.numpy as jnp
import numpy as np
import places
import pytest
import tokenizers
from command_runs import Ended, run_command
from safetensors.numpy import load_file, save_file

import aligner_jax as aj
from aligner_jax.errors import InputError
from aligner_jax.exports.hf import export_hf
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import open_stored
from aligner_jax.peft import with_strength
from aligner_jax.weights.safetensors_header import safetensors_sources

MODELS = places.GOLDENS / "models"
LLAMA, BFLOAT16 = MODELS / "llama", MODELS / "bfloat16"
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 32, (2, 9)), jnp.int32)


def trained(method: str, base: aj.Base, **options) -> aj.Adapter:
    adapter = aj.init_adapter(method, base.config, key=1, **options)
    rng = np.random.default_rng(2)
    arrays = {name: jnp.asarray(0.15 * rng.normal(size=x.shape), jnp.float32) for name, x in adapter.trainable.items()}
    return adapter.replace(trainable=arrays)


def saved(path: Path, base: aj.Base, method: str = "aligner", **options) -> tuple[aj.Adapter, Path]:
    adapter = trained(method, base, **options)
    aj.save_adapter(adapter, path, base=base)
    return adapter, path


def export(*arguments: str) -> Ended:
    return run_command("export", *arguments)


def logits(base: aj.Base, adapter: aj.Adapter | list[aj.Adapter] | None = None) -> np.ndarray:
    return np.asarray(aj.apply(base.params, adapter, TOKENS, config=base.config))


@pytest.mark.parametrize(
    ("method", "options", "flags", "architecture"),
    [
        ("aligner", {"start_layer": 1}, [], "LlamaForCausalLM"),
        ("aligner", {"start_layer": 1, "gates": "kv_head"}, ["--bias=v"], "Qwen2ForCausalLM"),
        ("lora", {"rank": 2}, [], "LlamaForCausalLM"),
        ("bias", {"start_layer": 0}, [], "LlamaForCausalLM"),
        ("full", {}, [], "LlamaForCausalLM"),
    ],
    ids=["o", "v", "lora", "bias", "full"],
)
def test_the_folder_has_the_adapters_logits(tmp_path, method, options, flags, architecture):
    base = aj.load_base(LLAMA)
    adapter, file = saved(tmp_path / "a.safetensors", base, method, **options)
    out = tmp_path / "new" / "out"
    ended = export(f"--base={LLAMA}", f"--adapter={file}", "--to=hf", f"--out={out}", *flags)
    assert (ended.status, ended.err) == (0, "")
    assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
    expected = logits(base, adapter)
    assert np.abs(expected - logits(base)).max() > 1e-3
    np.testing.assert_allclose(logits(aj.load_base(out)), expected, atol=2e-5)
    lines = ended.out.splitlines()
    assert lines[0] == str(adapter)
    assert lines[-1] == f"written to {out}"
    (line,) = [line for line in lines if line.startswith("largest difference")]
    assert float(line.split(": ")[1].split()[0]) < 2e-5


def test_the_printed_difference_is_that_of_the_logits(tmp_path):
    base = aj.load_base(BFLOAT16)
    adapter, file = saved(tmp_path / "a.safetensors", base, "full")
    ended = export(f"--base={BFLOAT16}", f"--adapter={file}", "--to=orbax", f"--out={tmp_path / 'out'}")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, base.config.vocab_size, 16), jnp.int32)[None]
    again = aj.load_base(tmp_path / "out")
    expected = aj.apply(base.params, adapter, tokens, config=base.config)
    difference = np.abs(expected - aj.apply(again.params, None, tokens, config=again.config)).max()
    assert difference > 1e-4
    (line,) = [line for line in ended.out.splitlines() if line.startswith("largest difference")]
    assert float(line.split(": ")[1].split()[0]) == pytest.approx(difference, rel=0.06)


def test_every_other_tensor_has_the_bytes_of_the_base(tmp_path):
    base = aj.load_base(BFLOAT16)
    _, file = saved(tmp_path / "a.safetensors", base, start_layer=1)
    out = tmp_path / "out"
    ended = export(f"--base={BFLOAT16}", f"--adapter={file}", "--to=hf", f"--out={out}")
    before, after = (
        {source.name: source.read().tobytes() for source in safetensors_sources(folder / "model.safetensors")}
        for folder in (BFLOAT16, out)
    )
    assert {name: after[name] for name in before} == before
    added = after.keys() - before.keys()
    layers = base.config.num_layers
    assert {name.split(".")[-2] for name in added} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(added) == 4 * layers
    changed = {name for name in added if any(after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(1, layers)}
    assert f"added: self_attn.o_proj.bias of layers 1 to {layers - 1}" in ended.out
    assert f"{len(changed)} tensor" in ended.out


def test_tokenizer_template_and_token_ids_are_kept(tiny_model, tmp_path):
    base = aj.load_base(tiny_model)
    _, file = saved(tmp_path / "a.safetensors", base)
    out = tmp_path / "out"
    assert export(f"--base={tiny_model}", f"--adapter={file}", "--to=hf", f"--out={out}").status == 0
    for path in tiny_model.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (tiny_model, out))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert ours[name] == theirs.get(name)
    again = aj.load_base(out).tokenizer
    assert again.chat_template == base.tokenizer.chat_template
    assert again.encode("a pixel<|im_end|>") == base.tokenizer.encode("a pixel<|im_end|>")


def test_orbax_goes_in_and_out(hf_base, orbax_base, tmp_path):
    base = aj.load_base(hf_base)
    adapter, file = saved(tmp_path / "a.safetensors", base)
    for form in ("hf", "orbax"):
        out = tmp_path / form
        ended = export(f"--base={orbax_base}", f"--adapter={file}", f"--to={form}", f"--out={out}", "--strength=0.5")
        assert ended.status == 0
        np.testing.assert_allclose(logits(aj.load_base(out)), logits(base, with_strength(adapter, 0.5)), atol=2e-5)


def test_a_gguf_file_goes_out_with_its_vocabulary(tmp_path):
    metadata, tensors = gguf_files.converted(LLAMA)
    size = metadata["vocab_size"] = len(tensors["token_embd.weight"])
    tokens = ["a", "b", "ab", *(f"t{i}" for i in range(3, size))]
    vocabulary = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
                  "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 3}  # fmt: skip
    file = gguf_files.write_gguf(tmp_path / "base.gguf", metadata | vocabulary, tensors)
    base = aj.load_base(file)
    adapter, saved_file = saved(tmp_path / "a.safetensors", base, start_layer=1)
    for form in ("hf", "orbax"):
        out = tmp_path / form
        ended = export(f"--base={file}", f"--adapter={saved_file}", f"--to={form}", f"--out={out}")
        assert (ended.status, ended.err) == (0, "")
        again = aj.load_base(out)
        np.testing.assert_allclose(logits(again), logits(base, adapter), atol=2e-5)
        assert again.tokenizer.stop_ids == base.tokenizer.stop_ids == {3}
        assert (
            open_stored(str(out)).tokenizer_files()["tokenizer.gguf"]
            == (open_stored(str(file)).tokenizer_files()["tokenizer.gguf"])
        )
        assert ("tokenizer.json, made from the vocabulary" in ended.out) == (form == "hf")
        assert (out / "tokenizer.json").exists() == (form == "hf")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert theirs.encode("abab").ids == base.tokenizer.encode("abab") == [2, 2]
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["eos_token"] == "t3"
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["eos_token_id"] == 3


def test_adapters_are_folded_in_their_order(tmp_path):
    base = aj.load_base(LLAMA)
    lora, first = saved(tmp_path / "lora.safetensors", base, "lora", rank=2, targets=("v", "o"))
    aligner, second = saved(tmp_path / "aligner.safetensors", base, start_layer=1)
    out = tmp_path / "out"
    assert export(f"--base={LLAMA}", f"--adapter={first}", f"--adapter={second}", "--to=hf", f"--out={out}").status == 0
    expected = logits(base, [lora, aligner])
    assert np.abs(expected - logits(base, [aligner, lora])).max() > 1e-4
    np.testing.assert_allclose(logits(aj.load_base(out)), expected, atol=2e-5)


def test_a_sum_is_folded_part_by_part(tmp_path):
    base = aj.load_base(LLAMA)
    adapter = aj.combine([(trained("aligner", base, start_layer=2), 1.0), (trained("lora", base, rank=2), 0.5)], base)
    assert adapter.method == "sum"
    aj.save_adapter(adapter, tmp_path / "sum.safetensors", base=base)
    out = tmp_path / "out"
    ended = export(f"--base={LLAMA}", f"--adapter={tmp_path / 'sum.safetensors'}", "--to=hf", f"--out={out}")
    assert (ended.status, ended.err) == (0, "")
    last = base.config.num_layers - 1
    assert f"added: self_attn.o_proj.bias of layers 2 to {last}\n" in ended.out
    assert f"changed: self_attn.q_proj.weight of layers 0 to {last}\n" in ended.out
    np.testing.assert_allclose(logits(aj.load_base(out)), logits(base, adapter), atol=2e-5)


def test_a_folder_in_shards_has_an_index(tmp_path):
    base = aj.load_base(LLAMA)
    adapter = trained("aligner", base, start_layer=1)
    export_hf(Job(open_stored(str(LLAMA)), (adapter,), "o", "float32"), tmp_path, shard_bytes=8192)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    np.testing.assert_allclose(logits(aj.load_base(tmp_path)), logits(base, adapter), atol=2e-5)


@pytest.mark.parametrize("options", [{"gates": "head"}, {"gates": "layer", "start_layer": 1}], ids=str)
def test_one_token_becomes_a_bias_of_lora(tmp_path, options):
    base = aj.load_base(LLAMA)
    adapter, file = saved(tmp_path / "a.safetensors", base, **{"start_layer": 0, **options})
    out = tmp_path / "out"
    ended = export(f"--base={LLAMA}", f"--adapter={file}", "--to=peft", f"--out={out}")
    assert (ended.status, "LoRA with lora_bias in the projections o" in ended.out) == (0, True)
    config = json.loads((out / "adapter_config.json").read_text())
    layers = adapter.options.adapted(base.config)
    assert (config["lora_bias"], config["lora_alpha"], config["r"]) == (True, 1, 1)
    assert (config["target_modules"], config["layers_to_transform"]) == (["o_proj"], [*layers])
    tensors = load_file(out / "adapter_model.safetensors")
    name = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}"
    biases = np.stack([tensors.pop(name.format(layer, "B.bias")) for layer in layers])
    for layer in layers:
        assert tensors.pop(name.format(layer, "A.weight")).shape == (1, base.config.num_heads * base.config.head_dim)
        assert not tensors.pop(name.format(layer, "B.weight")).any()
    assert tensors == {}
    same = aj.init_adapter("bias", base.config, start_layer=layers.start)
    same = same.replace(trainable={"o_bias_ld": jnp.asarray(biases)})
    np.testing.assert_allclose(logits(base, same), logits(base, adapter), atol=2e-5)
    again = aj.load_adapter(out, base)
    assert (again.method, again.options) == (same.method, same.options)
    np.testing.assert_array_equal(again.trainable["o_bias_ld"], biases)
    verified = run_command("verify", str(out), f"--base={LLAMA}")
    assert (verified.status, verified.err) == (0, "")


@pytest.mark.parametrize("methods", [("v",), ("v", "o")], ids=str)
def test_biases_of_lora_are_read_as_they_are_written(tmp_path, methods):
    base, files = aj.load_base(LLAMA), []
    for start, target in enumerate(methods):
        _, file = saved(tmp_path / f"{target}.safetensors", base, "bias", target=target, start_layer=start)
        files.append(f"--adapter={file}")
    out = tmp_path / "out"
    assert export(f"--base={LLAMA}", *files, "--to=peft", f"--out={out}").status == 0
    again = aj.load_adapter(out, base)
    assert again.method == ("bias" if len(methods) == 1 else "sum")
    total = [aj.load_adapter(tmp_path / f"{target}.safetensors", base) for target in methods]
    np.testing.assert_allclose(logits(base, again), logits(base, total), atol=2e-5)
    tensors = load_file(out / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_A.weight"
    tensors[name] += 1
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"tensor '{name}' is not zero, and biases of LoRA's factors"):
        aj.load_adapter(out, base)


def test_peft_takes_lora_and_prefixes_of_more_tokens_as_they_are(tmp_path):
    base = aj.load_base(LLAMA)
    lora, first = saved(tmp_path / "lora.safetensors", base, "lora", rank=2, targets=("q",))
    prefix, second = saved(tmp_path / "p.safetensors", base, num_tokens=3, gates="layer", start_layer=1)
    for adapter, file, kind in [(lora, first, "LoRA"), (prefix, second, "AdaptionPrompt")]:
        out = tmp_path / kind
        ended = export(f"--base={LLAMA}", f"--adapter={file}", "--to=peft", f"--out={out}")
        assert (ended.status, f"PEFT: {kind}" in ended.out) == (0, True)
        np.testing.assert_allclose(logits(base, aj.load_adapter(out, base)), logits(base, adapter), atol=1e-6)


def test_a_peft_folder_names_its_base(tmp_path):
    base = aj.load_base(LLAMA)
    _, lora = saved(tmp_path / "lora.safetensors", base, "lora", rank=2)
    _, one = saved(tmp_path / "one.safetensors", base, start_layer=1)
    _, many = saved(tmp_path / "many.safetensors", base, num_tokens=3, gates="layer", start_layer=1)
    for number, (flags, name) in enumerate([([], str(LLAMA)), (["--base_model=org/base"], "org/base")]):
        for file in (lora, one, many):
            out = tmp_path / f"{file.stem}{number}"
            assert export(f"--base={LLAMA}", f"--adapter={file}", "--to=peft", f"--out={out}", *flags).status == 0
            assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == name


def test_what_cannot_be_is_refused_in_one_sentence(hf_base, orbax_base, tmp_path):
    base = aj.load_base(LLAMA)
    _, one = saved(tmp_path / "one.safetensors", base, start_layer=1)
    _, many = saved(tmp_path / "many.safetensors", base, num_tokens=2, start_layer=1)
    _, full = saved(tmp_path / "full.safetensors", base, "full")
    _, prompt = saved(tmp_path / "prompt.safetensors", base, "prompt")
    _, grouped = saved(tmp_path / "grouped.safetensors", aj.load_base(hf_base))
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    for file in LLAMA.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    # The second byte of a float32 is rounded away in the fingerprint's bfloat16, the last but one is not.
    weights[-2] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    before = sorted(tmp_path.rglob("*"))
    usual = {"base": LLAMA, "adapter": one, "to": "hf", "out": out}
    for change, sentence in [
        ({"base": None}, "an export has a base, an adapter, a form and a folder to write; missing is --base=PATH"),
        ({"adapter": None}, "missing is --adapter=PATH"),
        ({"to": None}, "missing is --to=hf"),
        ({"dtype": "q8_0"}, "--dtype=q8_0 is a type of GGUF files, and --to=hf has none"),
        ({"to": "onnx"}, "--to"),
        ({"out": mine}, f"{mine} is a folder with other things in it"),
        ({"out": mine / "notes.txt"}, "is a file, but a folder is to be written there"),
        ({"out": "gs://bucket/out"}, "--out=gs://bucket/out is not a folder"),
        ({"base": tmp_path / "none"}, "there is no base model at"),
        ({"adapter": tmp_path / "none.safetensors"}, "none.safetensors does not exist"),
        ({"base": other}, "was trained on a base of the same shape with other weights"),
        ({"base": hf_base}, "was trained on another model than this base"),
        ({"adapter": many}, "the adapter has 2 prefix tokens"),
        # These are checked before the adapter is folded.
        ({"adapter": many, "base_model": "/mine"}, "'/mine' is not the name of a model on a hub"),
        ({"adapter": many, "run": mine}, f"{mine} is not the folder of a run"),
        ({"to": "peft", "push": "org/name"}, f"would publish the path --base={LLAMA}"),
        ({"adapter": prompt}, "prompt tuning changes no weight"),
        ({"base": hf_base, "adapter": grouped, "bias": "v"}, "fold into the output projection"),
        ({"strength": "nan"}, "--strength=nan is not a finite number"),
        ({"strength": "1e39"}, "with --strength=1e+39: gates_ln"),
        ({"dtype": "float16"}, "float16 cannot hold exactly"),
        ({"base": orbax_base, "adapter": grouped, "dtype": "float16"}, "float16 cannot hold exactly"),
        ({"to": "peft", "dtype": "float32"}, "--dtype is of a base's weights"),
        ({"to": "peft", "adapter": full}, "write a folded base with --to=hf"),
        ({"to": "peft", "adapter": many}, "cannot be written for PEFT"),
    ]:
        given = {**usual, **change}
        ended = export(*(f"--{name}={value}" for name, value in given.items() if value is not None))
        assert (ended.status, ended.out) == (1, ""), change
        assert sentence in ended.err
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


FULL_DISK = """
import resource, sys
from aligner_jax.export import main
from aligner_jax.runtime import command
# A file that outgrows its limit fails as on a full disk.
most = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
command.run(main)
"""


@pytest.mark.parametrize(("form", "most"), [("hf", "16384"), ("orbax", "1024")])
def test_a_full_disk_leaves_nothing_behind(form, most, tmp_path):
    base = aj.load_base(LLAMA)
    _, file = saved(tmp_path / "a.safetensors", base, start_layer=1)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    arguments = [f"--base={LLAMA}", f"--adapter={file}", f"--to={form}", f"--out={tmp_path / 'out'}"]
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, most, *arguments],
        env=env,
        cwd=places.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    # Orbax logs the failure too.
    assert ended.stderr.splitlines()[-1] == f"error: {tmp_path / 'out'} cannot be written: File too large"
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
