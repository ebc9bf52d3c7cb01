"""Rows over one, two and four devices, each as if in its own process: together they equal one device's batches."""

import itertools
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import places
import pytest

from aligner_jax.data.pair_rows import train_pair_batches
from aligner_jax.data.pipeline import train_batches
from aligner_jax.errors import InputError
from aligner_jax.objectives import batch  # noqa: F401 (makes pytrees of batches)
from aligner_jax.runtime import distributed, sharding
from aligner_jax.runtime.global_batch import global_batch

DOCUMENTS, LENGTH, ROWS, STEPS, RESUME = 48, 16, 8, 12, 5
COUNTS = (1, 2, 4)


def make_documents() -> list[dict]:
    """Returns documents as long as a row, so that batches fill an epoch; their first tokens are distinct."""
    tokens = [np.concatenate([[100 + i], np.full(LENGTH - 1, 7)]).astype(np.int32) for i in range(DOCUMENTS)]
    return [{"tokens": each, "loss_mask": np.ones(LENGTH, bool)} for each in tokens]


def make_batches(kind: str):
    documents = make_documents()
    if kind != "pairs":
        return train_batches(documents, batch_size=ROWS, sequence_length=LENGTH, seed=3, packing=kind == "packed")
    pairs = [{"chosen": a, "rejected": b} for a, b in zip(documents[::2], documents[1::2], strict=True)]
    return train_pair_batches(pairs, batch_size=ROWS, sequence_length=LENGTH, seed=3, packing=False)


def documents_by_device(kind: str) -> dict[str, list[list[list[int]]]]:
    """Returns the documents in the rows of each step and device, by the number of devices."""
    found, middle = {}, {}
    for count in COUNTS:
        mesh = sharding.make_mesh(data=count, fsdp=1, devices=jax.devices()[:count])
        split = sharding.batch_sharding(mesh)
        batches, rows = make_batches(kind), []
        for step in range(STEPS):
            if step == RESUME:
                # Resumes from the state of the run with the first number of devices.
                middle[count] = json.dumps(batches.get_state())
                batches = make_batches(kind)
                batches.set_state(json.loads(next(iter(middle.values()))))
            tokens_bt = global_batch(next(batches), split).tokens_bt
            shards = sorted(tokens_bt.addressable_shards, key=lambda shard: shard.device.id)
            rows.append([np.asarray(shard.data)[:, 0].tolist() for shard in shards])
        found[str(count)] = rows
    return found


@pytest.fixture(scope="module")
def found_by_child() -> dict:
    environment = {
        **os.environ,
        "PYTHONPATH": places.PYTHONPATH,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={max(COUNTS)}",
    }
    child = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize("kind", ["packed", "alone", "pairs"])
def test_no_document_comes_twice_and_none_is_lost(found_by_child, kind: str):
    for count, steps in found_by_child[kind].items():
        assert all(len(rows) == ROWS // int(count) for devices in steps for rows in devices)
        assert all(len(devices) == int(count) for devices in steps)
        flat = [document for devices in steps for rows in devices for document in rows]
        for epoch in (flat[:DOCUMENTS], flat[DOCUMENTS:]):
            assert sorted(epoch) == [100 + i for i in range(DOCUMENTS)]


@pytest.mark.parametrize("kind", ["packed", "alone", "pairs"])
def test_the_batches_are_those_of_one_process_also_after_a_resume(found_by_child, kind: str):
    batches = make_batches(kind)
    wanted = [next(batches).tokens_bt[:, 0].tolist() for _ in range(STEPS)]
    for steps in found_by_child[kind].values():
        assert [list(itertools.chain(*devices)) for devices in steps] == wanted


@pytest.mark.parametrize("count", COUNTS)
def test_processes_have_every_document_once_between_them(count: int):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": places.PYTHONPATH, "JAX_PLATFORMS": "cpu"}
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "joined"], env={**environment, **joined, "JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    ends = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0] * count, ends
    # JAX's CPU backend prints its connections first.
    of_processes = [json.loads(output.splitlines()[-1]) for output, _ in ends]
    assert all(len(rows) == ROWS // count for steps in of_processes for rows in steps)
    together = [list(itertools.chain(*rows)) for rows in zip(*of_processes, strict=True)]
    flat = list(itertools.chain(*together))
    for epoch in (flat[:DOCUMENTS], flat[DOCUMENTS:]):
        assert sorted(epoch) == [100 + i for i in range(DOCUMENTS)]
    batches = make_batches("alone")
    assert together == [next(batches).tokens_bt[:, 0].tolist() for _ in range(STEPS)]


def test_rows_that_the_mesh_does_not_divide_are_named():
    mesh = jax.sharding.AbstractMesh((3, 1), ("data", "fsdp"))
    with pytest.raises(InputError, match=r"^tokens_bt of a batch has 8 rows, which the mesh .*'data': 3.* does not"):
        global_batch(next(make_batches("alone")), sharding.batch_sharding(mesh))


def documents_of_this_process() -> list[list[int]]:
    """Returns the documents in this process's rows of each step."""
    distributed.initialize()
    split, batches = sharding.batch_sharding(sharding.make_mesh()), make_batches("alone")
    arrays = [global_batch(next(batches), split).tokens_bt for _ in range(STEPS)]
    return [[int(x) for shard in each.addressable_shards for x in np.asarray(shard.data)[:, 0]] for each in arrays]


if __name__ == "__main__" and sys.argv[1:] == ["joined"]:
    print(json.dumps(documents_of_this_process()))
elif __name__ == "__main__":
    print(json.dumps({kind: documents_by_device(kind) for kind in ("packed", "alone", "pairs")}))
