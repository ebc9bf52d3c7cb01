"""A folded base that is read in parts equals the adapter over the base."""

import jax.numpy as jnp
import numpy as np
import places
import pytest

import aligner_jax as aj
from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.source import open_stored
from aligner_jax.peft.fold import make_fold
from aligner_jax.weights.fingerprint import fingerprint
from aligner_jax.weights.hf import load_hf
from aligner_jax.weights.hf_write import write_hf
from aligner_jax.weights.orbax import load_orbax, write_orbax

LLAMA = places.GOLDENS / "models" / "llama"


def trained(method: str, config, **options) -> aj.Adapter:
    adapter = aj.init_adapter(method, config, key=1, **options)
    rng = np.random.default_rng(2)
    arrays = {name: jnp.asarray(0.15 * rng.normal(size=x.shape), jnp.float32) for name, x in adapter.trainable.items()}
    return adapter.replace(trainable=arrays)


@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize(("method", "options"), [("aligner", {"start_layer": 1}), ("lora", {"rank": 2}), ("full", {})])
def test_the_written_base_has_the_adapters_logits(tmp_path, form, method, options):
    config, params = load_hf(LLAMA)
    adapter = trained(method, config, **options)
    fold = make_fold([adapter], config)
    parts = folded_parts(open_stored(str(LLAMA)), fold, "float32")
    if form == "hf":
        write_hf(tmp_path, fold.folded_config, parts, "float32")
        again, folded = load_hf(tmp_path)
    else:
        write_orbax(tmp_path / "out", fold.folded_config, parts, "float32", {})
        again, folded = load_orbax(tmp_path / "out")
    tokens = jnp.arange(20, dtype=jnp.int32).reshape(2, 10)
    expected = aj.apply(params, adapter, tokens, config=config)
    assert np.abs(expected - aj.apply(params, None, tokens, config=config)).max() > 0.01
    np.testing.assert_allclose(aj.apply(folded, None, tokens, config=again), expected, atol=2e-5)


def test_unchanged_leaves_are_those_of_the_files():
    config, params = load_hf(LLAMA)
    parts = folded_parts(open_stored(str(LLAMA)), make_fold([trained("aligner", config)], config), "float32")
    index = [[slice(1, 2), slice(None), slice(0, 3)]]
    np.testing.assert_array_equal(parts("gate_ldf", index)[0], params.layers.gate_ldf[1:2, :, :3])


def test_a_part_of_a_changed_leaf_is_that_part():
    config, _ = load_hf(LLAMA)
    parts = folded_parts(open_stored(str(LLAMA)), make_fold([trained("lora", config, rank=2)], config), "float32")
    whole = parts("q_ldnh", [[slice(None)] * 4])[0]
    part = parts("q_ldnh", [[slice(1, 2), slice(2, 5), slice(None), slice(None)]])[0]
    np.testing.assert_array_equal(part, whole[1:2, 2:5])


def test_folding_nothing_keeps_the_fingerprint(tmp_path):
    config, params = load_hf(LLAMA)
    write_hf(tmp_path, config, folded_parts(open_stored(str(LLAMA)), make_fold([], config), "float32"), "float32")
    assert fingerprint(*load_hf(tmp_path)) == fingerprint(config, params)
