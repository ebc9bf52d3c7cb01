"""The command that writes an adapter in another format, run in one process for all cases."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_folders import CONFIG, draw, write_hf
from places import GOLDENS, ROOT

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft.artifact import load_adapter, read_artifact, save_adapter
from aligner_jax.peft.canary import Canary, CanaryPrompt, Row
from aligner_jax.peft.canary_logits import compute_canary
from aligner_jax.peft.compact import rounded
from aligner_jax.peft.hf_peft import load_peft
from aligner_jax.weights.base import load_base
from aligner_jax.weights.hf_config import hf_config

MODEL = GOLDENS / "models" / "llama3"

_CANARY = Canary("float32", (CanaryPrompt(Row((1,)), (2,), (), (-1.0,), (-2.0,)),))

# Reads lines of JSON, one command's arguments each, and answers with its exit, output and errors.
PROGRAM = """
import contextlib, io, json, sys
from absl import flags
from aligner_jax import convert
from aligner_jax.runtime import command
for line in sys.stdin:
    sys.argv = ["convert", *json.loads(line)]
    flags.FLAGS.unparse_flags()
    for name in ("adapter", "to", "base", "base_model", "format", "out", "overwrite", "dtype"):
        flags.FLAGS[name].unparse()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            command.run(convert.main)
    except SystemExit as end:
        print(json.dumps([end.code, out.getvalue()]), flush=True)
"""


class ShapedBase(NamedTuple):
    config: LlamaConfig
    fingerprint: str = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def convert() -> Iterator[Callable[..., tuple[int | str, str]]]:
    """Runs the command with these arguments. Returns its exit (0, or the sentence of its refusal) and its output."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def run(*arguments: str) -> tuple[int | str, str]:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            code, shown = json.loads(process.stdout.readline())
            return code, shown

        yield run
        process.stdin.close()


@pytest.fixture
def lora() -> Adapter:
    fresh = init_adapter("lora", hf_config(MODEL), rank=2, targets=("q", "o"))
    rng = np.random.default_rng(2)
    return fresh.replace(
        trainable={key: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for key, x in fresh.trainable.items()}
    )


def _assert_same(ours: Adapter, theirs: Adapter) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for name, leaf in theirs.trainable.items():
        np.testing.assert_array_equal(ours.trainable[name], leaf)


def test_a_released_file_becomes_ours(convert, tmp_path: Path):
    target = tmp_path / "new" / "aligner.safetensors"
    line = (
        f"aligner(gates=head, num_tokens=2, start_layer=2, tokens=model): 28 trained parameters, written to {target}\n"
    )
    assert convert(f"--adapter={GOLDENS / 'released.pth'}", f"--to={target}") == (0, line)
    _assert_same(load_adapter(target), load_adapter(GOLDENS / "released.pth"))
    assert read_artifact(target).base is None


def test_with_a_base_its_fingerprint_is_recorded(convert, tmp_path: Path):
    target, base = tmp_path / "lit.safetensors", load_base(MODEL)
    status, line = convert(f"--adapter={GOLDENS / 'lit_llama.pth'}", f"--to={target}", f"--base={MODEL}")
    assert (status, line.split(":")[0]) == (0, "llama_adapter(gates=head, num_tokens=4, start_layer=1, tanh=False)")
    assert read_artifact(target).base == (base.config, base.fingerprint, None)
    _assert_same(load_adapter(target, base), load_adapter(GOLDENS / "lit_llama.pth"))


@pytest.mark.parametrize(("model", "dtype"), [("llama3", "float32"), ("bfloat16", "bfloat16")])
def test_the_canary_is_computed_with_the_weights_as_they_are_stored(convert, model, dtype, tmp_path: Path):
    given, target = tmp_path / "given.safetensors", tmp_path / "to.safetensors"
    config = hf_config(GOLDENS / "models" / model)
    adapter = init_adapter("bias", config)
    save_adapter(adapter.replace(trainable={"o_bias_ld": adapter.trainable["o_bias_ld"] + 0.3}), given)
    assert convert(f"--adapter={given}", f"--to={target}", f"--base={GOLDENS / 'models' / model}")[0] == 0
    canary = read_artifact(target).canary
    assert canary is not None
    assert canary.computed_in == dtype


