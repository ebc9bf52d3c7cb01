"""Statistics of adapters without their base: gates, common entries, effective rank, names."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import places
import pytest

from aligner_jax.analysis.entries import UPDATES, compare
from aligner_jax.analysis.gates import gates_of
from aligner_jax.analysis.named import load_named, short_names
from aligner_jax.analysis.rank import entropy_rank, fresh_spectrum, participation_ratio, spectra
from aligner_jax.analysis.write import check_folder
from aligner_jax.errors import InputError
from aligner_jax.peft import init_adapter

RELEASED = places.SHARED / "data" / "official_aligners"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="the released files are not beside this checkout")


@pytest.fixture
def aligner(config):
    """Returns an Aligner with these arrays."""

    def make(tokens_pd, gates_ln=None):
        fresh = init_adapter("aligner", config, num_tokens=len(tokens_pd), start_layer=1)
        trainable = {"tokens_pd": jnp.asarray(tokens_pd, jnp.float32)}
        trainable["gates_ln"] = fresh.trainable["gates_ln"] if gates_ln is None else jnp.asarray(gates_ln, jnp.float32)
        return fresh.replace(trainable=trainable)

    return make


def test_gates_have_the_models_layers_and_their_own_spread(aligner):
    gates = gates_of(aligner(np.ones((1, 16)), [[1, 1, 3, 3], [0, 0, 0, 4]]))
    assert gates is not None
    assert gates.layers_l.tolist() == [1, 2]
    assert gates.mean_l.tolist() == [2, 1]
    np.testing.assert_allclose(gates.std_l, [1, math.sqrt(3)], rtol=1e-12)
    assert gates.trend is None


def test_gates_are_as_they_weigh(config, randomized):
    adapter = randomized(init_adapter("llama_adapter", config, start_layer=0, num_tokens=2, tanh=True))
    gates = gates_of(adapter)
    assert gates is not None
    weighing_ln = np.tanh(np.asarray(adapter.trainable["gates_ln"], np.float64))
    np.testing.assert_allclose(gates.gates_ln, weighing_ln, rtol=1e-12)
    assert gates_of(init_adapter("lora", config)) is None


def test_gates_of_tokens_stand_side_by_side(config, randomized):
    adapter = randomized(init_adapter("aligner", config, start_layer=1, num_tokens=3, gates="token"))
    gates, gates_lpn = gates_of(adapter), np.asarray(adapter.trainable["gates_lpn"], np.float64)
    assert gates is not None
    assert (gates.of, gates.layers_l.tolist()) == ("token and head", [1, 2])
    np.testing.assert_array_equal(gates.gates_ln[:, 4:8], gates_lpn[:, 1])
    np.testing.assert_allclose(gates.std_l, gates_lpn.std(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("spreads", "trend"),
    [
        ([1, 2, 5], 1), ([5, 2, 1], -1), ([1, 3, 2], 0.5), ([0, 0, 0], None),
        # Ties between layers count as neither growth nor decline.
        ([0, 0, 1], math.sqrt(3) / 2), ([1, 1, 1], None),
    ],
)  # fmt: skip
def test_the_trend_is_that_of_ranks(config, spreads, trend):
    fresh = init_adapter("aligner", config, start_layer=0)
    gates_ln = np.outer(spreads, [1, -1, 1, -1])
    gates = gates_of(fresh.replace(trainable={**fresh.trainable, "gates_ln": jnp.asarray(gates_ln, jnp.float32)}))
    assert gates is not None
    assert gates.trend == pytest.approx(trend, abs=1e-12) if trend is not None else gates.trend is None


@needs_released
def test_the_released_gates_spread_as_is_known():
    gates = gates_of(load_named([str(RELEASED / "alpaca_llama2_7b_aligner1.pth")])[0].adapter)
    assert gates is not None
    spread = dict(zip(gates.layers_l.tolist(), gates.std_l, strict=True))
    assert (round(spread[2], 4), round(spread[31], 4), round(max(spread.values()), 4)) == (0.0206, 0.0464, 0.0740)


@needs_released
def test_most_entries_of_two_released_aligners_are_the_same():
    names = ("alpaca_llama2_7b_aligner1", "pku_dpo_llama2_7b_aligner1", "alpaca_llama2_13b_aligner10")
    first, second, wider = (one.adapter for one in load_named([str(RELEASED / f"{name}.pth") for name in names]))
    tokens = compare(first, second)[0]
    assert (tokens.array, tokens.entries) == ("tokens_pd", 4096)
    assert tokens.identical == 3275 / 4096
    assert tokens.by_chance is not None
    assert tokens.by_chance < 0.01
    assert compare(first, wider) == []


def test_entries_are_the_same_bit_for_bit_or_not_at_all(aligner):
    tokens_pd = np.random.default_rng(0).standard_normal((2, 16)).astype(np.float32)
    tokens_pd[0, 0] = 0.0
    moved_pd = tokens_pd.copy()
    moved_pd[0, 0] = -0.0
    moved_pd[1, 3:6] = np.nextafter(moved_pd[1, 3:6], 9)
    tokens, gates = compare(aligner(tokens_pd), aligner(moved_pd))
    assert (tokens.array, tokens.identical, tokens.by_chance) == ("tokens_pd", 28 / 32, 0)
    assert tokens.cosine == pytest.approx(1, abs=1e-12)
    # Gates at zero have no direction.
    assert (gates.array, gates.identical, gates.cosine) == ("gates_ln", 1, None)


def test_chance_is_a_shift_within_a_token(aligner):
    tokens_pd = np.repeat([[1.0], [2.0]], 16, axis=1)
    tokens = compare(aligner(tokens_pd), aligner(tokens_pd))[0]
    assert (tokens.identical, tokens.by_chance) == (1, 1)
    tokens_pd = np.tile([[1.0, 2.0]], (2, 8))
    tokens = compare(aligner(tokens_pd), aligner(tokens_pd))[0]
    assert (tokens.identical, tokens.by_chance) == (1, 0)


def test_tokens_that_both_have_are_compared(aligner):
    tokens_pd = np.random.default_rng(0).standard_normal((3, 16))
    found = {one.array: one for one in compare(aligner(tokens_pd), aligner(tokens_pd[:1]))}
    assert (found["tokens_pd"].entries, found["tokens_pd"].identical) == (16, 1)


def test_updates_are_compared_as_products(config, randomized):
    first, second = (randomized(init_adapter("lora", config, rank=3, targets=("q", "o")), key) for key in (1, 2))
    turn_rr = np.random.default_rng(3).standard_normal((3, 3))
    turned = dict(first.trainable)
    for name, leaf in first.trainable.items():
        if name.startswith("a_"):
            turned[name] = jnp.einsum("...r,rs->...s", leaf, jnp.asarray(turn_rr, jnp.float32))
        else:
            turned[name] = jnp.einsum("rs,ls...->lr...", jnp.asarray(np.linalg.inv(turn_rr), jnp.float32), leaf)
    by_array = {one.array: one for one in compare(first, first.replace(trainable=turned))}
    assert by_array[UPDATES].cosine == pytest.approx(1, abs=1e-11)
    assert by_array["a_q_ldr"].cosine != pytest.approx(1, abs=0.1)

    def dense(adapter):
        t = {name: np.asarray(x, np.float64) for name, x in adapter.trainable.items()}
        q, o = (
            np.einsum("ldr,lrnh->ldnh", t["a_q_ldr"], t["b_q_lrnh"]),
            np.einsum("lnhr,lrd->lnhd", t["a_o_lnhr"], t["b_o_lrd"]),
        )
        return np.concatenate([q.ravel(), o.ravel()]), q

    (x, q), (y, _) = dense(first), dense(second)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert compare(first, second)[-1].cosine == pytest.approx(expected, abs=1e-15)
    sigma_lr = np.linalg.svd(q.reshape(len(q), 16, -1), compute_uv=False)[:, :3]
    np.testing.assert_allclose(spectra(first)["update of q"], sigma_lr, rtol=1e-12)


def test_effective_ranks():
    sigma_mp = np.asarray([[1.0, 1, 1, 1], [2, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])
    of_two = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    np.testing.assert_allclose(entropy_rank(sigma_mp), [4, 1, of_two, 0], rtol=1e-12)
    np.testing.assert_allclose(participation_ratio(sigma_mp), [4, 1, 100 / 82, 0], rtol=1e-12)


def test_fresh_tokens_span_nearly_all_directions():
    sigma_p = fresh_spectrum(10, 4096)
    # Singular values of normal numbers are within √4096 ± √10, and their squares add up to about the number of entries.
    assert math.sqrt(4096) - math.sqrt(10) < sigma_p[-1] < sigma_p[0] < math.sqrt(4096) + math.sqrt(10)
    assert np.square(sigma_p).sum() == pytest.approx(10 * 4096, rel=0.03)
    assert 9.99 < entropy_rank(sigma_p) < 10


def test_matrices_of_each_method(config, aligner):
    np.testing.assert_allclose(spectra(aligner(2 * np.eye(16)[:3]))["tokens"], [[2, 2, 2]], rtol=1e-12)
    shapes = {
        name: sigma.shape
        for method in ("llama_adapter", "prefix")
        for name, sigma in spectra(init_adapter(method, config, num_tokens=2, start_layer=1)).items()
    }
    assert shapes == {"tokens": (2, 2), "keys": (2, 2), "values": (2, 2)}
    assert spectra(init_adapter("bias", config)) == {}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/adapter.safetensors"], ["a"]),
        (["x/alpaca.pth"], ["alpaca"]),
        (["runs/a/sft/adapter.safetensors", "runs/b/sft/adapter.safetensors"], ["a", "b"]),
        (["runs/a/adapter.safetensors", "x/alpaca.pth"], ["a", "alpaca"]),
        (["one/a/1/b.pth", "two/a/1/c.pth", "two/a/2/b.pth"], ["1/b", "1/c", "2/b"]),
        (["x/base.pth", "y/a.pth"], ["x/base", "y/a"]),
        (["x/a.pth", "x/a.safetensors"], ["x/a.pth", "x/a.safetensors"]),
        (["y/x/a.pth", "y/x/a.safetensors", "z/x/a.pth"], ["y/x/a.pth", "y/x/a.safetensors", "z/x/a.pth"]),
    ],
)
def test_names_tell_adapters_apart(paths, names):
    assert short_names([Path(path) for path in paths]) == names


def test_a_folders_name_is_whole(tmp_path):
    paths = [tmp_path / name for name in ("lora-0.1", "lora-0.3")]
    for path in paths:
        path.mkdir()
    assert short_names(paths) == ["lora-0.1", "lora-0.3"]


def test_nothing_is_compared_with_itself():
    with pytest.raises(InputError, match=r"x/\.\./a\.pth is given twice"):
        short_names([Path("x/../a.pth"), Path("a.pth")])


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b"])
def test_a_path_that_can_be_none_is_one_sentence(path: str):
    with pytest.raises(InputError, match="cannot be read: "):
        load_named([path])
    with pytest.raises(InputError, match="cannot be made a folder: "):
        check_folder(Path(path))
