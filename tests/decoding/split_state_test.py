"""The decoding loop on eight devices: collectives, by the real TPU compiler, and inserted rows."""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest

from aligner_jax.decoding import programs
from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.decoding.state import State, empty_state, insert
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.llama import abstract_params
from aligner_jax.peft import Bound
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.planning.collectives import Collective
from aligner_jax.planning.compiled import chip_of, compile_for
from aligner_jax.planning.engine_programs import EnginePrograms
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime import sharding

MODEL = LlamaConfig(
    vocab_size=2048, d_model=256, d_mlp=512, num_layers=1, num_heads=8, num_kv_heads=8, head_dim=128,
    context_length=512,
)  # fmt: skip
ROWS, NEW_ROWS, SLOTS, NEW_SLOTS = 16, 8, 256, 128
MESHES = {"tensor": (1, 1, 8), "fsdp": (1, 8, 1)}
INSERTED = [9, 0, 15, 4, 5, 10, 1, 2]


def structs(tree: Any, shardings: Any) -> Any:
    """Returns shapes and dtypes with shardings: one sharding for all leaves, or one for each."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def abstract_state(mesh, rows: int, slots: int, model: LlamaConfig = MODEL) -> State:
    """Returns the shapes of a state, sharded as the engine's programs take and return it."""
    state = jax.eval_shape(lambda: empty_state(model, rows, slots, jnp.bfloat16))
    heads = "tensor" if mesh.shape["tensor"] > 1 else None
    axes = jax.sharding.PartitionSpec(None, "fsdp" if heads is None else None, heads)
    cache, alone = jax.sharding.NamedSharding(mesh, axes), sharding.replicated(mesh)
    return structs(state, jax.tree.map(lambda x: cache if x.ndim == 5 else alone, state))


@pytest.fixture(scope="module", params=MESHES)
def mesh(request):
    pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")
    data, fsdp, tensor = MESHES[request.param]
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=topology_devices("v5e:2x4"))


def collectives_of(mesh, jitted, *arguments, **static) -> list[Collective]:
    sent = compile_for(chip_of(mesh.devices.flat[0]), jitted, *arguments, **static).sent
    assert sent is not None
    return sent


def test_sampling_gathers_the_logits_once_and_its_loop_sends_nothing(mesh):
    params = structs(abstract_params(MODEL, "bfloat16"), sharding.param_shardings(MODEL, mesh, sharding.RULES))
    state, stops = abstract_state(mesh, ROWS, SLOTS), jax.ShapeDtypeStruct((2,), jnp.int32)
    count, ended = 4, jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    with sharding.use(mesh):
        sent = collectives_of(
            mesh, programs.decode, params, structs(Bound(), sharding.replicated(mesh)), state,
            *structs((ended, stops), sharding.replicated(mesh)), config=MODEL, count=count,
        )  # fmt: skip
    # The bisection of top-k would run its collectives 32 times per token.
    assert max(each.runs for each in sent) <= count
    assert {each.kind for each in sent} <= {"all-gather", "all-reduce"}
    logits = [each for each in sent if each.nbytes == 4 * ROWS * MODEL.vocab_size]
    assert [each.kind for each in logits] == (["all-gather"] if mesh.shape["tensor"] > 1 else [])


def test_programs_take_the_states_that_others_return(mesh):
    """A program that returned another layout would make the next one move the whole cache, or compile again."""
    params = structs(abstract_params(MODEL, "bfloat16"), sharding.param_shardings(MODEL, mesh, sharding.RULES))
    capacity = Capacity(tokens=4, rank=2, factors=("q_ldnh",), biases=("o_bias_ld",))
    options = EngineOptions(
        rows=ROWS, slots=SLOTS, longest_part=128, alternatives=4, has_penalty=True, capacity=capacity, places=8
    )
    with sharding.use(mesh):
        engine = EnginePrograms(chip_of(mesh.devices.flat[0]), mesh, MODEL, params, options)
        for program in (engine.admit(100, 50), engine.decode(1), engine.decode(4)):
            returned = program.output_shardings[0]
            for taken, where in zip(jax.tree.leaves(engine.state), jax.tree.leaves(returned), strict=True):
                assert taken.sharding.is_equivalent_to(where, taken.ndim)
    assert "fsdp" in str(engine.state.cache.k_lbksh.sharding.spec) or mesh.shape["tensor"] > 1