def test_to_peft_and_back(convert, lora: Adapter, tmp_path: Path):
    ours, folder, again = tmp_path / "lora.safetensors", tmp_path / "peft.v1", tmp_path / "again.safetensors"
    base = ShapedBase(hf_config(MODEL))
    save_adapter(lora, ours, base, prompt_format={"template": "alpaca", "system": None})
    status, line = convert(f"--adapter={ours}", f"--to={folder}")
    assert (status, line.split("): ")[1]) == (0, f"768 trained parameters, written to {folder}\n")
    _assert_same(load_peft(folder, base.config), lora)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert convert(f"--adapter={folder}", f"--to={again}", f"--base={MODEL}", "--format=aligner")[0] == 0
    _assert_same(load_adapter(again, load_base(MODEL)), lora)

    copy = tmp_path / "copy.safetensors"
    assert convert(f"--adapter={ours}", f"--to={copy}")[0] == 0
    assert copy.read_bytes() == ours.read_bytes()
    assert read_artifact(copy).prompt_format == PromptFormat("alpaca", None)

    assert convert(f"--adapter={again}", f"--to={tmp_path / 'named'}", f"--base={MODEL}", "--format=peft")[0] == 0
    assert json.loads((tmp_path / "named" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(MODEL)


def test_peft_is_told_the_base_that_is_named_or_that_the_run_had(convert, lora: Adapter, tmp_path: Path):
    ours = tmp_path / "run" / "adapter.safetensors"
    save_adapter(lora, ours, ShapedBase(hf_config(MODEL)))

    def named(folder: str, *arguments: str) -> str | None:
        status, _ = convert(*arguments, f"--to={tmp_path / folder}")
        assert status == 0
        return json.loads((tmp_path / folder / "adapter_config.json").read_text())["base_model_name_or_path"]

    assert named("unknown", f"--adapter={ours}") is None
    (tmp_path / "run" / "config.json").write_text('{"base": {"path": "models/of-the-run"}}')
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert named("of_run", f"--adapter={ours}") == "models/of-the-run"
    assert named("given", f"--adapter={ours}", "--base_model=org/name") == "org/name"
    assert named("again", f"--adapter={tmp_path / 'given'}", f"--base={MODEL}", "--base_model=b") == "b"
    (tmp_path / "run" / "config.json").write_text("{")
    assert named("damaged", f"--adapter={ours}") is None


def test_what_exists_is_replaced_only_if_asked(convert, lora: Adapter, tmp_path: Path):
    ours, file, folder = (tmp_path / name for name in ("ours.safetensors", "file.safetensors", "peft"))
    save_adapter(lora, ours, ShapedBase(hf_config(MODEL)))
    for target in (file, folder):
        status, shown = convert(f"--adapter={ours}", f"--to={target}")
        assert status == 0
        assert ("names no base" in shown) == (target == folder)
        sentence = f"error: {target} exists already: give another name, or add --overwrite to replace it"
        assert convert(f"--adapter={ours}", f"--to={target}") == (sentence, "")
    save_adapter(lora.replace(trainable={k: 2 * x for k, x in lora.trainable.items()}), ours,
                 ShapedBase(hf_config(MODEL)))  # fmt: skip
    assert convert(f"--adapter={ours}", f"--to={file}", "--overwrite")[0] == 0
    assert convert(f"--adapter={ours}", f"--to={folder}", "--overwrite", "--base_model=new")[0] == 0
    for target in (file, folder):
        _assert_same(load_adapter(target, ShapedBase(hf_config(MODEL))), load_adapter(ours))
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.safetensors", "ours.safetensors", "peft"]
    (folder / "notes.txt").write_text("mine")
    said = f"error: {folder} is a folder with other things in it (notes.txt); give another name"
    assert convert(f"--adapter={ours}", f"--to={folder}", "--overwrite") == (said, "")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_float32_widens_arrays_and_stored_keeps_them(convert, lora: Adapter, dtype, tmp_path: Path):
    half = lora.replace(trainable={name: x.astype(dtype) for name, x in lora.trainable.items()})
    given, kept, wide = (tmp_path / f"{name}.safetensors" for name in ("given", "kept", "wide"))
    save_adapter(half, given, ShapedBase(hf_config(MODEL)), canary=_CANARY)
    assert convert(f"--adapter={given}", f"--to={kept}")[0] == 0
    assert kept.read_bytes() == given.read_bytes()
    status, shown = convert(f"--adapter={given}", f"--to={wide}", "--dtype=float32")
    assert (status, shown.split("): ")[1]) == (0, f"768 trained parameters, written to {wide}\n")
    found = read_artifact(wide)
    assert {x.dtype for x in found.adapter.trainable.values()} == {jnp.dtype("float32")}
    _assert_same(found.adapter, half)
    assert found.canary == _CANARY


def test_fewer_bytes_are_shown_with_their_errors(convert, lora: Adapter, tmp_path: Path):
    ours, small = tmp_path / "lora.safetensors", tmp_path / "small.safetensors"
    save_adapter(lora, ours, ShapedBase(hf_config(MODEL)), canary=_CANARY)
    status, shown = convert(f"--adapter={ours}", f"--to={small}", "--dtype=int8")
    first, second, third, rest = shown.split("\n")
    assert (status, first, rest) == (0, f"{small} has no canary, which the base is needed for: add --base=PATH", "")
    assert second.endswith(f"768 trained parameters, written to {small}")
    assert third.startswith("int8: 3,072 bytes of arrays are 816, a file of ")
    assert f"{ours.stat().st_size:,} bytes is one of {small.stat().st_size:,}; largest error relative to" in third
    errors = dict(zip(third.split()[-8::2], third.split()[-7::2], strict=True))
    assert list(errors) == sorted(lora.trainable)
    assert all(0.1 < float(each.strip("%,")) < 0.5 for each in errors.values())
    _assert_same(load_adapter(small), rounded(lora, "int8").adapter)
    assert read_artifact(small).canary is None


def test_the_canary_is_that_of_the_rounded_adapter(convert, tmp_path: Path):
    given, small, base = tmp_path / "given.safetensors", tmp_path / "small.safetensors", load_base(MODEL)
    adapter = init_adapter("bias", base.config)
    numbers = np.random.default_rng(0).standard_normal(adapter.trainable["o_bias_ld"].shape)
    adapter = adapter.replace(trainable={"o_bias_ld": jnp.asarray(numbers, jnp.float32)})
    save_adapter(adapter, given, base)
    assert convert(f"--adapter={given}", f"--to={small}", f"--base={MODEL}", "--dtype=int4")[0] == 0
    canary = read_artifact(small, base).canary
    assert canary == compute_canary(base, load_adapter(small, base))
    assert canary != read_artifact(given).canary


def test_a_base_becomes_an_orbax_folder_with_its_tokenizer(convert, tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "new" / "orbax"
    base = load_base(tiny_model)
    count = sum(leaf.size for leaf in jax.tree.leaves(base.params))
    line = f"{count:,} parameters in float32, written to {folder}\n"
    assert convert(f"--base={tiny_model}", f"--out={folder}") == (0, line)
    again = load_base(folder)
    assert again.config == base.config
    jax.tree.map(np.testing.assert_array_equal, again.params, base.params)
    assert again.tokenizer.encode("a pixel<|im_end|>") == base.tokenizer.encode("a pixel<|im_end|>")
    assert again.tokenizer.stop_ids == base.tokenizer.stop_ids
    for arguments, sentence in [
        ([f"--base={tiny_model}", f"--out={folder}"], f"{folder} is a folder with other things in it"),
        ([f"--base={folder}", f"--out={tmp_path / 'b'}"], f"{folder} is a base in Orbax's form already"),
        ([f"--base={tmp_path / 'no'}", f"--out={tmp_path / 'b'}"], "there is no base model at"),
        ([f"--out={tmp_path / 'b'}"], "give the base that is to be written to --out: --base=IN"),
        ([f"--base={tiny_model}", f"--out={tmp_path / 'b'}", "--to=x"], "--to is of adapters"),
        ([f"--adapter={folder}", f"--out={tmp_path / 'b'}"], "--adapter is of adapters"),
        (
            [f"--adapter={folder}", f"--to={tmp_path / 'b'}", "--dtype=float32"],
            "--dtype is of a file, whose name ends in",
        ),
        ([f"--base={tiny_model}", f"--out={tmp_path / 'b'}", "--dtype=int8"], "--dtype=int8 is of adapters"),
        (
            [f"--adapter={folder}", f"--to={tmp_path / 'b.safetensors'}", "--dtype=float16"],
            "dtype 'float16' of an adap",
        ),
    ]:
        status, printed = convert(*arguments)
        assert (str(status).count("\n"), printed) == (0, "")
        assert sentence in status
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("model", "dtype"), [("bfloat16", "bfloat16"), ("llama", "float32")])
def test_a_base_keeps_every_number_that_it_has(convert, model: str, dtype: str, tmp_path: Path):
    status, line = convert(f"--base={GOLDENS / 'models' / model}", f"--out={tmp_path / 'orbax'}")
    assert (status, f"parameters in {dtype}," in line) == (0, True)
    exact, again = load_base(GOLDENS / "models" / model), load_base(tmp_path / "orbax")
    jax.tree.map(np.testing.assert_array_equal, again.params, exact.params)


def test_float16_keeps_every_number_or_is_refused(convert, tmp_path: Path):
    exact = {name: x.astype(np.float16) for name, x in draw().items()}
    half, single = write_hf(tmp_path / "half", CONFIG, exact), write_hf(tmp_path / "single", CONFIG, draw())
    status, line = convert(f"--base={half}", f"--out={tmp_path / 'orbax'}", "--dtype=float16")
    assert (status, "parameters in float16," in line) == (0, True)
    again, base = load_base(tmp_path / "orbax"), load_base(half)
    jax.tree.map(np.testing.assert_array_equal, again.params, base.params)
    assert load_base(tmp_path / "orbax", "float16").fingerprint == base.fingerprint
    status, printed = convert(f"--base={single}", f"--out={tmp_path / 'none'}", "--dtype=float16")
    assert (str(status).count("\n"), printed, (tmp_path / "none").exists()) == (0, "", False)
    assert "holds numbers that float16 cannot hold exactly; load it in float32" in status


def test_what_cannot_be_is_refused_in_one_sentence(convert, lora: Adapter, tmp_path: Path):
    ours, unbound = tmp_path / "lora.safetensors", tmp_path / "unbound.safetensors"
    save_adapter(lora, ours, ShapedBase(hf_config(MODEL)))
    save_adapter(lora, unbound)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    released, missing = GOLDENS / "released.pth", tmp_path / "no.safetensors"
    before = sorted(tmp_path.rglob("*"))
    for arguments, sentence in [
        ([], "give an adapter and where to write it: --adapter=IN --to=OUT"),
        ([f"--adapter={ours}"], "give an adapter and where to write it"),
        ([f"--to={ours}"], "give an adapter and where to write it"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'full' / '..' / ours.name}"], "would be overwritten"),
        ([f"--adapter={ours}", f"--to={full}"], f"{full} is a folder with other things in it"),
        ([f"--adapter={ours}", f"--to={full / 'notes.txt'}"], "notes.txt is a file, but a folder"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'lora.gguf'}"], "is not written: name a file that ends in .safet"),
        (
            [f"--adapter={ours}", f"--to={tmp_path / 'lora.GGUF'}", "--format=peft"],
            "convert_lora_to_gguf.py makes GGUF",
        ),
        ([f"--adapter={ours}", f"--to={tmp_path / 'a.safetensors'}", "--base_model=b"], "--base_model is of PEFT's"),
        ([f"--adapter={unbound}", f"--to={tmp_path / 'out'}"], "add --base=PATH"),
        ([f"--adapter={missing}", f"--to={tmp_path / 'out'}"], f"{missing} does not exist"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'out'}", "--format=aligner"], "ends in .safetensors"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'a.safetensors'}", "--format=peft"], "does not end in .safetensors"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'out'}", "--format=pth"], "--format=pth"),
        ([f"--adapter={ours}", f"--to={tmp_path / 'out'}", f"--base={MODEL}"], "other weights"),
        ([f"--adapter={released}", f"--to={tmp_path / 'out'}", f"--base={MODEL}"], "has shape (2, 8), but (2, 32)"),
    ]:
        status, printed = convert(*arguments)
        assert str(status).startswith("error: "), arguments
        assert sentence in status
        assert "\n" not in status
        assert printed == ""
        assert sorted(tmp_path.rglob("*")) == before
