"""Commands over a base in float16: an adapter trained with it is of the same base in every dtype."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from places import ROOT
from rich.console import Console

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.decoding.sampler import sample
from aligner_jax.peft.artifact import load_adapter
from aligner_jax.runtime.config import parse_config
from aligner_jax.train import train
from aligner_jax.weights.base import load_base


def test_a_run_in_float16_gives_an_adapter_of_the_base(tiny_run: dict, tiny_model: Path, tmp_path: Path):
    losses = {}
    for dtype in ("float32", "float16"):
        tiny_run["base"]["dtype"] = dtype
        workdir, screen = tmp_path / dtype, io.StringIO()
        train(parse_config(tiny_run), workdir, Console(width=200, file=screen))
        assert f"parameters in {dtype}, frozen" in screen.getvalue()
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses[dtype] = [line["loss"] for line in lines if "loss" in line]
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=2e-3)
    assert losses["float16"] != losses["float32"]

    path, half = tmp_path / "float16" / "adapter.safetensors", load_base(tiny_model, "float16")
    adapter = load_adapter(path, load_base(tiny_model))
    jax.tree.map(np.testing.assert_array_equal, adapter.trainable, load_adapter(path, half).trainable)
    assert {x.dtype for x in adapter.trainable.values()} == {jnp.dtype("float32")}

    prompt = PromptFormat("chat").render("Name number 3.", half.tokenizer)
    done = subprocess.run(
        [
            sys.executable, "-m", "aligner_jax.generate", f"--base={tiny_model}", f"--adapter={path}",
            "--dtype=float16", "--prompt=Name number 3.", "--max_new_tokens=8",
        ],
        cwd=tmp_path, text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == sample(half, adapter, [prompt], max_new_tokens=8)[0].strip(), done.stderr
