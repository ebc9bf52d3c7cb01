"""Scores, answers and verdicts over four devices, in a separate process, equal those of one device."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import many_devices
import numpy as np
from judge_server import run_in
from rich.console import Console

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.judge_base import BaseJudgeConfig, ask_base, render
from aligner_jax.evals.judge_prompts import Ask
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.scoring import Continuation, score
from aligner_jax.evals.subject import load_subject
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.weights.base import load_base
from scripts.lib.tiny_llama import write_tiny_llama

DEVICES = 4
ASKS = [Ask("Be fair.", f"Is number {i} even?") for i in range(3)]
MESHES = {"one": (1, 1, 1), "split": (1, 2, 2)}


def measure(folder: Path) -> dict[str, dict[str, list]]:
    """Returns log-likelihoods, answers and a judge's answers by mesh."""
    write_tiny_llama(folder / "tiny")
    base = load_base(folder / "tiny")
    adapter = init_adapter("aligner", base.config, num_tokens=2, start_layer=1)
    adapter = adapter.replace(trainable={name: x + 0.5 for name, x in adapter.trainable.items()})
    save_adapter(adapter, folder / "adapter.safetensors", base=base)
    draw = np.random.default_rng(0)
    continuations = [Continuation(tuple(draw.integers(0, 380, 20 + i).tolist()), 3) for i in range(6)]
    config, quiet, found = BaseConfig(path=str(folder / "tiny"), dtype="float32"), Console(quiet=True), {}
    for name, (data, fsdp, tensor) in MESHES.items():
        devices = jax.devices()[: data * fsdp * tensor]
        mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
        with sharding.use(mesh):
            adapter_path = str(folder / "adapter.safetensors")
            subject = load_subject(config, adapter_path, mesh=mesh, rules=sharding.RULES, batch_size=4)
            store = ResultStore(folder / f"{name}.jsonl", {})
            prompts = [Prompt(encoded(subject, text), 8) for text in ("Why is the sky blue?", "Name a fruit.")]
            if name == "split":
                judge = BaseJudgeConfig(base=config, adapter=adapter_path, max_tokens=8)
                run = run_in(folder, batch_size=4, mesh={"data": data, "fsdp": fsdp, "tensor": tensor})
                judged, _ = ask_base(ASKS, judge, run)
            else:
                texts = [render(ask, PromptFormat("chat"), subject.tokenizer) for ask in ASKS]
                judged = generate(subject, [Prompt(encoded(subject, text), 8) for text in texts], store, quiet)
            found[name] = {
                "judged": judged,
                "devices": [len(subject.base.params.layers.q_ldnh.devices())],
                "scores": [each.log_likelihood for each in score(subject, continuations, store, quiet)],
                "answers": generate(subject, prompts, store, quiet),
            }
    return found


def test_a_split_model_scores_and_answers_like_a_whole_one():
    child = many_devices.run([sys.executable, __file__], DEVICES, JAX_PLATFORMS="cpu")
    assert child.returncode == 0, child.stderr
    one, split = (json.loads(child.stdout)[name] for name in MESHES)
    assert (one["devices"], split["devices"]) == ([1], [DEVICES])
    np.testing.assert_allclose(split["scores"], one["scores"], rtol=1e-5)
    assert split["answers"] == one["answers"]
    assert split["judged"] == one["judged"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(Path(scratch))))