def test_inserted_rows_are_gathered_once_a_layer_at_a_time(mesh):
    model = dataclasses.replace(MODEL, num_layers=3)
    state, begun = (abstract_state(mesh, *sizes, model) for sizes in ((ROWS, SLOTS), (NEW_ROWS, NEW_SLOTS)))
    rows = jax.ShapeDtypeStruct((NEW_ROWS,), jnp.int32)
    with sharding.use(mesh):
        sent = collectives_of(
            mesh, jax.jit(insert, donate_argnums=0), state, begun, structs(rows, sharding.replicated(mesh))
        )
    nbytes = begun.cache.k_lbksh.size * 2
    large = [each for each in sent if each.nbytes > 1024]
    if mesh.shape["tensor"] > 1:
        assert large == []
    else:
        assert {each.kind for each in large} == {"all-gather"}
        assert sum(each.nbytes * each.runs for each in large) == 2 * nbytes
        assert {each.nbytes for each in large} == {nbytes // 3}


def inserted() -> dict[str, list]:
    """Returns keys, values and tokens of states after insertions, on one device and on meshes."""
    config = LlamaConfig(
        vocab_size=8, d_model=8, d_mlp=8, num_layers=2, num_heads=8, num_kv_heads=8, head_dim=2, context_length=8
    )
    found = {}
    for name, (data, fsdp, tensor) in {"one": (1, 1, 1), **MESHES}.items():
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
        found[name] = []
        for rows in (INSERTED, INSERTED[:3]):
            with sharding.use(mesh):
                state = jax.jit(functools.partial(filled, config, 16, 6, 0.0))()
                new = jax.jit(functools.partial(filled, config, len(rows), 4, 1e4))()
                state = jax.jit(insert, donate_argnums=0)(state, new, jnp.asarray(rows))
            found[name] += [np.asarray(x).tolist() for x in (state.cache.k_lbksh, state.cache.v_lbksh, state.token_b)]
    return found


def filled(config: LlamaConfig, rows: int, slots: int, first: float) -> State:
    """Returns a state whose arrays hold different numbers."""
    state = empty_state(config, rows, slots, jnp.float32)
    numbers = jnp.arange(state.cache.k_lbksh.size, dtype=jnp.float32).reshape(state.cache.k_lbksh.shape)
    cache = state.cache.replace(k_lbksh=state.cache.k_lbksh + first + numbers, v_lbksh=state.cache.v_lbksh - numbers)
    return state.replace(cache=cache, token_b=jnp.arange(rows, dtype=jnp.int32) + int(first))


def test_rows_are_inserted_on_a_mesh_as_on_one_device():
    child = many_devices.run([sys.executable, __file__], 8, JAX_PLATFORMS="cpu")
    assert child.returncode == 0, child.stderr
    one, *on_meshes = json.loads(child.stdout).values()
    for rows, k_lbksh, tokens_b in ((INSERTED, one[0], one[2]), (INSERTED[:3], one[3], one[5])):
        is_new_bs = np.asarray(k_lbksh)[0, :, 0, :, 0] >= 1e4
        np.testing.assert_array_equal(is_new_bs, np.isin(np.arange(16), rows)[:, None] & (np.arange(6) < 4))
        np.testing.assert_array_equal(np.asarray(tokens_b)[rows], 1e4 + np.arange(len(rows)))
    for found in on_meshes:
        for mine, expected in zip(found, one, strict=True):
            np.testing.assert_array_equal(mine, expected)


if __name__ == "__main__":
    print(json.dumps(inserted()))
