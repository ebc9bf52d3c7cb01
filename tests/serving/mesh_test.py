"""The command on eight devices: the answers of `aj.sample` on one device, and no program that compiles between them."""

import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import many_devices
import numpy as np
import openai
import places
import pytest
from command_runs import run_command

import aligner_jax as aj
from aligner_jax.peft.sum import sum_of
from scripts.damage.torture_serve import await_ready
from scripts.lib import server_log
from scripts.lib.tiny_llama import write_tiny_llama

METHODS = {
    "A": ("aligner", {"num_tokens": 1, "start_layer": 0}),
    "B": ("aligner", {"num_tokens": 3, "start_layer": 0}),
    "new": ("lora", {"rank": 2}),
}
PROMPTS = ["Why is the sky", "Add", "### Instruction:"]
NEW = 10
MESHES = {"data 2, fsdp 2, tensor 2": (["--data=2", "--fsdp=2", "--tensor=2"], 4), "by default": ([], 8)}
"""Flags, and the rows of a server that is to have 3."""


class Served(NamedTuple):
    """A server that runs: its URL, the file of its stderr, and the number of its rows."""

    url: str
    log: Path
    rows: int

    def num_compiled(self) -> int:
        return self.log.read_text().count("Finished XLA compilation of")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    write_tiny_llama(folder / "tiny")
    return folder


@pytest.fixture(scope="module")
def base(folder: Path) -> aj.Base:
    return aj.load_base(folder / "tiny")


@pytest.fixture(scope="module")
def adapters(base: aj.Base) -> dict[str, aj.Adapter]:
    made, chance = {}, np.random.default_rng(5)
    for name, (method, options) in METHODS.items():
        adapter = aj.init_adapter(method, base.config, **options)
        arrays = {key: chance.normal(size=x.shape).astype(np.float32) for key, x in adapter.trainable.items()}
        made[name] = adapter.replace(trainable=arrays)
    return made


@pytest.fixture(scope="module", params=MESHES)
def served(
    request, folder: Path, base: aj.Base, adapters: dict[str, aj.Adapter], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    scratch = tmp_path_factory.mktemp("served")
    for name in ("A", "B"):
        (scratch / "adapters").mkdir(exist_ok=True)
        aj.save_adapter(adapters[name], scratch / "adapters" / f"{name}.safetensors", base=base)
    flags, rows = MESHES[request.param]
    command = [
        sys.executable, "-m", "aligner_jax.serve", f"--base={folder / 'tiny'}", f"--adapters={scratch / 'adapters'}",
        "--port=0", "--dtype=float32", "--tokens=48", "--rows=3", "--rank=4", *flags,
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": places.PYTHONPATH, "JAX_LOG_COMPILES": "1",
        **many_devices.environment(8),
    }  # fmt: skip
    process, url = server_log.start(command, scratch / "log", environment)
    try:
        await_ready(int(url.rpartition(":")[2]))
        yield Served(url, scratch / "log", rows)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_answers_are_those_of_one_device_and_nothing_compiles(served: Served, base: aj.Base, adapters):
    models = {"tiny": None, "A": adapters["A"], "B": adapters["B"], "A+B": sum_of([adapters["A"], adapters["B"]])}
    before = served.num_compiled()
    assert before > 5
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        def answers(model: str) -> list[str]:
            found = client.completions.create(model=model, prompt=PROMPTS, max_tokens=NEW, temperature=0)
            return [choice.text for choice in found.choices]

        found = {model: answers(model) for model in models}
        assert found == {name: aj.sample(base, each, PROMPTS, max_new_tokens=NEW) for name, each in models.items()}
        assert len({str(texts) for texts in found.values()}) == len(models)
        assert served.num_compiled() == before

        file = served.log.with_name("new.safetensors")
        aj.save_adapter(adapters["new"], file, base=base)
        upload = urllib.request.Request(f"{served.url}/v1/adapters/new", file.read_bytes(), method="PUT")
        with urllib.request.urlopen(upload, timeout=300) as answer:
            assert answer.status == 201
        # The program that binds the new kind was compiled before the upload was answered.
        prepared = served.num_compiled()
        assert prepared > before
        assert answers("new") == aj.sample(base, adapters["new"], PROMPTS, max_new_tokens=NEW)
        assert served.num_compiled() == prepared


def test_the_mesh_divides_the_rows(served: Served):
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=60) as answer:
        assert re.search(rf"^aligner_rows {served.rows}\.0$", answer.read().decode(), re.MULTILINE)


def test_a_mesh_that_does_not_fit_the_devices_is_refused(folder: Path):
    ended = run_command("serve", f"--base={folder / 'tiny'}", f"--adapters={folder}", "--port=0", "--tensor=3")
    assert ended.status == 1
    assert "a mesh of data=1, fsdp=-1 and tensor=3 does not fit 1 devices" in ended.err
