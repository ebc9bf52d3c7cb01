import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore
from absl import logging as absl_logging
from jax.experimental import multihost_utils

from aligner_jax.errors import InputError
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.runtime.optim import make_optimizer

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@flax.struct.dataclass
class RunState:
    trainable: dict
    optimizer: optax.OptState
    step: jax.Array


def make_state(seed=0, num_tokens=4):
    keys = jax.random.split(jax.random.key(seed), 3)
    trainable = {"tokens_pd": jax.random.normal(keys[0], (num_tokens, 300)), "gates_ln": jnp.full((3, 2), jnp.nan)}
    low = {"tokens_pd": jax.random.normal(keys[1], (2, 8), jnp.bfloat16)}
    optimizer = (optax.adamw(1e-3).init(trainable), optax.ScaleByAdamState(jnp.int32(7), low, low))
    return RunState(trainable=trainable, optimizer=optimizer, step=jnp.int32(2**30 + seed))


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())


def saved(folder, *steps, keep=2):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step, "nested": [1, "a", None]})


def restored(folder, template=None):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(template or make_state())


def start(command):
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_is_restored_is_bit_equal_to_what_was_saved(tmp_path):
    saved(tmp_path / "new" / "folder", 3)
    step, state, data_state = restored(tmp_path / "new" / "folder")
    assert_same(state, make_state(3))
    assert (step, data_state) == (3, {"position": 3, "nested": [1, "a", None]})


def test_the_state_of_every_optimizer_is_restored(tmp_path):
    trainable = make_state().trainable
    for name in ("lion", "muon"):
        optimizer = make_optimizer(OptimConfig(name=name, gate_rate=2.0, decay_on="tokens", clip=1.0), 5)
        fresh = optimizer.init(trainable)
        _, moved = optimizer.update(jax.tree.map(jnp.ones_like, trainable), fresh, trainable)
        with Checkpoints(tmp_path / name) as checkpoints:
            checkpoints.save(1, moved, {})
        _, state, _ = restored(tmp_path / name, fresh)
        assert_same(state, moved)


def test_an_empty_folder_holds_no_checkpoint(tmp_path):
    assert restored(tmp_path) is None


