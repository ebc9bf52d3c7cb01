"""An OpenAI-compatible endpoint on loopback, whose replies are given by a test, and runs that ask it."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from rich.console import Console

from aligner_jax.evals.interface import Run, parse_evaluate_config
from aligner_jax.evals.judge_endpoint import EndpointConfig
from aligner_jax.evals.judge_prompts import Ask


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply. With `hang_up` the connection is closed in the middle of it."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"Content-Type": "application/json"})
    hang_up: bool = False
    delay: float = 0.0


@dataclasses.dataclass(frozen=True)
class Request:
    """A request and its time of arrival; names of headers are in lower case."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: dict

    @property
    def user(self) -> str:
        """Returns the user's message."""
        return self.body["messages"][-1]["content"]


@dataclasses.dataclass
class Server:
    """The server's address, and every request so far."""

    url: str
    requests: list[Request] = dataclasses.field(default_factory=list)


def completion(text: str | None, *, prompt_tokens: int = 200, completion_tokens: int = 10, **reply) -> Reply:
    """Returns a chat completion as an endpoint sends it."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    body = {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "judge",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**usage, "total_tokens": prompt_tokens + completion_tokens},
    }  # fmt: skip
    return Reply(json.dumps(body).encode(), **reply)


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    """Returns an error as an endpoint sends it; names of headers have underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps({"error": {"message": message, "type": "x", "code": None}}).encode()
    return Reply(body, status, {"Content-Type": "application/json", **named})


@contextlib.contextmanager
def judge_server(reply: Callable[[Request, int], Reply], port: int = 0) -> Iterator[Server]:
    """Serves until the block ends, on a free port by default. `reply` gets each request and its index from 0."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(
                time.monotonic(), self.path, {name.lower(): value for name, value in self.headers.items()}, body
            )
            with lock:
                number = len(server.requests)
                server.requests.append(request)
            answer = reply(request, number)
            time.sleep(answer.delay)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body[: len(answer.body) // 2] if answer.hang_up else answer.body)
            self.close_connection = self.close_connection or answer.hang_up

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignores clients that hung up, which some tests do."""

    with Listener(("127.0.0.1", port), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_address[1]}/v1")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


KEY = "sk-loopback-0123456789"
ASKS = [Ask("be fair", f"question {i}") for i in range(5)]
TEXTS = [f"about question {i}" for i in range(5)]


def config_of(url: str, **fields) -> EndpointConfig:
    """Returns the config of a judge at this address; the fixture `judge_key` sets its key's variable."""
    return EndpointConfig(url=url, model="judge", key_variable="TEST_JUDGE_KEY", **fields)


def echo(request: Request, number: int) -> Reply:
    """Answers with the question."""
    return completion(f"about {request.user}")


def run_in(folder: Path, console: Console | None = None, **config: object) -> Run:
    """Returns a run without a model, with these fields of its config."""
    parsed = parse_evaluate_config({"evaluation": {"name": "any"}, **config})
    return Run(parsed, None, folder, console or Console(quiet=True), {})
