"""Compares our server with llama-cpp-python's on the same GGUF, and with transformers without a server.

    PEER_PYTHON=ENV/bin/python LLAMA_PYTHON=ENV/bin/python python -m scripts.bench.serve --base=FILE.gguf
        [--clients=1,8,32] [--requests=64] [--new-tokens=64] [--dtype=float32,bfloat16]

PEER_PYTHON is an environment of torch and transformers, as for `scripts.bench.generate`; LLAMA_PYTHON one with
`pip install 'llama-cpp-python[server]'`. Without a variable its side is left out.

Clients of a server ask one request after the other, greedily and with streams, and every request is one question of the
quickstart's data in the chat template. Answers end at the same stop tokens on all sides. Requests and tokens per second
are those of all clients over the whole time; the time to the first token is the median and the 95th percentile.
transformers answers the same prompts in batches of 8, padded on the left; the ratio is that of our server's tokens per
second at 8 clients to it in the same dtype. One side works at a time, and every server has answered requests before it
is measured.
"""

import argparse
import asyncio
import contextlib
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import openai

from aligner_jax.data.sources import load_examples
from aligner_jax.data.templates import render_prompt
from aligner_jax.studies.flag_values import names
from aligner_jax.weights.base import form_of, locate
from scripts.bench import report, same_model
from scripts.bench.generate import sizes
from scripts.bench.protocol import PEER_VARIABLE, Worker
from scripts.lib import server_log

LLAMA_VARIABLE = "LLAMA_PYTHON"
BATCH = 8
STARTING_SECONDS = 600


class Measured(NamedTuple):
    """Requests of one side.

    Attributes:
      side: name of the side.
      clients: clients at a time; the batch size of transformers.
      seconds: time of all requests.
      first_tokens: seconds to the first token of each request; empty without a server.
      tokens: new tokens, by the servers' own count. Of a server that does not count them, events of the streams, which
        leave out tokens without a text of their own (the stop token, parts of a character) and those that share an
        event with another; an event without text, such as the last one, counts as a token.
      requests: number of requests.
    """

    side: str
    clients: int
    seconds: float
    first_tokens: Sequence[float]
    tokens: int
    requests: int


def main() -> None:
    args = arguments()
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench_serve_") as scratch:
        with_peer = bool(os.environ.get(PEER_VARIABLE))
        model = same_model.prepare(
            args.base, args.data, args.dtype, Path(scratch), examples=args.requests, peer=with_peer
        )
        texts, prompts, stop = prompts_of(args.base, args.data, args.requests)
        longest = max(map(len, prompts))
        for dtype in args.dtype:
            with ours(args, dtype, longest, Path(scratch)) as url:
                measured += ask_all(f"ours, {dtype}", url, texts, args)
            if with_peer:
                measured.append(transformers(model["folders"][dtype], dtype, prompts, stop, args.new_tokens))
        if os.environ.get(LLAMA_VARIABLE):
            with llama(args) as url:
                measured += ask_all("llama.cpp, as in the file", url, texts, args)
    print(as_table(measured), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=same_model.MODEL, help="a .gguf (default %(default)s)")
    parser.add_argument("--data", default=str(same_model.DATA), help="data of the prompts (default the quickstart's)")
    parser.add_argument(
        "--dtype", type=names(same_model.DTYPES), default="float32,bfloat16", help="default %(default)s"
    )
    parser.add_argument("--clients", type=sizes, default="1,8,32", help="clients at a time (default %(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="requests per measurement (default %(default)s)")
    parser.add_argument("--rows", type=int, help="rows of our server (default: the server's own)")
    parser.add_argument("--new-tokens", type=int, default=64, help="new tokens of a request (default %(default)s)")
    return parser.parse_args()


def prompts_of(base: str, data: str, count: int) -> tuple[list[str], list[list[int]], list[int]]:
    """Returns prompts as texts, since llama-cpp-python's server takes no token ids, as ids, and the stop tokens."""
    local = locate(base)
    tokenizer = form_of(local).tokenizer(local)
    assert tokenizer is not None
    questions = [example.question for example in load_examples(data)][:count]
    texts = [render_prompt(question, tokenizer, "chat", system="") for question in questions]
    return texts, [list(tokenizer.encode(text, bos=tokenizer.add_bos)) for text in texts], sorted(tokenizer.stop_ids)


@contextlib.contextmanager
def ours(args: argparse.Namespace, dtype: str, longest: int, scratch: Path) -> Iterator[str]:
    """Runs our server; yields its URL."""
    adapters = scratch / "adapters"
    adapters.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "aligner_jax.serve", f"--base={args.base}", "--name=model", f"--adapters={adapters}",
        "--port=0", f"--dtype={dtype}", *([f"--rows={args.rows}"] if args.rows else []),
        f"--tokens={longest + args.new_tokens}",
    ]  # fmt: skip
    process, url = server_log.start(command, scratch / "server.log")
    with process, _until_ready(process, f"{url}/ready"):
        yield f"{url}/v1"


