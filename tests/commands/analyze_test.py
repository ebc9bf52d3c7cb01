"""The command that analyzes adapters, run in one process for all cases."""

import base64
import csv
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from places import ROOT

from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.weights.base import load_base
from scripts.lib.tiny_llama import write_tiny_llama

NAME = "[bold] <b>&$x$"
"""A possible folder name; no part of it may be read as markup."""

# Reads lines of JSON, one command's arguments each, and answers with its exit and output.
PROGRAM = """
import contextlib, io, json, sys, warnings
from absl import flags
from aligner_jax import analyze
from aligner_jax.runtime import command
warnings.simplefilter("error")
names = [flag.name for flag in flags.FLAGS.get_flags_for_module(analyze)]
for line in sys.stdin:
    sys.argv = ["analyze", *json.loads(line)]
    flags.FLAGS.unparse_flags()
    for name in names:
        flags.FLAGS[name].unparse()
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            command.run(analyze.main)
    except SystemExit as end:
        print(json.dumps([end.code, out.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def analyze() -> Iterator[Callable[..., tuple[int | str, str]]]:
    """Runs the command with these arguments. Returns its exit (0, or the sentence of its refusal) and its output."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def run(*arguments: object) -> tuple[int | str, str]:
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            code, shown = json.loads(process.stdout.readline())
            return code, shown

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A tiny base, three adapters for it (one with a name full of markup), and held-out data."""
    folder = tmp_path_factory.mktemp("files")
    write_tiny_llama(folder / "base")
    base, rng = load_base(folder / "base"), np.random.default_rng(0)
    for name, method, options in (
        ("one", "aligner", {"num_tokens": 1}),
        (NAME, "aligner", {"num_tokens": 3, "start_layer": 1}),
        ("lora", "lora", {"rank": 2}),
    ):
        fresh = init_adapter(method, base.config, **options)
        trained = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), fresh.trainable)
        path = folder / name / "adapter.safetensors"
        save_adapter(fresh.replace(trainable=trained), path, base, prompt_format={"template": "chat", "system": None})
    tiny_runs.write_rows(folder / "data.jsonl", tiny_runs.sft_rows(10))
    return folder


def _adapters(files: Path, *names: str) -> list[str]:
    return [f"--adapter={files / name / 'adapter.safetensors'}" for name in names]


def _norms_of_one_token(files: Path) -> dict[int, float]:
    """Returns the norm of W_O (g ⊙ V_a) in each layer: the output of an Aligner with one token, by its formula."""
    base, adapter = load_base(files / "base"), load_adapter(files / "one" / "adapter.safetensors")
    token_d, gates_ln = adapter.trainable["tokens_pd"][0], adapter.trainable["gates_ln"]
    v_lkh = jnp.einsum("d,ldkh->lkh", token_d, base.params.layers.v_ldkh[2:])
    gated_lnh = gates_ln[..., None] * jnp.repeat(v_lkh, base.config.group_size, axis=1)
    added_ld = jnp.einsum("lnh,lnhd->ld", gated_lnh, base.params.layers.o_lnhd[2:])
    return dict(zip((2, 3), np.linalg.norm(added_ld, axis=1).tolist(), strict=True))


def _check_page(folder: Path) -> str:
    """Returns the page's text after checks that every figure is in it and that nothing is fetched."""
    page = (folder / "index.html").read_text()
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?:", page)
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    drawn = sorted((folder / "figures").glob("*.svg"))
    assert len(sources) == len(drawn) > 0
    for source in sources:
        kind, _, data = source.partition("base64,")
        assert kind == "data:image/svg+xml;"
        svg = base64.b64decode(data)
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg in [path.read_bytes() for path in drawn]
    for path in drawn:
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return page


