import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest
from absl.testing import flagsaver

from aligner_jax.errors import InputError
from aligner_jax.runtime import command, distributed, platform
from aligner_jax.runtime.metrics import MetricsWriter

READ = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID", "TPU_SKIP_MDS_QUERY", "GCE_METADATA_IP",
)  # fmt: skip
SLICE = {"TPU_WORKER_HOSTNAMES": "t0,t1,t2", "TPU_WORKER_ID": "2"}


@pytest.fixture
def joined(monkeypatch):
    """Records the calls of jax.distributed.initialize, with a clean environment on a machine without a TPU."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(platform, "has_tpu", lambda: False)
    for name in READ:
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.fixture
def environment(monkeypatch):
    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture
def tpu(monkeypatch, joined):
    """A machine with a TPU that JAX is free to use."""
    monkeypatch.setattr(platform, "has_tpu", lambda: True)
    monkeypatch.setattr(distributed, "_on_tpu", lambda: True)
    return joined


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def metadata_server(environment):
    """Serves a machine's metadata; yields the requested paths, and the dict of the attributes that it serves."""
    asked, told = [], {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            text = told.get(self.path.rpartition("/")[2])
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        environment(GCE_METADATA_IP=f"127.0.0.1:{server.server_port}")
        yield asked, told
        server.shutdown()
        thread.join()


def explicit(port, count, number):
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)
    }  # fmt: skip


def test_a_process_on_its_own_joins_nobody(joined):
    distributed.initialize()
    assert joined == []
    assert distributed.is_first()


def test_the_first_process_opens_the_port_and_the_others_find_it(joined, environment, listener, free_port):
    environment(**explicit(free_port, 2, 0))
    distributed.initialize()
    environment(**explicit(listener, 3, 2))
    distributed.initialize()
    as_told = {"cluster_detection_method": "deactivate", "initialization_timeout": 600}
    assert joined == [(f"127.0.0.1:{free_port}", 2, 0, as_told), (f"127.0.0.1:{listener}", 3, 2, as_told)]


def test_one_process_by_the_variables_joins_nobody(joined, environment, free_port):
    environment(**explicit(free_port, 1, 0))
    distributed.initialize()
    assert joined == []


def test_processes_on_cpus_speak_gloo():
    assert jax.config.jax_cpu_collectives_implementation == "gloo"


def test_what_is_joined_is_not_joined_again(joined, environment, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    environment(JAX_NUM_PROCESSES="2")
    distributed.initialize()
    assert joined == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"JAX_NUM_PROCESSES": None}, "needs JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, but "
         "JAX_NUM_PROCESSES is not set"),
        ({"JAX_COORDINATOR_ADDRESS": None}, "but JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_PROCESS_ID": None}, "but JAX_PROCESS_ID is not set"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two', but should be a whole number"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES is 0, but a run has at least one process"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1', but should be a whole number"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2, but with JAX_NUM_PROCESSES=2 it should be from 0 to 1"),
        ({"JAX_COORDINATOR_ADDRESS": "host0"}, "is 'host0', but should be HOST:PORT of process 0"),
        ({"JAX_COORDINATOR_ADDRESS": ":123"}, "is ':123', but should be HOST:PORT of process 0"),
        ({"JAX_COORDINATOR_ADDRESS": "host0:99999"}, "is 'host0:99999', but should be HOST:PORT of process 0"),
    ],
)  # fmt: skip
def test_variables_that_are_missing_or_wrong_are_one_sentence(joined, environment, free_port, changes, sentence):
    variables = {**explicit(free_port, 2, 1), **changes}
    environment(**{name: value for name, value in variables.items() if value is not None})
    with pytest.raises(InputError, match=f"{re.escape(sentence)}$"):
        distributed.initialize()
    assert joined == []


def test_a_port_that_is_taken_and_a_coordinator_that_is_not_there_are_one_sentence(
    joined, environment, listener, free_port
):
    environment(**explicit(listener, 2, 0))
    with pytest.raises(InputError, match=rf"^port {listener} of JAX_COORDINATOR_ADDRESS cannot .*: Address already in"):
        distributed.initialize()
    environment(**explicit(free_port, 2, 1))
    with pytest.raises(InputError, match=r"^process 1 of 2 has not reached process 0 at .*: Connection refused$"):
        distributed.initialize()
    assert joined == []


@pytest.mark.parametrize(
    ("variables", "joins"),
    [
        (SLICE, True),
        ({"TPU_PROCESS_ADDRESSES": "t0:8476,t1:8476", "TPU_WORKER_ID": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, False),
    ],
)
def test_the_hosts_of_a_slice_join_as_jax_finds_them(tpu, environment, variables, joins):
    environment(**variables)
    distributed.initialize()
    assert tpu == [({},)] * joins


def test_variables_that_say_so_go_before_the_slice(tpu, environment, listener):
    environment(**SLICE, **explicit(listener, 2, 1))
    distributed.initialize()
    assert len(tpu) == 1
    assert tpu[0][1:3] == (2, 1)


@pytest.mark.parametrize(("told", "joins"), [("a,b", True), ("a", False), ("", False), (None, False)])
def test_the_machines_metadata_tell_of_the_other_hosts(tpu, metadata_server, told, joins):
    asked, answers = metadata_server
    answers["worker-network-endpoints"] = told
    distributed.initialize()
    assert asked == [("/computeMetadata/v1/instance/attributes/worker-network-endpoints", "Google")]
    assert tpu == [({},)] * joins


def test_metadata_are_not_asked_for_where_the_user_says_so(tpu, metadata_server, environment):
    asked, answers = metadata_server
    answers["worker-network-endpoints"] = "a,b"
    environment(TPU_SKIP_MDS_QUERY="1")
    distributed.initialize()
    assert (asked, tpu) == ([], [])


def test_a_machine_without_metadata_is_on_its_own(tpu, environment, free_port):
    environment(GCE_METADATA_IP=f"127.0.0.1:{free_port}")
    distributed.initialize()
    assert tpu == []


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (None, "TPU_WORKER_HOSTNAMES names 3 hosts, but TPU_WORKER_ID, which of them this is, is not set"),
        ("3", "TPU_WORKER_ID is 3, but TPU_WORKER_HOSTNAMES names 3 hosts, 0 to 2"),
        ("", "TPU_WORKER_ID is '', but should be a whole number"),
    ],
)
def test_a_slice_that_is_told_of_wrongly_is_one_sentence(tpu, environment, number, sentence):
    environment(TPU_WORKER_HOSTNAMES="t0,t1,t2", **({} if number is None else {"TPU_WORKER_ID": number}))
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        distributed.initialize()
    assert tpu == []


