"""The command that checks whether an adapter has its effect: here, and behind a server that computes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gguf
import jax.numpy as jnp
import numpy as np
import places
import pytest
from command_runs import Ended, run_command
from completion_server import completions
from judge_server import KEY, Reply, failure, judge_server
from running_server import running

import aligner_jax as aj
from aligner_jax.exports.folded import folded_parts
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import open_stored
from aligner_jax.weights.hf_write import write_hf
from scripts.lib.tiny_llama import write_tiny_llama


class Made(NamedTuple):
    """A base, an adapter and its file, and the folder that the command exported."""

    folder: Path
    base: aj.Base
    adapter: aj.Adapter
    file: Path
    exported: Path


def random_adapter(base: aj.Base, key: int) -> aj.Adapter:
    adapter = aj.init_adapter("aligner", base.config, key=key)
    rng = np.random.default_rng(key)
    arrays = {name: jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32) for name, x in adapter.trainable.items()}
    return adapter.replace(trainable=arrays)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("verify")
    write_tiny_llama(folder / "base")
    base = aj.load_base(folder / "base")
    adapter = random_adapter(base, 1)
    aj.save_adapter(adapter, folder / "a.safetensors", base)
    ended = run_command(
        "export", f"--base={folder / 'base'}", f"--adapter={folder / 'a.safetensors'}", "--to=hf",
        f"--out={folder / 'out'}",
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    return Made(folder, base, adapter, folder / "a.safetensors", folder / "out")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("PEER_PYTHON", raising=False)
    # The thread of the test's server would otherwise let an error end this process at once.
    monkeypatch.setattr("aligner_jax.runtime.command.is_held_up", lambda: False)


def verify(*arguments: object) -> Ended:
    return run_command("verify", *map(str, arguments))


def differences(ended: Ended) -> list[float]:
    """Returns the printed differences from base and adapter, and from the base."""
    assert ended.out.count("\n") == 1
    return [float(x) for x in re.findall(r"([0-9.e-]+) from", ended.out)]


def test_the_adapter_over_its_base_is_active(made):
    ended = verify(made.file, f"--base={made.folder / 'base'}")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("adapter active (computed here; largest difference")
    from_adapted, from_base = differences(ended)
    assert from_adapted < 1e-3 < 0.1 < from_base


def test_the_base_is_loaded_as_the_one_that_computed_the_canary(made, tmp_path):
    """The effect is so small that the rounding to int4 is larger than the distance that counts as equal."""
    base = aj.load_base(made.folder / "base", quantization="int4", group_size=16)
    adapter = made.adapter.replace(trainable={name: 0.3 * x for name, x in made.adapter.trainable.items()})
    aj.save_adapter(adapter, tmp_path / "a.safetensors", base)
    ended = verify(tmp_path / "a.safetensors", f"--base={made.folder / 'base'}")
    assert (ended.status, ended.err) == (0, "")
    assert differences(ended)[0] < 1e-3


def test_an_export_is_active_and_its_files_say_how_to_check(made):
    ended = verify(made.exported)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("adapter active")
    assert differences(ended)[0] < 1e-3
    assert "python -m aligner_jax.verify" in (made.exported / "README.md").read_text()
    assert len((made.exported / "canary.json").read_bytes()) < 2000


@pytest.mark.parametrize(
    ("bias", "status", "sentence"),
    [("zeroed", 3, "adapter missing: equals the base"), ("of another adapter", 4, "something else")],
)
def test_an_export_with_other_biases_is_told(bias, status, sentence, made, tmp_path):
    fold = Job(open_stored(str(made.folder / "base")), (made.adapter,), "o", "float32").fold
    other = Job(open_stored(str(made.folder / "base")), (random_adapter(made.base, 2),), "o", "float32")
    parts = folded_parts(other.base, other.fold, "float32")

    def changed(leaf, indexes):
        found = parts(leaf, indexes)
        return [np.zeros_like(x) for x in found] if leaf == "o_bias_ld" and bias == "zeroed" else found

    write_hf(tmp_path, fold.folded_config, changed, "float32")
    (tmp_path / "canary.json").write_bytes((made.exported / "canary.json").read_bytes())
    ended = verify(tmp_path)
    assert (ended.status, ended.out.split(" (")[0]) == (status, sentence)


def test_the_biases_of_a_gguf_file_are_told(made, tmp_path):
    out = tmp_path / "out"
    ended = run_command(
        "export", f"--base={made.folder / 'base'}", f"--adapter={made.file}", "--to=gguf", f"--out={out}"
    )
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "canary.json", "model.gguf"]
    for path in (out, out / "model.gguf"):
        ended = verify(path)
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.startswith("adapter active")
        assert differences(ended)[0] < 1e-3
    biases = [t for t in gguf.GGUFReader(out / "model.gguf", "r+").tensors if t.name.endswith("attn_output.bias")]
    assert len(biases) == made.base.config.num_layers
    for bias in biases:
        bias.data[:] = 0
    ended = verify(out)
    assert (ended.status, ended.out.split(" (")[0]) == (3, "adapter missing: equals the base")


def test_a_peft_folder_of_several_tokens_is_told(made, tmp_path):
    adapter = aj.init_adapter("aligner", made.base.config, key=3, num_tokens=3, gates="layer")
    arrays = {name: 0.3 + x for name, x in adapter.trainable.items()}
    aj.save_adapter(adapter.replace(trainable=arrays), tmp_path / "a.safetensors", made.base, canary=False)
    base = f"--base={made.folder / 'base'}"
    ended = run_command(
        "export", base, f"--adapter={tmp_path / 'a.safetensors'}", "--to=peft", f"--out={tmp_path / 'out'}"
    )
    assert (ended.status, ended.err) == (0, "")
    assert verify(tmp_path / "out", base).out.startswith("adapter active")


@pytest.mark.parametrize(
    ("served", "form", "ids", "status"),
    [
        ("adapter", "text", True, 0),
        ("adapter", "text", False, 0),
        ("adapter", "ids", True, 0),
        ("adapter", "chat", True, 0),
        ("base", "text", True, 3),
        ("base", "chat", True, 3),
        ("another", "text", True, 4),
        ("another", "ids", False, 4),
    ],
)
def test_a_server_is_told(served, form, ids, status, made):
    adapter = {"adapter": made.adapter, "base": None, "another": random_adapter(made.base, 2)}[served]
    with judge_server(completions(made.base, adapter, form=form, ids=ids)) as server:
        ended = verify(made.file, f"--endpoint={server.url}", "--model=tiny")
    assert (ended.status, ended.err) == (status, "")
    assert f"(computed at {server.url}; " in ended.out
    asked = [request.body["prompt"] for request in server.requests]
    assert all(isinstance(prompt, list) for prompt in asked) == ids
    assert all(request.body["model"] == "tiny" for request in server.requests)


def test_the_server_of_this_project_is_told(made, tmp_path):
    """Its base is byte-level, and it reports tokens as text."""
    (tmp_path / "adapters").mkdir()
    shutil.copyfile(made.file, tmp_path / "adapters" / "mine.safetensors")
    with running(made.base, tmp_path / "adapters") as server:
        for model, status in (("mine", 0), ("tiny", 3)):
            ended = verify(made.file, f"--endpoint={server.url}/v1", f"--model={model}")
            assert (ended.status, ended.err) == (status, "")
            assert min(differences(ended)) < 1e-3


@pytest.mark.parametrize("refusal", [404, 422, 500])
def test_a_server_that_refuses_token_ids_is_asked_with_text(refusal, made):
    with judge_server(completions(made.base, made.adapter, ids=False, refusal=refusal)) as server:
        ended = verify(made.file, f"--endpoint={server.url}", "--model=tiny")
    assert (ended.status, ended.err) == (0, "")
    assert isinstance(server.requests[-1].body["prompt"], str)


@pytest.mark.parametrize(("served", "status"), [("adapter", 0), ("base", 3)])
def test_a_server_may_report_nothing_about_an_answer_that_ends_at_once(served, status, made):
    reply = completions(made.base, made.adapter if served == "adapter" else None)
    logprobs = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    empty = Reply(json.dumps({"choices": [{"text": "", "logprobs": logprobs, "finish_reason": "stop"}]}).encode())
    with judge_server(lambda request, number: empty if number == 0 else reply(request, number)) as server:
        ended = verify(made.file, f"--endpoint={server.url}", "--model=tiny")
    assert (ended.status, ended.err) == (status, "")
    assert len(server.requests) > 1


@pytest.mark.parametrize(("served", "status"), [("adapter", 0), ("base", 3)])
def test_noise_of_quantization_changes_no_decision(served, status, made):
    adapter = made.adapter if served == "adapter" else None
    with judge_server(completions(made.base, adapter, noise=0.05)) as server:
        ended = verify(made.exported, f"--endpoint={server.url}", "--model=tiny")
    assert ended.status == status
    assert min(differences(ended)) > 0.01


def test_the_key_is_sent_and_not_shown(made, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    arguments = [made.file, "--model=tiny", f"--api_key_file={tmp_path / 'key'}"]
    with judge_server(completions(made.base, made.adapter)) as server:
        assert verify(*arguments, f"--endpoint={server.url}").status == 0
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    with judge_server(lambda request, number: failure(401, f"{KEY} is no key")) as server:
        ended = verify(*arguments, f"--endpoint={server.url}")
    assert (ended.status, ended.out, KEY in ended.err) == (1, "", False)


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (Reply(b'{"choices": [{"text": "", "logprobs": null}]}'), "reports no log-probabilities of tokens"),
        (Reply(b'{"choices": [{"logprobs": {"top_logprobs": [{"a": NaN, "b": "c"}]}}]}'), "reports no log-prob"),
        (Reply(b'{"choices": [{"logprobs": {"top_logprobs": [{"a": false}]}}]}'), "reports no log-prob"),
        (Reply(b"[" * 200_000), "answers with something that is no completion"),
        (failure(404, "no such model"), "answers with status 404: no such model"),
        (failure(403, "no"), "answers with status 403: no"),
    ],
    ids=["none", "odd", "false", "deep", "404", "403"],
)
def test_a_server_that_cannot_tell_is_one_sentence(reply, sentence, made):
    with judge_server(lambda request, number: reply) as server:
        ended = verify(made.file, f"--endpoint={server.url}", "--model=tiny")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith(f"error: {server.url} ")
    assert sentence in ended.err


def test_a_server_may_report_an_integer_beyond_every_float(made):
    reply = Reply(b'{"choices": [{"logprobs": {"top_logprobs": [{"a": -1' + b"0" * 400 + b"}]}}]}")
    with judge_server(lambda request, number: reply) as server:
        ended = verify(made.file, f"--endpoint={server.url}", "--model=tiny")
    assert (ended.status, ended.err, ended.out.split(" (")[0]) == (4, "", "something else")


def test_what_cannot_be_checked_is_one_sentence(made, tmp_path):
    aj.save_adapter(made.adapter, tmp_path / "bare.safetensors", made.base, canary=False)
    server = ("--endpoint=http://127.0.0.1:9/v1", "--model=a")
    (tmp_path / "two").write_text("one\ntwo\n")
    damaged, strange = tmp_path / "damaged", tmp_path / "strange"
    damaged.mkdir()
    shutil.copytree(made.exported, strange)
    values = json.loads((strange / "canary.json").read_text())
    values["prompts"][0]["ids"] = [1, 999_999]
    (strange / "canary.json").write_text(json.dumps(values))
    (damaged / "canary.json").write_text(json.dumps({"computed_in": "float32", "prompts": 3}))
    for arguments, sentence in [
        ((), "give an adapter or an exported folder"),
        ((made.file,), "is an adapter: add --base=PATH"),
        ((made.exported, f"--base={made.folder / 'base'}"), "--base is of an adapter"),
        ((made.file, made.file), "is not a flag"),
        ((made.folder / "base",), "has no canary"),
        ((tmp_path / "none.safetensors",), "does not exist"),
        ((tmp_path / "bare.safetensors",), "aligner_jax.convert"),
        ((strange,), "the canary's prompt has the token 999999"),
        ((damaged,), "canary.json: prompts is 3, not a list of at most 3 objects"),
        ((made.file, "--endpoint=http://127.0.0.1:9/v1"), "--endpoint=URL --model=NAME"),
        ((made.file, "--endpoint=ftp://x", "--model=a"), "should begin with http://"),
        ((made.file, "--endpoint=http://me:key@x/v1", "--model=a"), "--api_key_file"),
        ((made.file, *server, f"--api_key_file={tmp_path / 'two'}"), "two should hold one line with the API key"),
        ((made.file, "--api_key_file=key"), "--api_key_file is of an --endpoint"),
    ]:
        ended = verify(*arguments)
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1), arguments
        assert sentence in ended.err


TORCH = """
import contextlib
float32 = "float32"
no_grad = contextlib.nullcontext
tensor = list
"""
TRANSFORMERS = """
import json, pathlib, numpy
LOGITS = json.loads((pathlib.Path(__file__).parent / "logits.json").read_text())
class Tensor(numpy.ndarray):
    def float(self):
        return self
    def numpy(self):
        return numpy.asarray(self)
class AutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, folder, dtype):
        assert dtype == "float32" and (pathlib.Path(folder) / "config.json").exists()
        return cls()
    def eval(self):
        return self
    def __call__(self, rows):
        self.logits = numpy.asarray([[LOGITS[str(row)]] for row in rows], numpy.float32).view(Tensor)
        return self
"""


@pytest.mark.parametrize(("served", "status"), [("adapter", 0), ("base", 3)])
def test_the_logits_of_another_interpreter_are_judged(served, status, made, monkeypatch, tmp_path):
    """Modules that stand for torch and transformers know the logits of the canary's prompts."""
    adapter = made.adapter if served == "adapter" else None
    logits = {}
    for prompt in json.loads((made.exported / "canary.json").read_text())["prompts"]:
        tokens_bt = jnp.asarray(prompt["ids"])[None]
        logits_v = aj.apply(made.base.params, adapter, tokens_bt, config=made.base.config)[0, -1]
        logits[str(prompt["ids"])] = np.asarray(logits_v).tolist()
    for name, content in {
        "torch.py": TORCH,
        "transformers.py": TRANSFORMERS,
        "logits.json": json.dumps(logits),
    }.items():
        (tmp_path / name).write_text(content)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PEER_PYTHON", str(python))
    ended = verify(made.exported)
    assert (ended.status, ended.err) == (status, "")
    assert "(computed in transformers; " in ended.out
    assert min(differences(ended)) < 1e-3


def test_an_interpreter_without_transformers_is_one_sentence(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PEER_PYTHON", str(tmp_path / "none"))
    assert "does not run" in verify(made.exported).err
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'Error: no transformers' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("PEER_PYTHON", str(python))
    ended = verify(made.exported)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "cannot compute" in ended.err
    assert "Error: no transformers" in ended.err


def test_the_exit_status_is_that_of_the_process(made, tmp_path):
    """The canary of the export says "missing" of the base alone."""
    for file in (made.folder / "base").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "canary.json").write_bytes((made.exported / "canary.json").read_bytes())
    ended = subprocess.run(
        [sys.executable, "-m", "aligner_jax.verify", str(tmp_path)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, cwd=places.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.split(" (")[0]) == (3, "adapter missing: equals the base")