def test_adapters_alone(analyze, files: Path, tmp_path: Path):
    code, printed = analyze(*_adapters(files, "one", NAME, "lora"), f"--out={tmp_path / 'out'}")
    assert code == 0, code
    folder = tmp_path / "out"
    page = _check_page(folder)
    assert "[bold] &lt;b&gt;&amp;$x$" in page
    assert "<b>" not in page
    assert NAME in printed
    assert "add --base=PATH" in printed
    numbers = json.loads((folder / "analysis.json").read_text())
    assert [row["trained numbers"] for row in numbers["adapters"]] == [
        32 + 2 * 4,
        3 * 32 + 3 * 4,
        4 * 2 * (32 * 3 + 16),
    ]
    assert [(row["adapter"], row["layer"]) for row in numbers["gates_by_layer"]] == [
        ("one", 2), ("one", 3), (NAME, 1), (NAME, 2), (NAME, 3)
    ]  # fmt: skip
    assert [(row["array"], row["entries"]) for row in numbers["pairs"]] == [("tokens_pd", 32)]
    assert {row["of"] for row in numbers["effective_rank"]} == {"tokens", "update of q", "update of v"}
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {"gates_1_one", "gates_2_bold_b_x", "gate_spread", "similarity", "effective_rank"}
    with (folder / "gates_by_layer.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["spread"]) for row in rows] == [row["spread"] for row in numbers["gates_by_layer"]]


def test_with_the_base_and_data(analyze, files: Path, tmp_path: Path):
    arguments = [*_adapters(files, "one", "lora"), f"--base={files / 'base'}", f"--data={files / 'data.jsonl'}"]
    code, printed = analyze(*arguments, f"--out={tmp_path}")
    assert code == 0, code
    page = _check_page(tmp_path)
    numbers = json.loads((tmp_path / "analysis.json").read_text())
    assert {row["adapter"]: row["layers"] for row in numbers["shifts"]} == {"one": 2, "lora": 4}
    assert numbers["shifts"][0]["mean constancy"] == pytest.approx(1, rel=1e-5)
    adapted = _norms_of_one_token(files)
    by_layer = {row["layer"]: row for row in numbers["shifts_by_layer"] if row["adapter"] == "one"}
    assert {layer: row["mean norm"] for layer, row in by_layer.items()} == pytest.approx(adapted, rel=1e-5)
    for row in numbers["shifts_by_layer"]:
        assert 0 < row["relative, 10 %"] <= row["relative, median"] <= row["relative, 90 %"]
    medians = {layer: row["relative, median"] for layer, row in by_layer.items()}
    assert (numbers["shifts"][0]["largest"], numbers["shifts"][0]["at layer"]) == (
        max(medians.values()), max(medians, key=medians.__getitem__)
    )  # fmt: skip
    assert numbers["shifts"][0]["median layer"] == pytest.approx(np.mean(list(medians.values())), rel=1e-12)
    assert numbers["directions"][0]["layers"] == 2
    cosines = [row["cosine"] for row in numbers["directions_by_layer"]]
    assert [row["layer"] for row in numbers["directions_by_layer"]] == [2, 3]
    assert (numbers["directions"][0]["smallest"], numbers["directions"][0]["largest"]) == (min(cosines), max(cosines))
    parts = {row["tokens of"]: row for row in numbers["form_and_knowledge"] if row["adapter"] == "one"}
    assert parts["form"]["tokens"] + parts["knowledge"]["tokens"] == parts["all"]["tokens"]
    assert parts["form"]["share of the change"] + parts["knowledge"]["share of the change"] == pytest.approx(
        1, rel=1e-12
    )
    for row in parts.values():
        if row["tokens"]:
            assert row["change"] == row["adapted"] - row["base"]
            low, high = map(float, row["interval"].split(" to "))
            assert low - 0.001 <= row["change"] <= high + 0.001
    assert [row["place"] for row in numbers["loss_by_place"]][:2] == [1, 2]
    moves = {row["layer"]: row for row in numbers["hidden_states_by_layer"] if row["adapter"] == "one"}
    assert list(moves) == [0, 1, 2, 3]
    # One token is added from layer 2 on. There all states move alike, except for the MLP's response.
    assert max(moves[layer]["move over spread"] for layer in (0, 1)) < 1e-5 < moves[2]["move over spread"]
    assert 0.5 < moves[2]["common part"] <= 1
    assert [row["move over spread"] for row in numbers["hidden_states"] if row["adapter"] == "one"] == [
        moves[3]["move over spread"]
    ]
    assert len(numbers["tokens"]) == 4
    for heading in ("What the adapter adds", "Promoted and demoted tokens", "Form against knowledge"):
        assert heading in page
        assert heading in printed
    assert "10 prompts of the data" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"give an adapter and where to write: --adapter=PATH --out=DIR"),
        (["one"], r"give an adapter and where to write: --adapter=PATH --out=DIR"),
        (["one", "--out={out}", "--data={files}/data.jsonl"], r"--data is of what .*: add --base=PATH"),
        (["one", "--out={out}", "--group_size=16"], r"--group_size is of what .*: add --base=PATH"),
        (["one", "--out={out}", "--base={files}/base", "--opening=3"], r"--opening is of held-out data: .*--data=FILE"),
        (["one", "one", "--out={out}"], r"adapter\.safetensors is given twice; .*"),
        (["missing", "--out={out}"], r"\S*missing/adapter\.safetensors does not exist, or is not a file"),
        (["one", "--out={files}/data.jsonl"], r"\S*data\.jsonl cannot be made a folder: .*"),
        (["one", "--out={out}", "--base={files}/nowhere"], r"there is no base model at .*nowhere.*"),
        (["one", "--out={out}", "--base={files}/base", "--data={files}/no.json"], r".*there is no file .*no\.json"),
        (["one", "--out={out}", "--base={files}/other"], r".*adapter\.safetensors was trained on a base .*"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(analyze, files: Path, tmp_path: Path, arguments, sentence: str):
    if "other" in "".join(arguments):
        write_tiny_llama(files / "other")
        weights = files / "other" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x00\x40")
    out = tmp_path / "out"
    given = [a.format(files=files, out=out) if a.startswith("--") else _adapters(files, a)[0] for a in arguments]
    code, _ = analyze(*given)
    assert re.fullmatch(f"error: .*{sentence}", str(code)), code
    assert not (out / "index.html").exists()