def test_what_jax_cannot_join_is_one_sentence(tpu, environment, monkeypatch):
    def fail():
        raise RuntimeError("Failed to recognize coordinator address t0")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    environment(**SLICE)
    sentence = "this host cannot join the 3 hosts of its TPU slice: Failed to recognize coordinator address t0"
    with pytest.raises(InputError, match=f"^{sentence}$"):
        distributed.initialize()


@pytest.mark.parametrize(("platforms", "on_tpu"), [(None, True), ("tpu,cpu", True), ("cpu", False)])
def test_a_slice_is_left_alone_by_a_program_for_the_cpu(joined, monkeypatch, platforms, on_tpu):
    monkeypatch.setattr(distributed, "jax", SimpleNamespace(config=SimpleNamespace(jax_platforms=platforms)))
    assert not distributed._on_tpu()
    monkeypatch.setattr(platform, "has_tpu", lambda: True)
    assert distributed._on_tpu() == on_tpu


@pytest.mark.parametrize(("number", "first"), [(0, True), (1, False)])
def test_only_the_first_process_prints_and_writes(monkeypatch, tmp_path, number, first):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: number)
    assert distributed.is_first() == first

    console = distributed.console()
    console.file = io.StringIO()
    console.print("printed")
    console.out("out")
    assert console.file.getvalue() == ("printed\nout\n" if first else "")

    with MetricsWriter(tmp_path / "run") as writer:
        writer.write(1, loss=2.0)
    assert (tmp_path / "run").exists() == first


def test_a_command_joins_the_others_before_it_begins(monkeypatch):
    order = []
    monkeypatch.setattr(sys, "argv", ["verb"])
    monkeypatch.setattr(platform, "prepare", lambda: order.append("platform"))
    monkeypatch.setattr(distributed, "initialize", lambda: order.append("others"))
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        command.run(lambda: order.append("main"))
    assert order == ["platform", "others", "main"]


def test_a_command_that_cannot_join_says_so_in_one_sentence(joined, environment, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["verb"])
    monkeypatch.setattr(platform, "prepare", lambda: None)
    environment(JAX_PROCESS_ID="1")
    with flagsaver.flagsaver(), pytest.raises(SystemExit, match=r"^error: a run of several processes needs"):
        command.run(lambda: pytest.fail("ran on its own"))


def test_a_process_that_nobody_joins_ends_with_one_sentence(free_port):
    program = "from aligner_jax.runtime import distributed\ndistributed._JOIN_SECONDS = 2\ndistributed.initialize()"
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    environment = {**os.environ, **joined, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: process 0 of 2 has waited 2 seconds for the others, which have not all come: see what they say, and "
        "start as many as JAX_NUM_PROCESSES says\n"
    )


LEFT_ALONE = """
import json, os, signal, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from aligner_jax.runtime import distributed
distributed.initialize()
mesh = jax.make_mesh((2,), ("data",))
split, everywhere = (jax.NamedSharding(mesh, jax.P(*names)) for names in (["data"], []))
ones = jax.make_array_from_callback((2,), split, lambda index: np.ones(2, np.float32)[index])
total = jax.jit(jnp.sum, out_shardings=everywhere)
assert float(total(ones)) == 2
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
def raised(work):
    try:
        return work() and None
    except Exception as error:
        return error
failures = {
    "collective": lambda: [total(ones).block_until_ready() for _ in range(3)],
    "gather": lambda: multihost_utils.process_allgather(np.int32(1)),
    "barrier": lambda: multihost_utils.sync_global_devices("here"),
    "memory": lambda: jnp.zeros(2**46).block_until_ready(),
    "shapes": lambda: jnp.zeros(2) + jnp.zeros(3),
}
for name, work in failures.items():
    error = raised(work)
    print(json.dumps([name, distributed.is_peer_gone(error), str(error)]), flush=True)
os._exit(0)
"""


def test_a_peer_that_has_gone_is_known_by_what_the_installed_jax_raises(free_port):
    processes = []
    for number in (0, 1):
        joined = {**explicit(free_port, 2, number), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", LEFT_ALONE], env={**os.environ, **joined},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    (output, errors), _ = (process.communicate(timeout=300) for process in processes)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("[") and "Gloo] Rank" not in line]
    is_gone = {name: gone for name, gone, _ in found}
    wanted = {"collective": True, "gather": True, "barrier": True, "memory": False, "shapes": False}
    assert is_gone == wanted, (found, errors)
