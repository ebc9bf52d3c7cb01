"""Runs on several hosts: joins their processes before JAX starts, and ends them when one fails."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator

import jax
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.runtime import platform
from aligner_jax.runtime.exit import STALLED, at_once
from aligner_jax.runtime.files import reason
from aligner_jax.runtime.output import PlainConsole

_ADDRESS, _COUNT, _ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

# Seconds to wait for process 0 to come up. Equals JAX's own limit, past which JAX aborts the process.
_PATIENCE_SECONDS = 300

# Seconds to wait for the others once process 0 is reached. JAX itself would abort with a stack trace.
_JOIN_SECONDS = 300

# JAX has no exception type for a broken connection of a collective or of the coordination service. It raises ValueError
# or JaxRuntimeError, so only the text tells. distributed_test provokes the real errors.
_GONE = re.compile(r"gloo|nccl|by peer|connection|heartbeat|unavailable", re.IGNORECASE)

# Seconds that a process with an InputError waits for the others, which may end with the same error.
_LEAVING_SECONDS = 5


def initialize() -> None:
    """Joins the processes of a run on several hosts. Must be called before the first array is made.

    - CPUs and GPUs: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID name the
      processes. On CPUs, collectives use gloo unless JAX_CPU_COLLECTIVES_IMPLEMENTATION says otherwise, and compiled
      programs are not cached.
    - TPUs: the hosts of a slice are joined if there are several, according to TPU_WORKER_HOSTNAMES (or
      TPU_PROCESS_ADDRESSES) and TPU_WORKER_ID, or else to the metadata of the machine.

    Does nothing for a single process, or if the processes are joined already.

    Raises:
      InputError: variables are missing or wrong, or the other processes cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
    if any(name in os.environ for name in (_ADDRESS, _COUNT, _ID)):
        _join_as_told()
    elif _on_tpu() and len(hosts := _tpu_hosts()) > 1:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(
                f"this host cannot join the {len(hosts)} hosts of its TPU slice: {reason(error)}"
            ) from error


def is_first() -> bool:
    """Returns True in process 0, which prints and writes for all processes, and in a single process.

    With several processes it starts JAX's backend.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_alone() -> bool:
    """Returns True if the run has a single process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def console(*, quiet: bool = False) -> Console:
    """Returns the console of a command. Only process 0 prints; it is quiet in the others, or in all if asked."""
    return PlainConsole(highlight=False, quiet=quiet or not is_first())


def is_peer_gone(error: BaseException) -> bool:
    """Returns True for errors that JAX raises when another process of the run has gone."""
    return (
        isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        and jax.distributed.is_initialized()
        and _GONE.search(str(error)) is not None
    )


def end_alone(error: Exception) -> None:
    """Ends a failed process of several at once. Does nothing in a single process.

    An orderly exit would deadlock: it waits for the other processes, which wait for this one. JAX gives up only after
    minutes, and then aborts.

    Prints one sentence and exits with status `exit.STALLED` if another process has gone; one sentence and status 1 for
    an `InputError`, which all processes may have raised; else the traceback and status 1.
    """
    if is_alone():
        return
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, InputError):
        sys.stderr.write(f"error: {error}\n")
        # An orderly shutdown if all processes end with this error, else without the others.
        leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        leaving.start()
        leaving.join(_LEAVING_SECONDS)
        at_once(None, 1)
    if is_peer_gone(error):
        why = f"another is gone ({' '.join(str(error).split())})"
        at_once(f"error: {who} cannot go on, since {why}; the same command goes on from the last checkpoint", STALLED)
    traceback.print_exception(error)
    at_once(f"{who} has failed", 1)


def _join_as_told() -> None:
    missing = [name for name in (_ADDRESS, _COUNT, _ID) if name not in os.environ]
    if missing:
        raise InputError(
            f"a run of several processes needs {_ADDRESS}, {_COUNT} and {_ID}, but {missing[0]} is not set"
        )
    address, count, number = os.environ[_ADDRESS], _whole_number(_COUNT), _whole_number(_ID)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"{_ADDRESS} is {address!r}, but should be HOST:PORT of process 0")
    if count < 1:
        raise InputError(f"{_COUNT} is 0, but a run has at least one process")
    if number >= count:
        raise InputError(f"{_ID} is {number}, but with {_COUNT}={count} it should be from 0 to {count - 1}")
    if count == 1:
        return
    # Without these checks JAX aborts the process with a stack trace.
    if number == 0:
        _check_port_is_free(int(port))
    else:
        _wait_for_coordinator(host.strip("[]"), int(port), f"process {number} of {count}")
    if platform.is_cpu_only():
        # CPU programs from JAX's compilation cache deadlock in their collectives.
        jax.config.update("jax_enable_compilation_cache", False)
    with _patience(f"process {number} of {count}"):
        jax.distributed.initialize(
            address, count, number, cluster_detection_method="deactivate", initialization_timeout=2 * _JOIN_SECONDS
        )


@contextlib.contextmanager
def _patience(who: str) -> Iterator[None]:
    """Ends this process if the block takes too long, because the other processes do not come."""
    sentence = (
        f"error: {who} has waited {_JOIN_SECONDS:g} seconds for the others, which have not all come: see what they "
        f"say, and start as many as {_COUNT} says"
    )
    timer = threading.Timer(_JOIN_SECONDS, at_once, (sentence, 1))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _whole_number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}, but should be a whole number")
    return int(text)


def _check_port_is_free(port: int) -> None:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise InputError(f"port {port} of {_ADDRESS} cannot be opened here, on process 0: {reason(error)}") from error


def _wait_for_coordinator(host: str, port: int, who: str) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"{who} has not reached process 0 at {_ADDRESS}={host}:{port} "
                    f"in {_PATIENCE_SECONDS} seconds: {reason(error)}"
                ) from error
        time.sleep(1)


def _on_tpu() -> bool:
    platforms = jax.config.jax_platforms
    return platform.has_tpu() and (not platforms or "tpu" in platforms.split(","))


def _tpu_hosts() -> list[str]:
    """Returns the hosts of this TPU slice; empty if neither the environment nor the metadata server names any."""
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if len(hosts) > 1 and "TPU_WORKER_ID" not in os.environ:
            raise InputError(f"{name} names {len(hosts)} hosts, but TPU_WORKER_ID, which of them this is, is not set")
        if len(hosts) > 1 and (number := _whole_number("TPU_WORKER_ID")) >= len(hosts):
            last = len(hosts) - 1
            raise InputError(f"TPU_WORKER_ID is {number}, but {name} names {len(hosts)} hosts, 0 to {last}")
        if hosts:
            return hosts
    return [] if "TPU_SKIP_MDS_QUERY" in os.environ else _hosts_of_metadata()


def _hosts_of_metadata() -> list[str]:
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    # The metadata server is on the machine itself: no proxy can reach it.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as answer:
            return [host for host in answer.read().decode().split(",") if host]
    except (OSError, ValueError):
        # A TPU outside Compute Engine, or a single host.
        return []
