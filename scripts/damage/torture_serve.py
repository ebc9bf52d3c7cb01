"""Asks a server of many clients at once, with cancelled streams, lost connections, uploads and deletions.

    python -m scripts.damage.torture_serve [--clients=200] [--requests=2000] [--seed=0]

The base is a tiny random one in float32. Every answer is compared with that of `aj.sample`, whole ones with all of it
and cancelled ones with its beginning. Adapters that are replaced and deleted meanwhile may answer like any version of
theirs, or not exist. Prints the counts and the server's memory, and ends with status 1 if a request was lost or
answered with another one's text.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import itertools
import random
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai

import aligner_jax as aj
from aligner_jax.peft import Adapter, with_strength
from aligner_jax.peft.sum import sum_of
from aligner_jax.weights.base import Base
from scripts.lib import server_log
from scripts.lib.tiny_llama import write_tiny_llama

NEW = 16
TEMPERATURE = 8.0
PROMPTS = ["Why is the sky", "Add 1 to", "### Instruction:", "Name a colour that is neither red nor green nor blue:"]
SEEDS = (1, 2)
CHANGING = ("U0", "U1", "U2")
VERSIONS = 2
SHARES = {"whole": 0.45, "stream": 0.25, "cancel": 0.12, "vanish": 0.08, "upload": 0.06, "delete": 0.04}
SECONDS = 300


@dataclasses.dataclass
class Plan:
    """Files and expected answers.

    Attributes:
      folder: folder of the adapters that stay.
      uploads: content of every version of the adapters that change.
      expected: possible texts by model, prompt and seed.
    """

    folder: Path
    uploads: dict[str, list[bytes]]
    expected: dict[tuple[str, str, int], list[str]]


def prepare(base: Base, scratch: Path) -> Plan:
    """Writes adapters into `scratch`, and computes all answers with `aj.sample`."""
    folder, uploads = scratch / "adapters", {}
    folder.mkdir()
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("aligner", {"num_tokens": 1}), ("aligner", {"num_tokens": 3}), ("lora", {"rank": 2}),
    ]  # fmt: skip
    stay = {f"A{i}": _drawn(base, *kinds[i % 3], key=i) for i in range(6)}
    for name, adapter in stay.items():
        aj.save_adapter(adapter, folder / f"{name}.safetensors", base=base)
    models: dict[str, Sequence[Adapter | None]] = {"tiny": [None], **{name: [x] for name, x in stay.items()}}
    models["A0@0.5"] = [with_strength(stay["A0"], 0.5)]
    models["A1@-1"] = [with_strength(stay["A1"], -1)]
    models["A0+A1@2"] = [sum_of([stay["A0"], with_strength(stay["A1"], 2)])]
    for number, name in enumerate(CHANGING):
        versions = [_drawn(base, *kinds[number % 2], key=100 + VERSIONS * number + v) for v in range(VERSIONS)]
        models[name], uploads[name] = versions, []
        for version in versions:
            aj.save_adapter(version, scratch / "upload.safetensors", base=base)
            uploads[name].append((scratch / "upload.safetensors").read_bytes())
    expected = {}
    for (model, adapters), prompt, seed in itertools.product(models.items(), PROMPTS, SEEDS):
        expected[model, prompt, seed] = [
            aj.sample(base, adapter, [prompt], max_new_tokens=NEW, temperature=TEMPERATURE, seed=seed)[0]
            for adapter in adapters
        ]
    return Plan(folder, uploads, expected)


def _drawn(base: Base, method: str, options: dict[str, Any], key: int) -> Adapter:
    adapter, rng = aj.init_adapter(method, base.config, **options), np.random.default_rng(key)
    drawn = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in adapter.trainable.items()}
    return adapter.replace(trainable=drawn)


class Torture:
    """Clients of one server.

    Attributes:
      counts: requests by kind and outcome.
      faults: sentences about requests that were lost or answered wrongly.
    """

    def __init__(self, plan: Plan, port: int, seed: int) -> None:
        self._plan, self._port, self._chance = plan, port, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []

    async def run(self, clients: int, requests: int) -> None:
        """Makes requests, `clients` at a time."""
        left = iter(range(requests))
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{self._port}/v1", api_key="none", max_retries=0, timeout=SECONDS
        ) as client:
            await asyncio.gather(*(self._client(client, left) for _ in range(clients)))

    async def _client(self, client: openai.AsyncOpenAI, left: "itertools.count | Any") -> None:
        for number in left:
            (kind,) = self._chance.choices(list(SHARES), list(SHARES.values()))
            try:
                async with asyncio.timeout(SECONDS):
                    outcome = await getattr(self, f"_{kind}")(client)
            except Exception as error:
                outcome = "lost"
                self.faults.append(f"request {number} ({kind}): {type(error).__name__}: {error}")
            self.counts[f"{kind}: {outcome}"] += 1

    def _drawn(self) -> tuple[tuple[str, str, int], dict[str, Any]]:
        key = model, prompt, seed = self._chance.choice(list(self._plan.expected))
        options = {
            "model": model, "prompt": prompt, "seed": seed, "max_tokens": NEW, "temperature": TEMPERATURE,
        }  # fmt: skip
        return key, options

    async def _asked(self, client: openai.AsyncOpenAI, options: dict[str, Any]) -> Any:
        """Returns the response, after as many tries as the server asks for; None if the adapter does not exist now."""
        while True:
            try:
                return await client.completions.create(**options)
            except openai.RateLimitError as error:
                self.counts["refused with 429"] += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]) * self._chance.random())
            except openai.NotFoundError:
                if options["model"] not in CHANGING:
                    raise
                return None

    async def _whole(self, client: openai.AsyncOpenAI) -> str:
        key, options = self._drawn()
        found = await self._asked(client, options)
        return "no adapter" if found is None else self._judged(key, found.choices[0].text)

    async def _stream(self, client: openai.AsyncOpenAI, most: int | None = None) -> str:
        key, options = self._drawn()
        stream = await self._asked(client, {**options, "stream": True})
        if stream is None:
            return "no adapter"
        text, events = "", 0
        async with stream:
            async for event in stream:
                text, events = text + event.choices[0].text, events + 1
                if events == most:
                    break
        return self._judged(key, text, is_whole=most is None)

    async def _cancel(self, client: openai.AsyncOpenAI) -> str:
        return await self._stream(client, most=self._chance.randrange(1, 6))

    async def _vanish(self, client: openai.AsyncOpenAI) -> str:
        """Sends a request, and goes away without a word."""
        _, options = self._drawn()
        task = asyncio.ensure_future(client.completions.create(**options))
        await asyncio.sleep(self._chance.random() * 0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "gone"

    async def _upload(self, client: openai.AsyncOpenAI) -> str:
        name = self._chance.choice(CHANGING)
        while (status := await self._http("PUT", name, self._chance.choice(self._plan.uploads[name]))) == 429:
            self.counts["refused with 429"] += 1
            await asyncio.sleep(0.2)
        return self._as_expected(status, (201,))

    async def _delete(self, client: openai.AsyncOpenAI) -> str:
        return self._as_expected(await self._http("DELETE", self._chance.choice(CHANGING), b""), (200, 404))

    async def _http(self, method: str, name: str, content: bytes) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} /v1/adapters/{name} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        status = int((await reader.readline()).split()[1])
        writer.close()
        await writer.wait_closed()
        return status

    def _as_expected(self, status: int, wanted: Sequence[int]) -> str:
        if status not in wanted:
            self.faults.append(f"status {status} instead of {wanted}")
        return str(status)

    def _judged(self, key: tuple[str, str, int], text: str, *, is_whole: bool = True) -> str:
        wanted = self._plan.expected[key]
        if text in wanted or (not is_whole and any(each.startswith(text) for each in wanted)):
            return "right"
        self.faults.append(f"{key} was answered with {text!r} instead of {wanted}")
        return "mixed up"


def await_ready(port: int) -> None:
    """Waits until the server has compiled its programs."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready"):
            return
        time.sleep(0.5)
    sys.exit("error: the server has not become ready")


