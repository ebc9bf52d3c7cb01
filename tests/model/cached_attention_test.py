"""A decoding step by the kernel that reads filled slots only: results, and where it is in the program."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import aligner_jax as aj
from aligner_jax.model import cache as cache_module
from aligner_jax.model import cached_attention
from aligner_jax.model.cache import KVCache, empty_cache, forward_cached, prefill_cache
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.kernels import ragged
from aligner_jax.model.params import Params, abstract_params
from aligner_jax.peft import bind, init_adapter
from aligner_jax.planning.compiled import Compiled, chip_of, compile_for
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import sharding

KERNEL = "aligner_attention_decode"
SLOTS = 128
CONFIG = LlamaConfig(
    vocab_size=40, d_model=16, d_mlp=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=64, context_length=SLOTS
)
TOKENS = np.random.default_rng(0).integers(0, 40, (3, 12)).astype(np.int32)
LENGTHS = np.asarray([6, 1, 9], np.int32)


def decoded(params: Params, adapted) -> np.ndarray:
    """Returns hidden states of three steps after prompts of different lengths."""
    _, cache = prefill_cache(params, TOKENS[:, :9], LENGTHS, config=CONFIG, slots=SLOTS, adapted=adapted)
    # A row without tokens, as in a state that nothing was inserted into.
    cache, outs = cache.replace(lengths_b=jnp.asarray(LENGTHS).at[1].set(0)), []
    step = jax.jit(functools.partial(forward_cached, config=CONFIG, adapted=adapted))
    for i in range(3):
        hidden_b1d, cache = step(params, TOKENS[:, 9 + i : 10 + i], cache)
        outs.append(np.asarray(hidden_b1d, np.float32))
    return np.concatenate(outs, axis=1)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list]:
    """Returns a function that lets the CPU run the TPU's path from then on; it returns the list of kernel calls."""
    calls = []

    def attend(*arguments, **options):
        calls.append(arguments)
        return ragged_attend(*arguments, **options, interpret=True)

    def begin() -> list:
        monkeypatch.setattr(ragged, "attend", attend)
        monkeypatch.setattr(cached_attention, "_attend_all_slots", cached_attention._attend_filled_slots)
        monkeypatch.setattr(
            cache_module, "blocks_to_read", lambda k_lbksh, lengths_b: ragged.filled_blocks(lengths_b, k_lbksh)
        )
        return calls

    ragged_attend = ragged.attend
    return begin


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("methods", [[], [("aligner", 1), ("aligner", 3)], [("prefix", 4), ("aligner", 2)]])
def test_a_step_equals_that_of_the_path_that_reads_all_slots(
    methods: list, dtype: str, simulated, random_params, randomized
):
    params = jax.tree.map(lambda x: x.astype(dtype), random_params(CONFIG))
    adapters = [randomized(init_adapter(name, CONFIG, num_tokens=p, start_layer=1)) for name, p in methods]
    adapted = bind(adapters, params, CONFIG).adapted
    wanted = decoded(params, adapted)
    calls = simulated()
    actual = decoded(params, adapted)
    assert calls
    assert calls[-1][3].shape == (3, 2, 5 if methods[:1] == [("prefix", 4)] else 1, 64)
    np.testing.assert_allclose(actual, wanted, atol=2e-5 if dtype == "float32" else 5e-2)


def lowered(t: int, platform: str, config: LlamaConfig = CONFIG, dtype: str = "bfloat16", slots: int = SLOTS) -> str:
    cache = jax.eval_shape(lambda: empty_cache(config, 3, slots, jnp.dtype(dtype)))
    step = jax.jit(functools.partial(forward_cached, config=config))
    arguments = abstract_params(config, dtype), jax.ShapeDtypeStruct((3, t), jnp.int32), cache
    return step.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def test_only_a_program_for_tpus_holds_the_kernel():
    assert KERNEL in lowered(1, "tpu")
    for text in (lowered(1, "cpu"), lowered(1, "cuda")):
        assert KERNEL not in text
        assert "tpu_custom_call" not in text


