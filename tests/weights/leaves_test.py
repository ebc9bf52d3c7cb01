"""Bases loaded in parts by two processes of four devices each, and the arguments of `finish`."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from gguf_files import converted, write_gguf
from jax.sharding import NamedSharding, PartitionSpec
from model_folders import CONFIG, draw, meta_params, meta_parts, write_hf, write_meta

from aligner_jax.errors import InputError
from aligner_jax.runtime.sharding import make_mesh, param_shardings, use
from aligner_jax.weights import orbax
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import load_base, open_base
from aligner_jax.weights.leaves import leaf_specs, make_on_devices
from aligner_jax.weights.source import Source

PROCESSES, DEVICES = 2, 4
# Meshes of (data, fsdp) over all devices, and rules for a mesh of (2, 2) of one process's devices.
MESHES = [(1, 8), (2, 4), (8, 1)]
RULES = [
    (("embed", "fsdp"), ("vocab", "data"), ("norm", "data")),
    (("head_dim", ("data", "fsdp")), ("mlp", ("fsdp", "data"))),
    (("heads", "data"), ("kv_heads", "data"), ("vocab", "fsdp")),
]


def wrong_leaves(path: Path, dtype: str, meshes: list[tuple[int, int]], rules: list) -> list[str]:
    """Returns the leaves in this process whose parts, shapes, dtypes or shardings are wrong."""
    whole = load_base(path, dtype).params
    asked = [functools.partial(param_shardings, mesh=make_mesh(data=data, fsdp=fsdp)) for data, fsdp in meshes]
    local = make_mesh(data=2, fsdp=2, devices=jax.local_devices())
    asked += [functools.partial(param_shardings, mesh=local, rules=rule) for rule in rules]
    wrong = []
    for number, shardings in enumerate(asked):
        with use(local) if number % 2 else contextlib.nullcontext():
            params = load_base(path, dtype, shardings=shardings).params
        leaves = zip(
            jax.tree.leaves_with_path(params), jax.tree.leaves(shardings(CONFIG)), jax.tree.leaves(whole), strict=True
        )
        for (name, leaf), sharding, full in leaves:
            equal = all(np.array_equal(shard.data, full[shard.index]) for shard in leaf.addressable_shards)
            if leaf.sharding != sharding or leaf.dtype != full.dtype or leaf.shape != full.shape or not equal:
                wrong.append(f"{path.name} {dtype} {number} {jax.tree_util.keystr(name)}")
    return wrong


def bytes_read(path: Path, data: int, fsdp: int) -> dict[str, int]:
    """Returns the bytes that this process reads of each leaf's tensors of an HF folder, on a mesh of all devices."""
    read, plain = Counter(), Source.read

    def counting(source: Source, start: int = 0, stop: int | None = None) -> np.ndarray:
        rows = plain(source, start, stop)
        read[source.name.split(".")[-2]] += rows.nbytes
        return rows

    Source.read = counting
    load_base(path, shardings=functools.partial(param_shardings, mesh=make_mesh(data=data, fsdp=fsdp)))
    Source.read = plain
    return dict(read)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of the two processes."""
    folder, tensors = tmp_path_factory.mktemp("models"), draw()
    write_hf(folder / "hf", CONFIG, tensors, files=3)
    write_meta(folder / "meta", meta_params(CONFIG), meta_parts(CONFIG, tensors, 4))
    write_gguf(folder / "model.gguf", *converted(write_hf(folder / "one", CONFIG, tensors)))
    checkpoint = open_base(folder / "hf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax, "_BLOCK_BYTES", 1)
        orbax.write_orbax(folder / "orbax", CONFIG, open_parts(checkpoint, "float32"), "float32", {})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = {"PYTHONPATH": places.PYTHONPATH, "JAX_PLATFORMS": "cpu"}
    env = {**os.environ, **paths, "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
    commands = [[sys.executable, __file__, address, str(number), str(folder)] for number in range(PROCESSES)]
    children = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_every_part_is_that_of_the_whole(found):
    assert [process["wrong"] for process in found] == [[], []]


def test_a_process_reads_the_rows_of_its_own_parts_and_each_once(found):
    whole = Counter()
    for name, tensor in draw().items():
        whole[name.split(".")[-2]] += tensor.nbytes
    by_rows = {"o_proj", "down_proj"}
    for process in found:
        # This process has half of the sharded axis: rows of two matrices, columns of the others.
        halves = {name: nbytes // (2 if name in by_rows else 1) for name, nbytes in whole.items()}
        assert process["read"]["1 8"] == halves
        # Here the process has all weights, replicated over its four devices.
        assert process["read"]["2 4"] == whole
        assert process["read"]["8 1"] == whole


def largest_first(names: list[str]) -> bool:
    sizes = [int(np.prod(leaf_specs(CONFIG)[name].shape)) for name in names]
    return sizes == sorted(sizes, reverse=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", CONFIG, draw())


def test_finish_takes_each_leaf_and_gives_what_takes_its_place(model):
    given = {}

    def finish(name: str, leaf: jax.Array) -> dict[str, jax.Array] | None:
        given[name] = leaf.shape
        return None if name == "norm_d" else {"half": leaf / 2}

    shardings = param_shardings(CONFIG, make_mesh())
    plain, changed = load_base(model), load_base(model, shardings=shardings, finish=finish)
    assert given == {name: spec.shape for name, spec in leaf_specs(CONFIG).items()}
    assert largest_first(list(given))
    assert changed.params.norm_d is None
    np.testing.assert_array_equal(changed.params.layers.q_ldnh["half"], plain.params.layers.q_ldnh / 2)
    np.testing.assert_array_equal(changed.params.head_dv["half"], plain.params.head_dv / 2)


def test_leaves_that_finish_gives_up_are_gone_before_the_next(model):
    alive = []

    def finish(name: str, leaf: jax.Array) -> None:
        alive.append(sum(array.shape == leaf.shape and array.dtype == jnp.bfloat16 for array in jax.live_arrays()))

    load_base(model, "bfloat16", finish=finish)
    assert max(alive) == 1


def test_shardings_of_another_model_are_refused(model):
    shardings = param_shardings(CONFIG, make_mesh())
    with pytest.raises(InputError, match="the shardings are of another model: head_dv is in one of the two only"):
        load_base(model, shardings=shardings.replace(head_dv=None))


def held_at_once() -> list[int]:
    """Returns the numbers of values on the host while an array is made of which each of four devices has 128."""
    held = []

    def parts(indexes) -> list[np.ndarray]:
        made = [np.arange(8 * 64, dtype=np.float32).reshape(8, 64)[tuple(index)] for index in indexes]
        held.append(sum(part.size for part in made))
        return made

    sharding = NamedSharding(make_mesh(devices=jax.local_devices()), PartitionSpec(None, "fsdp"))
    array = make_on_devices((8, 64), sharding, np.dtype(np.float32), parts)
    np.testing.assert_array_equal(array, np.arange(8 * 64).reshape(8, 64))
    return held


def test_a_host_has_one_parts_worth_at_a_time(found):
    assert [process["held"] for process in found] == [[128] * 4] * 2


def main(address: str, process: str, folder: Path) -> None:
    # `runtime.distributed` does the same: with cached programs several processes wait for each other forever.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.distributed.initialize(address, PROCESSES, int(process))
    assert (jax.device_count(), jax.local_device_count()) == (PROCESSES * DEVICES, DEVICES)
    wrong = wrong_leaves(folder / "hf", "float32", MESHES, RULES)
    wrong += wrong_leaves(folder / "meta", "bfloat16", MESHES[:1], RULES[:2])
    wrong += wrong_leaves(folder / "model.gguf", "float32", MESHES[:1], RULES[1:2])
    wrong += wrong_leaves(folder / "orbax", "bfloat16", MESHES[:1], RULES[:1])
    read = {f"{data} {fsdp}": bytes_read(folder / "hf", data, fsdp) for data, fsdp in MESHES}
    print(json.dumps({"wrong": wrong, "read": read, "held": held_at_once()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
