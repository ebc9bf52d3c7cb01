"""The authors' released Aligners, lit-llama's LLaMA-Adapters, and files that are neither."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import places
import pytest
from torch_files import write_torch_file

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.peft import apply
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.peft.fold import make_fold
from aligner_jax.peft.released import load_released
from aligner_jax.weights.hf import load_hf
from aligner_jax.weights.hf_config import hf_config
from aligner_jax.weights.leaves import leaf_specs

GOLDEN = places.GOLDENS / "released.pth"
SHARED = places.SHARED / "data" / "official_aligners"
TOKEN_AND_LAST_GATES = (("tokens_pd", 0), ("gates_ln", -1))


class ShapedBase(NamedTuple):
    config: LlamaConfig
    fingerprint: str = "f" * 64


def _rewritten(path: Path, change) -> Path:
    """Returns the golden file with `change(name, bytes) -> bytes or None` applied to each member."""
    with zipfile.ZipFile(GOLDEN) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


def test_reads_what_torch_wrote():
    adapter, expected = load_adapter(GOLDEN), np.load(GOLDEN.with_suffix(".npz"))
    np.testing.assert_array_equal(adapter.trainable["tokens_pd"], expected["tokens"])
    np.testing.assert_array_equal(adapter.trainable["gates_ln"], expected["gates"])
    assert adapter.method == "aligner"
    assert adapter.options.as_dict() == {"num_tokens": 2, "start_layer": 2, "gates": "head", "tokens": "model"}
    assert adapter.num_params == 2 * 8 + 3 * 4


class _Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    evil = pickle.dumps({"global_value_embedding.weight": _Evil()})
    path = _rewritten(tmp_path / "evil.pth", lambda name, data: evil if name.endswith("data.pkl") else data)
    with pytest.raises(InputError, match=r"evil\.pth asks for builtins\.print, which is no tensor"):
        load_released(path)
    assert capsys.readouterr().out == ""


def test_copies_must_be_equal(tmp_path: Path):
    with zipfile.ZipFile(GOLDEN) as archive:
        tokens = next(archive.read(n) for n in archive.namelist() if n.endswith("data/0"))
    seen = []

    def change(name: str, data: bytes) -> bytes:
        if data == tokens:
            seen.append(name)
            return data if len(seen) == 1 else b"\x01" + data[1:]
        return data

    with pytest.raises(InputError, match=r"transformer\.h\.2\.attn\.adapter_wte\.weight"):
        load_released(_rewritten(tmp_path / "unequal.pth", change))


@pytest.mark.parametrize("kept", [0, 20, 100, 1000, -30])
def test_cut_short(tmp_path: Path, kept: int):
    path = tmp_path / "cut.pth"
    path.write_bytes(GOLDEN.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut\.pth"):
        load_released(path)


def test_storage_cut_short(tmp_path: Path):
    path = _rewritten(tmp_path / "small.pth", lambda name, data: data[:2] if "/data/" in name else data)
    with pytest.raises(InputError, match="needs more bytes than its storage has"):
        load_released(path)


def test_not_tensors(tmp_path: Path):
    for value, sentence in (({"a": 1}, "'a' is not a tensor"), ([1], "holds a list")):
        content = pickle.dumps(value)
        path = _rewritten(tmp_path / "other.pth", lambda name, data, c=content: c if "data.pkl" in name else data)
        with pytest.raises(InputError, match=sentence):
            load_released(path)


def test_another_zip(tmp_path: Path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("hello.txt", "hello")
    (tmp_path / "zip.pth").write_bytes(archive.getvalue())
    with pytest.raises(InputError, match=r"no data\.pkl"):
        load_released(tmp_path / "zip.pth")


def _lit_llama(gate_shape: tuple[int, ...], start_layer: int = 1) -> dict[str, np.ndarray]:
    """Returns tensors of a LLaMA-Adapter of 2 tokens on the last two layers of the llama3 golden."""
    rng, tensors = np.random.default_rng(5), {}
    for layer in range(start_layer, 3):
        attention = f"transformer.h.{layer}.attn."
        tensors[attention + "gating_factor"] = rng.standard_normal(gate_shape).astype(np.float32)
        tensors[attention + "adapter_wte.weight"] = rng.standard_normal((2, 32)).astype(np.float32)
    return tensors


def test_logits_of_a_lit_llama_file():
    config, params = load_hf(GOLDEN.parent / "models" / "llama3")
    expected = np.load(GOLDEN.parent / "llama_adapter_p4.npz")
    adapter = load_adapter(GOLDEN.parent / "lit_llama.pth", ShapedBase(config))
    assert adapter.method == "llama_adapter"
    assert adapter.options.as_dict() == {"num_tokens": 4, "start_layer": 1, "gates": "head", "tanh": False}
    logits_btv = jax.jit(apply, static_argnames="config")(params, adapter, expected["ids"], config=config)
    assert np.abs(expected["logits"] - expected["base_logits"]).max() > 0.5
    np.testing.assert_allclose(logits_btv, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("gate_shape", "gates"), [((1,), "layer"), ((1, 1, 1, 1), "layer"), ((1, 4, 1, 1), "head"), ((1, 1, 4, 1), "head")]
)
def test_gates_of_all_versions_of_lit_llama(gate_shape: tuple[int, ...], gates: str, tmp_path: Path):
    tensors = _lit_llama(gate_shape)
    path = write_torch_file(tmp_path / "lit.pth", tensors)
    base = ShapedBase(hf_config(GOLDEN.parent / "models" / "llama3"))
    for adapter in (load_adapter(path), load_adapter(path, base)):
        assert adapter.options.as_dict() == {"num_tokens": 2, "start_layer": 1, "gates": gates, "tanh": False}
        for number, layer in enumerate((1, 2)):
            attention = f"transformer.h.{layer}.attn."
            expected = tensors[attention + "gating_factor"].reshape(-1)
            np.testing.assert_array_equal(adapter.trainable["gates_ln"][number], expected)
            expected = tensors[attention + "adapter_wte.weight"]
            np.testing.assert_array_equal(adapter.trainable["tokens_lpd"][number], expected)


def test_an_aligner_may_have_one_gate_a_layer(tmp_path: Path):
    tensors = _lit_llama((1,))
    shared_pd = tensors["transformer.h.1.attn.adapter_wte.weight"]
    tensors = {name: shared_pd if "wte" in name else x for name, x in tensors.items()}
    path = write_torch_file(tmp_path / "one.pth", {"global_value_embedding.weight": shared_pd} | tensors)
    adapter = load_adapter(path)
    assert (adapter.method, adapter.options["gates"]) == ("aligner", "layer")
    assert adapter.num_params == 2 * 32 + 2


def test_an_aligner_without_a_token_is_refused(tmp_path: Path):
    gates = {name: x for name, x in _lit_llama((1,)).items() if "gating" in name}
    path = write_torch_file(tmp_path / "z.pth", gates | {"global_value_embedding.weight": np.zeros((0, 32))})
    with pytest.raises(InputError, match=r"z\.pth has 0 tokens of 32 numbers; an adapter has one at least"):
        load_adapter(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"transformer.h.2.attn.adapter_wte.weight": np.zeros((3, 32))}, r"h\.2.*weight' has shape \(3, 32\), unlike"),
        ({"transformer.h.2.attn.adapter_wte.weight": np.zeros(32)}, r"h\.2.*weight' has shape \(32,\), unlike"),
        ({"transformer.h.2.attn.adapter_wte.weight": None}, "has a gate for layer 2, but not tokens"),
        ({"transformer.h.2.attn.gating_factor": None}, "has tokens for layer 2, but not a gate"),
        (
            {"transformer.h.1.attn.gating_factor": None, "transformer.h.2.attn.gating_factor": None},
            r"gates for layers \[\]",
        ),
        ({"transformer.h.2.attn.gating_factor": np.zeros(4)}, "different numbers of heads"),
        ({"transformer.h.0.rms_1.weight": np.zeros(32)}, r"unknown tensor 'transformer\.h\.0\.rms_1\.weight'"),
        ({"transformer.h.02.attn.gating_factor": np.zeros(1)}, r"unknown tensor 'transformer\.h\.02\.attn"),
        ({"transformer.h.02.attn.adapter_wte.weight": np.zeros((2, 32))}, r"unknown tensor 'transformer\.h\.02\."),
        ({"transformer.h.٢.attn.gating_factor": np.zeros(1)}, "unknown tensor 'transformer.h.٢"),
        ({"transformer.h.100000000.attn.gating_factor": np.zeros(1)}, "unknown tensor 'transformer.h.100000000"),
        ({f"transformer.h.{'9' * 5000}.attn.gating_factor": np.zeros(1)}, r"text of 5,0\d\d bytes"),
        (
            {"transformer.h.9.attn.gating_factor": np.zeros(1)},
            r"gates for layers \[1, 2, 9\], which are not consecutive",
        ),
        ({"transformer.h.2.attn.gating_factor": np.zeros((2, 2))}, r"has shape \(2, 2\), but gates are one, or one a"),
        ({"transformer.h.2.attn.gating_factor": np.zeros((0,))}, r"has shape \(0,\), but gates are one, or one a head"),
        (
            {f"transformer.h.{layer}.attn.adapter_wte.weight": np.zeros((0, 32)) for layer in (1, 2)},
            "has 0 tokens of 32 numbers; an adapter has one at least",
        ),
        (
            {f"transformer.h.{layer}.attn.adapter_wte.weight": np.zeros((2, 0)) for layer in (1, 2)},
            "has 2 tokens of 0 numbers; an adapter has one at least",
        ),
        ({"global_value_embedding.weight": np.zeros((0, 32))}, "is not the copy of 'global_value_embedding.weight'"),
        (
            {"global_value_embedding.weight": np.zeros((2, 32)), "transformer.h.2.attn.gating_factor": None},
            "has tokens for layer 2, but not a gate",
        ),
        (
            {f"transformer.h.{layer}.attn.adapter_wte.weight": None for layer in (1, 2)},
            "is no Aligner and no LLaMA-Adapter",
        ),
    ],
)
def test_damaged_lit_llama_files_are_refused(change: dict, sentence: str, tmp_path: Path):
    tensors = {name: x for name, x in (_lit_llama((1,)) | change).items() if x is not None}
    with pytest.raises(InputError, match=rf"lit\.pth.*{sentence}"):
        load_adapter(write_torch_file(tmp_path / "lit.pth", tensors))


def test_a_lit_llama_file_of_another_base_is_refused(tmp_path: Path):
    path = write_torch_file(tmp_path / "lit.pth", _lit_llama((1, 4, 1, 1), start_layer=2))
    base = ShapedBase(hf_config(GOLDEN.parent / "models" / "llama"))
    with pytest.raises(InputError, match=r"tensor 'tokens_lpd' has shape \(1, 2, 32\), but \(1, 2, 16\) fits"):
        load_adapter(path, base)


def test_numbers_that_are_not_finite_are_refused_without_any_base(tmp_path: Path):
    tensors = _lit_llama((1,))
    tensors["transformer.h.2.attn.gating_factor"] *= np.inf
    with pytest.raises(
        InputError, match=r"lit\.pth: tensor transformer\.h\.2\.attn\.gating_factor holds numbers that are not finite"
    ):
        load_adapter(write_torch_file(tmp_path / "lit.pth", tensors))


@pytest.mark.skipif(not SHARED.exists(), reason="the released files are not beside this checkout")
def test_the_released_aligner_of_one_token_folds_over_llama2_7b():
    config, adapter = llama_config("llama2_7b"), load_adapter(SHARED / "alpaca_llama2_7b_aligner1.pth")
    fold = make_fold([adapter], config)
    assert fold.needs == {"o_bias_ld": {"v_ldkh", "o_lnhd"}}
    assert fold.folded_config.o_bias
    assert leaf_specs(fold.folded_config)["o_bias_ld"].shape == (32, 4096)
    # A layer of random weights in the model's shapes.
    rng, specs = np.random.default_rng(0), leaf_specs(config)
    v_dkh, o_nhd = (rng.standard_normal(specs[leaf].shape[1:], np.float32) / 64 for leaf in ("v_ldkh", "o_lnhd"))
    bias_d = fold.leaf("o_bias_ld", 31, {"v_ldkh": v_dkh, "o_lnhd": o_nhd})
    token_d, gates_n = (np.asarray(adapter.trainable[name][i], np.float64) for name, i in TOKEN_AND_LAST_GATES)
    v_nh = gates_n[:, None] * np.einsum("d,dnh->nh", token_d, v_dkh, optimize=True)
    np.testing.assert_allclose(bias_d, np.einsum("nh,nhd->d", v_nh, o_nhd, optimize=True), atol=1e-5)
    assert np.abs(bias_d).max() > 0.01
    assert not fold.leaf("o_bias_ld", 1, {"v_ldkh": v_dkh, "o_lnhd": o_nhd}).any()


@pytest.mark.skipif(not SHARED.exists(), reason="the released files are not beside this checkout")
def test_the_released_files():
    first = load_adapter(SHARED / "alpaca_llama2_7b_aligner1.pth")
    spread = np.std(np.asarray(first.trainable["gates_ln"]), axis=1)
    assert first.num_params == 5056
    np.testing.assert_allclose([spread[0], spread[-1], spread.max()], [0.0206, 0.0464, 0.0740], atol=5e-5)
    assert load_adapter(SHARED / "alpaca_llama2_13b_aligner10.pth").num_params == 52_720
    assert load_adapter(SHARED / "metamath_llama2_7b_aligner10.pth").num_params == 41_920
    assert load_adapter(SHARED / "pku_dpo_llama2_7b_aligner1.pth").num_params == 5056
    with pytest.raises(InputError, match=r"NOT_WEIGHTS\.pth is not a torch file: it is text"):
        load_adapter(SHARED / "alpaca_llama2_7b_aligner10_NOT_WEIGHTS.pth")
