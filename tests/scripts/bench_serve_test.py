"""The comparison of servers without measurements: its table, and tokens of servers that count them or do not."""

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts.bench.serve import BATCH, Measured, as_table, ask


def test_the_table_compares_ours_at_the_batch_of_the_same_dtype():
    measured = [
        Measured("ours, float32", 1, 2.0, (0.1, 0.3), 40, 2),
        Measured("ours, float32", BATCH, 2.0, (0.2, 0.4, 0.9), 240, 10),
        Measured("ours, bfloat16", BATCH, 1.0, (0.1,), 240, 10),
        Measured("transformers, float32", BATCH, 4.0, (), 320, 10),
    ]
    alone, ours, other, peer = (re.split(r"  +", line.rstrip()) for line in as_table(measured).splitlines()[-4:])
    assert alone == ["ours, float32", "1", "1.00", "20", "0.200", "0.300"]
    assert ours == ["ours, float32", "8", "5.00", "120", "0.400", "0.900", "1.50"]
    # There is no peer in bfloat16.
    assert other == ["ours, bfloat16", "8", "10.00", "240", "0.100", "0.100"]
    assert peer == ["transformers, float32", "8", "2.50", "80", "-", "-"]


@contextlib.contextmanager
def server(pieces: int, usage: int | None) -> Iterator[str]:
    """Streams completions of so many pieces, and tokens as the server counts them; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            made = {"id": "c", "object": "text_completion", "created": 1, "model": "model"}
            events = [
                {**made, "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]}
            ] * pieces
            if usage is not None:
                counts = {"prompt_tokens": 3, "completion_tokens": usage, "total_tokens": 3 + usage}
                events.append({**made, "choices": [], "usage": counts})
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_port}/v1"
        finally:
            found.shutdown()
            thread.join()


@pytest.mark.parametrize(("usage", "tokens"), [(7, 21), (0, 0), (None, 12)])
def test_tokens_are_those_that_the_server_counts_or_else_its_events(
    usage: int | None, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with server(4, usage) as url:
        found = asyncio.run(ask("side", url, ["a", "b", "c"], 2, 8))
    assert (found.tokens, found.requests, found.clients, len(found.first_tokens)) == (tokens, 3, 2, 3)