def test_the_newest_are_kept_and_nothing_else(tmp_path):
    saved(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["10", "3"]
    assert restored(tmp_path)[0] == 10


def test_saving_leaves_a_notice_of_preemption_to_the_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    saved(tmp_path, 1, 2)
    assert asked == []
    ocp.utils.reached_preemption(3)
    assert asked == [3]


def test_saving_goes_on_after_restoring(tmp_path):
    saved(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        step, state, _ = checkpoints.restore(make_state())
        checkpoints.save(step + 1, state, {})
    assert_same(restored(tmp_path)[1], make_state(2))


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"a": jnp.zeros((1000, 100))}
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(1, 6):
            state = overwrite(state)
            checkpoints.save(step, state, {})
        for _ in range(100):
            state = overwrite(state)
        jax.block_until_ready(state)
    for step in (5, 4, 3, 2, 1):
        number, got, _ = restored(tmp_path, {"a": jnp.zeros((1000, 100))})
        assert number == step
        np.testing.assert_array_equal(got["a"], step)
        shutil.rmtree(tmp_path / str(step))


def test_a_state_of_another_kind_is_refused_and_kept(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(InputError) as caught:
        restored(tmp_path, make_state(num_tokens=5))
    assert str(caught.value) == (
        f"{tmp_path}/1 is of another run: its .trainable['tokens_pd'] is float32[4, 300], "
        "and this run's is float32[5, 300]"
    )
    assert restored(tmp_path)[0] == 1


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [lambda path: os.truncate(path, path.stat().st_size // 2), os.unlink, flip_a_bit])
def test_whichever_file_is_damaged_the_checkpoint_before_is_used(tmp_path, caplog, damage):
    saved(tmp_path / "good", 1, 2)
    newest = tmp_path / "good" / "2"
    files = [*newest.glob("*/**/*"), newest / "checksums.json"]
    files = [file.relative_to(tmp_path / "good") for file in files if file.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / file)
        caplog.clear()
        step, state, data_state = restored(folder)
        assert_same(state, make_state(1))
        assert (step, data_state["position"]) == (1, 1)
        assert re.fullmatch(
            rf"checkpoint {folder}/2 is damaged \(.+\); it is now damaged_2, and the one before is used",
            caplog.messages[0],
        )
        assert sorted(os.listdir(folder)) == ["1", "damaged_2"]


def test_when_nothing_whole_is_left_the_run_begins_anew(tmp_path, caplog):
    for _ in range(2):
        saved(tmp_path, 1)
        (tmp_path / "1" / "run" / "metadata").unlink()
        assert restored(tmp_path) is None
        assert os.listdir(tmp_path) == ["damaged_1"]
    sentence = f"checkpoint {tmp_path}/1 is damaged (run/metadata is missing); it is now damaged_1, and the one before"
    assert caplog.messages[0].startswith(sentence)


SAVE_UNTIL_KILLED = """
import sys
import jax.numpy as jnp
from aligner_jax.runtime.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    found = checkpoints.restore({"a": jnp.zeros(5000), "b": jnp.int32(0)})
    first = found[0] if found else 0
    if found:
        step, state, data_state = found
        assert (state["a"] == step).all() and state["b"] == step and data_state == {"position": step}, found
    for step in range(first + 1, first + 1000):
        print(step, flush=True)
        checkpoints.save(step, {"a": jnp.full(5000, step, float), "b": jnp.int32(step)}, {"position": step})
"""


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
    chance, last = random.Random(0), 0
    for _ in range(3):
        process = start([sys.executable, "-c", SAVE_UNTIL_KILLED, tmp_path])
        first = process.stdout.readline()
        assert first, process.communicate()[1]
        # At most the save in progress and the one before, not yet renamed, are lost.
        assert int(first) >= last - 1
        time.sleep(chance.uniform(0.05, 0.8))
        process.send_signal(signal.SIGKILL)
        out, err = process.communicate()
        assert err == ""
        last = int((first + out).split()[-1])
    step, state, data_state = restored(tmp_path, {"a": jnp.zeros(5000), "b": jnp.int32(0)})
    np.testing.assert_array_equal(state["a"], step)
    assert (int(state["b"]), data_state) == (step, {"position": step})
    # The newest may exist before the oldest is removed.
    kept = {int(name) for name in os.listdir(tmp_path)}
    assert {step - 1, step} <= kept <= {step - 2, step - 1, step}


SAVE_BEYOND_LIMITS = """
import resource, signal, sys
import jax
from aligner_jax.errors import InputError
from aligner_jax.runtime.checkpoint import Checkpoints
state = {"a": jax.random.normal(jax.random.key(0), (100, 1000))}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in sys.argv[2:]:
    try:
        with Checkpoints(f"{sys.argv[1]}/{limit}") as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints._manager.wait_until_finished()
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), 10**9))
            checkpoints.save(2, state, {})
    except InputError as error:
        print(error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, 10**9))
"""


def test_what_does_not_fit_is_one_sentence_and_the_earlier_checkpoint_stays(tmp_path):
    # The first file, one in the middle and the largest do not fit.
    limits = ("10", "1000", "100000")
    sentences = [f"a checkpoint in {tmp_path / limit} cannot be written: File too large\n" for limit in limits]
    got = start([sys.executable, "-c", SAVE_BEYOND_LIMITS, tmp_path, *limits]).communicate()
    assert got == ("".join(sentences), "")
    for limit in limits:
        assert os.listdir(tmp_path / limit) == ["1"]
        assert restored(tmp_path / limit, {"a": jnp.zeros((100, 1000))})[0] == 1


def lose_a_file_that_tensorstore_needs(folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "lost", {"a": jnp.ones(10)})
        checkpointer.wait_until_finished()
        for file in (folder / "lost").rglob("d/*"):
            file.unlink()
        checkpointer.restore(folder / "lost", {"a": jnp.ones(10)})


def come_too_late(folder):
    loop = asyncio.new_event_loop()
    loop.close()
    loop.call_soon(print)


def make_a_file_where_a_folder_is(folder):
    (folder / "there").mkdir()
    store = {"driver": "file", "path": f"{folder}/there"}
    tensorstore.KvStore.open({"driver": "ocdbt", "base": store}).result().write("a", b"b").result()
    shutil.rmtree(folder / "there")
    (folder / "there").write_text("")
    tensorstore.KvStore.open({"driver": "ocdbt", "base": store}).result().write("a", b"b").result()


@pytest.mark.parametrize(
    ("provoke", "why"),
    [
        (lose_a_file_that_tensorstore_needs, r"files of it may have gone while it was written \(NOT_FOUND: .*"),
        (come_too_late, r"files of it may have gone while it was written \(Event loop is closed\)"),
        (make_a_file_where_a_folder_is, "Not a directory"),
        (lambda folder: (folder / "none").read_text(), "No such file or directory"),
    ],
)
def test_failures_of_the_disk_are_known_by_what_the_installed_libraries_raise(tmp_path, provoke, why):
    checkpoints = Checkpoints(tmp_path / "run")
    with (
        pytest.raises(InputError, match=rf"/run cannot be written: {why}$"),
        checkpoints._failure_is_one_sentence(),
    ):
        provoke(tmp_path)
    checkpoints.close()


@pytest.mark.parametrize("provoke", [lambda: jnp.zeros(2**46).block_until_ready(), lambda: {}["none"]])
def test_what_is_no_failure_of_the_disk_keeps_its_traceback(tmp_path, provoke):
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises((jax.errors.JaxRuntimeError, KeyError)), checkpoints._failure_is_one_sentence():
        provoke()
    checkpoints.close()


OTHER_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from aligner_jax.runtime.checkpoint import Checkpoints
from aligner_jax.runtime.sharding import make_mesh
state = {"a": jax.random.normal(jax.random.key(0), (8, 6)), "n": jnp.int32(7)}
def on(count, *spec):
    sharding = NamedSharding(make_mesh(data=count, fsdp=1, devices=jax.devices()[:count]), PartitionSpec(*spec))
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return {"a": jax.device_put(state["a"], sharding), "n": jax.device_put(state["n"], whole)}
layouts = [on(1), on(4), on(2), on(4, "data"), on(2, "data"), state]
for i, saved in enumerate(layouts):
    with Checkpoints(f"{sys.argv[1]}/{i}") as checkpoints:
        checkpoints.save(1, saved, {})
        checkpoints.wait()
        for wanted in layouts:
            template = jax.tree.map(lambda x: jax.device_put(jnp.zeros_like(x), x.sharding), wanted)
            step, found, data_state = checkpoints.restore(template)
            for name in state:
                assert found[name].sharding == wanted[name].sharding, (found[name].sharding, wanted[name].sharding)
                assert np.asarray(found[name]).tobytes() == np.asarray(state[name]).tobytes()
print("done")
"""


def test_the_template_says_on_which_devices_a_state_is_restored(tmp_path):
    environment = {**ENVIRONMENT, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", OTHER_DEVICES, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"^{re.escape(str(tmp_path))}/file/below cannot be made: Not a directory$"):
        Checkpoints(tmp_path / "file" / "below")


def test_the_error_that_ends_a_run_is_the_one_that_is_seen(tmp_path):
    def interrupted():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, make_state(1), {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert restored(tmp_path)[0] == 1


def test_only_orbax_is_silenced(caplog):
    absl_logging.error("heard")
    assert caplog.messages == ["heard"]
