"""The fingerprint: an independent computation of it, and the changes that must and must not affect it."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest

from aligner_jax.files.identity import later
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.fingerprint import fingerprint, fingerprint_of_parts
from aligner_jax.weights.hf import load_hf, open_hf

MODELS = places.GOLDENS / "models"
MASK = 2**32 - 1


@pytest.fixture(scope="module")
def base() -> tuple[LlamaConfig, Params]:
    return load_hf(MODELS / "wide_head")


def scattered(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    return ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK


def reference(config: LlamaConfig, params: Params) -> str:
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        first = second = 0
        for i, bits in enumerate(np.asarray(leaf).astype(jnp.bfloat16).view(np.uint16).ravel().tolist()):
            weight = scattered(i)
            first += bits * (weight | 1)
            second += bits * (scattered(weight ^ 0x9E3779B9) | 1)
        leaves[jax.tree_util.keystr(path)] = [list(leaf.shape), [first & MASK, second & MASK]]
    content = {"config": dataclasses.asdict(config), "leaves": leaves}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_a_plain_loop_over_the_bits(dtype):
    config, params = load_hf(MODELS / "llama", dtype)
    assert fingerprint(config, params) == reference(config, params)


def test_stays_what_it_was():
    # Published adapters record fingerprints: if this value changes, their own bases refuse all of them.
    expected = "d2cc482281af8e005a239b119323299676838418d265d6e31fc5e2e3cc857223"
    assert fingerprint(*load_hf(MODELS / "llama")) == expected


def test_a_field_that_a_later_release_adds_counts_only_where_it_is_set(base):
    config, params = base
    kind = dataclasses.make_dataclass("Newer", [("window", int, later(0))], bases=(LlamaConfig,), frozen=True)
    newer = kind(**vars(config))
    assert newer.window == 0
    assert fingerprint(newer, params) == fingerprint(config, params)
    assert fingerprint(dataclasses.replace(newer, window=4096), params) != fingerprint(config, params)


@pytest.mark.parametrize("model", ["bfloat16", "llama", "llama3", "mistral", "sharded", "wide_head"])
def test_layer_by_layer_it_is_the_same(model):
    checkpoint = open_hf(MODELS / model)
    parts = open_parts(checkpoint, checkpoint.stored_dtype)
    assert fingerprint_of_parts(checkpoint.config, parts) == fingerprint(*load_hf(MODELS / model))


def test_float32_and_bfloat16_loads_agree():
    loads = [load_hf(MODELS / name, dtype) for name in ("bfloat16", "llama") for dtype in ("float32", "bfloat16")]
    digests = [fingerprint(*load) for load in loads]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_rounds_as_a_bfloat16_load_does(base):
    config, params = base
    halfway = np.arange(config.d_model, dtype=np.uint32) * 0x10000 + 0x3F808000
    full = jax.tree.map(np.asarray, params).replace(norm_d=halfway.view(np.float32))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), full)
    assert fingerprint(config, jax.device_put(full)) == fingerprint(config, jax.device_put(half))


def test_denormal_weights_are_not_flushed(base):
    config, params = base
    tiny, zero = (params.replace(norm_d=jax.device_put(np.full(config.d_model, x, np.float32))) for x in (1e-39, 0.0))
    assert fingerprint(config, tiny) != fingerprint(config, zero)


def test_one_step_of_one_weight_of_any_leaf_changes_it(base):
    config, params = base
    leaves, treedef = jax.tree.flatten(params)
    seen = {fingerprint(config, params)}
    for number, leaf in enumerate(leaves):
        bits = np.asarray(leaf).view(np.uint32).copy()
        bits.flat[number] ^= 0x10000
        changed = [*leaves[:number], jnp.asarray(bits.view(np.float32)), *leaves[number + 1 :]]
        seen.add(fingerprint(config, jax.tree.unflatten(treedef, changed)))
    assert len(seen) == len(leaves) + 1


def test_order_and_configuration_count(base):
    config, params = base
    swapped = params.replace(embed_vd=params.embed_vd[::-1])
    other = dataclasses.replace(config, rope_theta=20_000.0)
    assert len({fingerprint(config, params), fingerprint(config, swapped), fingerprint(other, params)}) == 3


SHARDED = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from aligner_jax.weights.fingerprint import fingerprint
from aligner_jax.weights.hf import load_hf

config, params = load_hf(Path(sys.argv[1]))
mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
def shard(leaf):
    spec = [None] * (leaf.ndim - 1) + [("x", "y")]
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))
params = jax.tree.map(shard, params)
assert len(params.embed_vd.sharding.device_set) == 4
print(fingerprint(config, params))
"""


def test_sharding_does_not_matter():
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    root = places.ROOT
    command = [sys.executable, "-c", SHARDED, MODELS / "llama"]
    sharded = subprocess.run(command, env=env, cwd=root, check=True, capture_output=True, text=True).stdout.strip()
    assert sharded == fingerprint(*load_hf(MODELS / "llama"))