@contextlib.contextmanager
def llama(args: argparse.Namespace) -> Iterator[str]:
    """Runs llama-cpp-python's server; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        os.environ[LLAMA_VARIABLE], "-m", "llama_cpp.server", "--model", str(args.base), "--model_alias", "model",
        "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048", "--n_threads", str(os.cpu_count()),
        # Otherwise a new request ends the stream of the one before.
        "--interrupt_requests", "false",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}/v1"
        with _until_ready(process, f"{url}/models"):
            yield url


@contextlib.contextmanager
def _until_ready(process: subprocess.Popen, url: str) -> Iterator[None]:
    """Waits until a server answers; ends it with the block."""
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(url):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"error: the server of {url} did not start")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask_all(side: str, url: str, prompts: list[str], args: argparse.Namespace) -> list[Measured]:
    """Measures a server with every number of clients."""
    asyncio.run(ask(side, url, prompts[: max(args.clients)], max(args.clients), args.new_tokens))
    return [asyncio.run(ask(side, url, prompts, clients, args.new_tokens)) for clients in args.clients]


async def ask(side: str, url: str, prompts: list[str], clients: int, new_tokens: int) -> Measured:
    """Asks for the continuation of every prompt, `clients` at a time."""
    left, firsts, made = iter(prompts), [], 0

    async def work(client: openai.AsyncOpenAI) -> None:
        nonlocal made
        for prompt in left:
            began, first = time.perf_counter(), None
            stream = await client.completions.create(
                model="model", prompt=prompt, max_tokens=new_tokens, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            events, counted = 0, None
            async for event in stream:
                first = first or time.perf_counter() - began
                events += 1
                counted = event.usage.completion_tokens if event.usage else counted
            made += events if counted is None else counted
            firsts.append(first or time.perf_counter() - began)

    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=600) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return Measured(side, clients, time.perf_counter() - began, firsts, made, len(prompts))


def transformers(
    folder: str, dtype: str, prompts: list[list[int]], stop: list[int], new_tokens: int
) -> Measured:  # fmt: skip
    """Answers the prompts with transformers, in batches."""
    batches = [prompts[i : i + BATCH] for i in range(0, len(prompts), BATCH)]
    with Worker.peer() as peer:
        peer.ask("load", folder=folder, dtype=dtype)
        peer.ask("generate", prompts=batches[0], new_tokens=new_tokens, stop=stop)
        found = [peer.ask("generate", prompts=batch, new_tokens=new_tokens, stop=stop) for batch in batches]
    tokens = sum(len(row) for each in found for row in each["tokens"])
    return Measured(
        f"transformers, {dtype}", BATCH, sum(each["seconds"] for each in found), (), tokens, len(prompts)
    )  # fmt: skip


def as_table(measured: Sequence[Measured]) -> str:
    """Formats one line per side and number of clients."""
    rows = []
    for found in measured:
        firsts = sorted(found.first_tokens)
        late = f"{firsts[math.ceil(0.95 * len(firsts)) - 1]:.3f}" if firsts else "-"
        peer = [each for each in measured if each.side == found.side.replace("ours", "transformers")]
        is_compared = found.side.startswith("ours") and found.clients == BATCH and peer
        ratio = found.tokens / found.seconds / (peer[0].tokens / peer[0].seconds) if is_compared else None
        rows.append(
            [
                found.side,
                str(found.clients),
                f"{found.requests / found.seconds:.2f}",
                f"{found.tokens / found.seconds:.0f}",
                f"{statistics.median(firsts):.3f}" if firsts else "-",
                late,
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
    header = ["side", "clients", "requests/s", "tokens/s", "first token s", "p95", "× transformers"]
    return report.table(header, rows)


if __name__ == "__main__":
    main()
