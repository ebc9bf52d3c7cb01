"""A server whose answers are streams of events, one piece at a time."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request; names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: dict


@dataclasses.dataclass(frozen=True)
class Stream:
    """A response, whose pieces are sent as they are made; the connection is closed after them."""

    pieces: Iterator[bytes]
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {"Content-Type": "text/event-stream"})


@dataclasses.dataclass
class Server:
    """The server's address, every request so far, and an event that is set when a client has hung up."""

    url: str
    asked: list[Asked] = dataclasses.field(default_factory=list)
    hung_up: threading.Event = dataclasses.field(default_factory=threading.Event)


def event(text: str | None = None, reason: str | None = None, **fields) -> bytes:
    """Returns a piece of a streamed chat completion."""
    delta = {} if text is None else {"content": text}
    body = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return f"data: {json.dumps({**body, **fields})}\n\n".encode()


def answer(*texts: str, reason: str = "stop") -> Stream:
    """Returns a whole answer, as servers send it."""
    role = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
    pieces = [role, *map(event, texts), event(reason=reason), b'data: {"choices": [], "usage": {}}\n\n']
    return Stream(iter([*pieces, b"data: [DONE]\n\n"]))


@contextlib.contextmanager
def event_server(reply: Callable[[Asked], Stream]) -> Iterator[Server]:
    """Serves until the block ends, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            server.asked.append(asked)
            response = reply(asked)
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in response.pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                server.hung_up.set()

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignores clients that hung up, which some tests do."""

    with Listener(("127.0.0.1", 0), Handler) as listener:
        server = Server(f"http://127.0.0.1:{listener.server_address[1]}/v1")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
