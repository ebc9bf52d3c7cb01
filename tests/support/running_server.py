"""A server in a thread, on a tiny base with adapters."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

from aligner_jax.decoding.engine_options import EngineOptions
from aligner_jax.peft.artifact import RecordedBase
from aligner_jax.peft.row_adapters import Capacity
from aligner_jax.serving import server as serving_server
from aligner_jax.serving import start
from aligner_jax.serving.limits import Limits
from aligner_jax.serving.service import Service
from aligner_jax.weights.base import Base

CAPACITY = Capacity(tokens=8, rank=4, factors=("q_ldnh", "v_ldkh"))
SIZES = EngineOptions(
    rows=4, slots=128, longest_part=64, tokens_per_call=2, alternatives=5, has_penalty=True, capacity=CAPACITY, places=4
)
BASE_NAME = "tiny"
LIMITS = Limits()


@dataclasses.dataclass
class Running:
    """A server that runs.

    Attributes:
      service: its parts.
      server: the server.
      port: its port on 127.0.0.1.
      thread: the thread that it runs in.
    """

    service: Service
    server: serving_server.Server
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """Returns a client that does not try again."""
        options = {"max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def connect(self) -> socket.socket:
        """Returns a connection of which every operation may take 20 seconds."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def becomes_idle(self, seconds: float = 20) -> bool:
        """Returns True once no request runs or waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.service.engine.engine.is_idle and not self.service.engine.num_waiting:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def running(
    base: Base, folder: Path, *, limits: Limits = LIMITS, keys: tuple[bytes, ...] = (), **sizes: Any
) -> Iterator[Running]:
    """Runs a server on the adapters of a folder, until the block ends."""
    named = RecordedBase(base.config, base.fingerprint)
    options = dataclasses.replace(SIZES, **sizes)
    adapters = start.open_adapters(folder, named)
    service = start.make_service(base, adapters, options, name=BASE_NAME, limits=limits, keys=keys, named=named)
    service.engine.start(None)
    listener = serving_server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = serving_server.Server(service)
    thread = threading.Thread(target=serving_server.serve, args=(server, listener), daemon=True)
    thread.start()
    try:
        yield Running(service, server, port, thread)
    finally:
        server.drain()
        thread.join(timeout=60)
        service.engine.stop()
        assert not thread.is_alive()


def http_request(path: str, body: object = None, *, method: str = "POST", **headers: str) -> bytes:
    """Returns a request as bytes."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: tiny", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


def read_responses(connection: socket.socket, count: int = 1) -> list[tuple[int, dict]]:
    """Reads responses with JSON bodies; returns statuses and bodies."""
    file, found = connection.makefile("rb"), []
    for _ in range(count):
        status = int(file.readline().split()[1])
        headers = {}
        while line := file.readline().strip():
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        found.append((status, json.loads(file.read(int(headers[b"content-length"])))))
    return found