def test_several_tokens_and_unsupported_shapes_read_all_slots(config: LlamaConfig):
    assert KERNEL not in lowered(2, "tpu")
    assert KERNEL not in lowered(1, "tpu", config=config)
    assert KERNEL not in lowered(1, "tpu", slots=100)


def test_the_slots_that_a_step_reads_depend_on_the_heads_of_a_device():
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    devices = topology_devices("v5e:2x4")

    def read(filled: int, kv_heads: int, tensor: int, h: int = 128) -> int:
        cache = jax.ShapeDtypeStruct((2, 8, kv_heads, 2048, h), jnp.bfloat16)
        with sharding.use(sharding.make_mesh(data=1, fsdp=8 // tensor, tensor=tensor, devices=devices)):
            return cached_attention.slots_read(filled, cache)

    assert [read(1100, 32, tensor) for tensor in (1, 4, 8)] == [1152, 1152, 1280]
    # The mesh does not give every device whole heads, or the kernel does not take them.
    assert read(1100, 4, 8) == 2048
    assert read(1100, 32, 1, h=96) == 2048
    assert cached_attention.slots_read(1100, jax.ShapeDtypeStruct((2, 8, 1, 2048, 128), jnp.bfloat16)) == 1536


MESHES = {"one chip": (1, 1, 1, 4), "tensor": (8, 1, 8, 32), "fsdp": (8, 8, 1, 32)}
"""Devices, of which along fsdp and tensor, and rows."""
LLAMA = aj.llama_config("llama_7b")
SMALL = aj.llama_config("smollm2_135m")


def compiled(config: LlamaConfig, mesh: jax.sharding.Mesh, rows: int, slots: int) -> Compiled:
    """Returns a decoding step compiled by the TPU compiler, with a donated cache."""
    axes = PartitionSpec(None, *(name if mesh.shape[name] > 1 else None for name in ("fsdp", "tensor")))

    def struct(x, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    cache: KVCache = jax.eval_shape(lambda: empty_cache(config, rows, slots, jnp.dtype("bfloat16")))
    alone = sharding.replicated(mesh)
    cache = jax.tree.map(lambda x: struct(x, NamedSharding(mesh, axes) if x.ndim == 5 else alone), cache)
    split = sharding.param_shardings(config, mesh, sharding.RULES)
    params = jax.tree.map(struct, abstract_params(config, "bfloat16"), split)
    token = jax.ShapeDtypeStruct((rows, 1), jnp.int32, sharding=alone)
    step = jax.jit(functools.partial(forward_cached, config=config), donate_argnums=2)
    with sharding.use(mesh):
        return compile_for(chip_of(mesh.devices.flat[0]), step, params, token, cache)


def cache_copies(program: Compiled, config: LlamaConfig, slots: int) -> list[str]:
    """Returns the lines that copy or transpose keys or values of all slots."""
    assert program.text is not None
    shapes = [f"{slots},{config.head_dim}]", f"{config.head_dim},{slots}]"]
    copies = [line for line in program.text.splitlines() if re.search(r" (copy|copy-start|transpose)\(", line)]
    return [line for line in copies if any(shape in line.split("=")[1].split("(%")[0] for shape in shapes)]


@pytest.mark.parametrize(
    ("config", "where", "slots"),
    [(LLAMA, "one chip", 1024), (LLAMA, "tensor", 1024), (LLAMA, "fsdp", 1024), (SMALL, "one chip", 1024)],
    ids=["7B, one chip", "7B, tensor", "7B, fsdp", "135M, one chip"],
)
def test_the_tpu_compiler_copies_no_cache(config: LlamaConfig, where: str, slots: int, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    count, fsdp, tensor, rows = MESHES[where]
    mesh = sharding.make_mesh(data=1, fsdp=fsdp, tensor=tensor, devices=topology_devices("v5e:2x4", count))
    filled = compiled(config, mesh, rows, slots)
    assert filled.fits
    assert KERNEL in (filled.text or "")
    assert cache_copies(filled, config, slots) == []
    monkeypatch.setattr(cache_module, "blocks_to_read", lambda *_: None)
    all_slots = compiled(config, mesh, rows, slots)
    assert KERNEL not in (all_slots.text or "")
    assert filled.peak_bytes <= 1.01 * all_slots.peak_bytes