def memory_of(process: int) -> int:
    """Returns the resident memory of a process in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture_serve_") as scratch:
        model = Path(scratch) / "tiny"
        write_tiny_llama(model)
        plan = prepare(aj.load_base(model), Path(scratch))
        command = [
            sys.executable, "-m", "aligner_jax.serve", f"--base={model}", f"--adapters={plan.folder}", "--port=0",
            "--dtype=float32", "--tokens=128", "--rows=16", "--places=8",
        ]  # fmt: skip
        server, url = server_log.start(command, Path(scratch) / "server.log")
        port = int(url.rpartition(":")[2])
        try:
            await_ready(port)
            is_right = torture(plan, port, server.pid, args)
        finally:
            server.terminate()
            status = server.wait(timeout=60)
        print(f"the server ended with status {status} after SIGTERM")
        sys.exit(0 if is_right and status == 0 else 1)


def torture(plan: Plan, port: int, process: int, args: argparse.Namespace) -> bool:
    """Runs four rounds and prints what they found; returns True if nothing was wrong."""
    began, is_right = time.monotonic(), True
    counts: collections.Counter[str] = collections.Counter()
    for round in range(4):
        clients = Torture(plan, port, args.seed + round)
        asyncio.run(clients.run(args.clients, args.requests // 4))
        counts += clients.counts
        is_right = is_right and not clients.faults
        for fault in clients.faults[:10]:
            print(f"error: {fault}")
        print(
            f"round {round + 1}: {len(clients.faults)} faults, memory {memory_of(process) / 2**20:.0f} MiB", flush=True
        )
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    print(f"{args.requests} requests of {args.clients} clients in {time.monotonic() - began:.0f} s")
    return is_right


if __name__ == "__main__":
    main()
