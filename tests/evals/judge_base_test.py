"""A judge in this process: its prompts, its stored answers, and that it answers as behind this project's server."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
from judge_server import run_in

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.decoding.engine import Engine
from aligner_jax.errors import InputError
from aligner_jax.evals import judge_base
from aligner_jax.evals.interface import Run
from aligner_jax.evals.judge_base import BaseJudgeConfig, ask_base, render
from aligner_jax.evals.judge_endpoint import EndpointConfig
from aligner_jax.evals.judge_prompts import SAFETY, Ask
from aligner_jax.evals.judging import JudgeOptions, ask_all, check_judge
from aligner_jax.objectives.reference import adapter_digest
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.runtime.config import BaseConfig
from aligner_jax.runtime.fields import parse_section
from aligner_jax.weights.base import load_base

ASKS = [Ask("Be fair.", f"Is {'very ' * i}number {i} even?", f"answers.jsonl:{i + 1}") for i in range(5)]


def answers_of(asks: Sequence[Ask], judge: BaseJudgeConfig, run: Run) -> list[str]:
    return ask_base(asks, judge, run)[0]


@pytest.fixture
def write_adapter(tiny_model: Path, tmp_path: Path) -> Callable[..., str]:
    """Writes an adapter that changes the tiny model's answers much. Takes its name, prompt format and key."""
    base = load_base(tiny_model)
    (tmp_path / "adapters").mkdir()

    def write(name: str, recorded: dict[str, str | None] | None = None, key: int = 5) -> str:
        path = tmp_path / "adapters" / f"{name}.safetensors"
        fresh = init_adapter("aligner", base.config, num_tokens=3, start_layer=1)
        rng = np.random.default_rng(key)
        drawn = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in fresh.trainable.items()}
        save_adapter(fresh.replace(trainable=drawn), path, base=base, prompt_format=recorded)
        return str(path)

    return write


@pytest.fixture
def judge(tiny_model: Path, write_adapter: Callable[..., str]) -> BaseJudgeConfig:
    """A judge whose answers differ; those of the tiny model alone repeat a token."""
    base = BaseConfig(path=str(tiny_model), dtype="float32")
    return BaseJudgeConfig(base=base, adapter=write_adapter("A"), max_tokens=8)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Token ids of all prompts that engines are asked to continue."""
    prompts: list[tuple[int, ...]] = []
    add = Engine.add

    def counted(self, request):
        prompts.append(tuple(request.prompt_ids))
        return add(self, request)

    monkeypatch.setattr(Engine, "add", counted)
    return prompts


def test_the_answers_are_those_of_this_projects_server_with_the_same_base(
    judge: BaseJudgeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert judge.base is not None
    command = [
        sys.executable, "-m", "aligner_jax.serve", f"--base={judge.base.path}", f"--adapters={tmp_path / 'adapters'}",
        "--port=0", "--dtype=float32", "--nowarm_up", "--tokens=512",
    ]  # fmt: skip
    here, usage, made_from = ask_all(
        ASKS, JudgeOptions(by="base", judge=judge), run_in(tmp_path / "here", batch_size=2)
    )
    assert usage is None
    base = load_base(judge.base.path)
    adapter = load_adapter(str(judge.adapter), base=base)
    assert made_from == {"base": base.identity, "adapter": adapter_digest(adapter)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=places.ROOT) as process:
        try:
            line = process.stderr.readline()
            found = re.search(r"^tiny at (http://127\.0\.0\.1:\d+/v1)$", line)
            assert found, line
            endpoint = EndpointConfig(url=found[1], model="A", key_variable=None, max_tokens=8)
            there, usage, made_from = ask_all(ASKS, JudgeOptions(endpoint=endpoint), run_in(tmp_path / "there"))
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert here == there
    assert len(set(here)) > 2
    assert usage is not None
    assert usage.asked == 5
    assert made_from is None


def test_nothing_is_asked_twice_and_another_judge_asks_anew(
    judge: BaseJudgeConfig, write_adapter, tmp_path: Path, added: list
):
    run = run_in(tmp_path / "out", batch_size=2)
    answers = answers_of([*ASKS, ASKS[0]], judge, run)
    assert len(added) == 5
    assert answers[5] == answers[0]
    assert answers_of(ASKS[::-1], judge, run) == answers[4::-1]
    assert len(added) == 5
    changes: list[dict[str, Any]] = [
        {"max_tokens": 7}, {"temperature": 0.5}, {"adapter": None}, {"adapter": write_adapter("B", key=6)},
    ]  # fmt: skip
    for changed in changes:
        added.clear()
        answers_of(ASKS[:1], dataclasses.replace(judge, **changed), run)
        assert len(added) == 1, changed
    added.clear()
    answers_of([dataclasses.replace(ASKS[0], system="Be unfair."), dataclasses.replace(ASKS[0], user="?")], judge, run)
    assert len(added) == 2
    added.clear()
    assert answers_of(ASKS, judge, run_in(tmp_path / "out", batch_size=2, seed=1)) == answers[:5]
    assert added == []
    answers_of(ASKS[:1], dataclasses.replace(judge, temperature=0.5), run_in(tmp_path / "out", seed=1))
    assert len(added) == 1


def test_an_interrupted_judge_goes_on(judge: BaseJudgeConfig, tmp_path: Path, added: list, monkeypatch):
    whole = answers_of(ASKS, judge, run_in(tmp_path / "whole", batch_size=2))
    run, turn = run_in(tmp_path / "out", batch_size=2), Engine.turn

    def interrupted(self):
        if any((tmp_path / "out" / "judge").glob("*.jsonl")):
            raise KeyboardInterrupt
        return turn(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "turn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            answers_of(ASKS, judge, run)
    added.clear()
    assert answers_of(ASKS, judge, run) == whole
    assert 0 < len(added) < 5


def test_the_judge_runs_on_the_evaluations_mesh_with_its_batch_size(
    judge: BaseJudgeConfig, tmp_path: Path, monkeypatch
):
    given: dict[str, Any] = {}
    load = judge_base.load_subject

    def noted(config, adapter, **settings):
        given.update(settings, config=config)
        return load(config, adapter, **settings)

    monkeypatch.setattr(judge_base, "load_subject", noted)
    rules = {"mlp": "none"}
    answers_of(ASKS[:1], judge, run_in(tmp_path, batch_size=3, mesh={"data": -1, "fsdp": 1, "rules": rules}))
    assert given["batch_size"] == 3
    assert dict(given["mesh"].shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert dict(given["rules"])["mlp"] is None
    assert given["config"] == judge.base


TURN = "{{ '<' + m['role'] + '>' + m['content'] }}"
TEMPLATES = {
    "with": "{% for m in messages %}" + TURN + "{% endfor %}",
    "refuses": "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + TURN
    + "{% endfor %}",
    "leaves out": "{% for m in messages %}{% if m['role'] != 'system' %}" + TURN + "{% endif %}{% endfor %}",
}
MERGED = "<user>Be fair.\n\nq"


@pytest.mark.parametrize(
    ("template", "recorded", "ask", "text"),
    [
        ("with", PromptFormat("chat"), Ask("Be fair.", "q"), "<system>Be fair.<user>q"),
        ("with", PromptFormat("chat"), Ask("", "q"), "<user>q"),
        ("with", PromptFormat("chat", "Be brief."), Ask("Be fair.", "q"), "<system>Be fair.<user>q"),
        ("with", PromptFormat("chat", "Be brief."), Ask("", "q"), "<system>Be brief.<user>q"),
        ("refuses", PromptFormat("chat"), Ask("Be fair.", "q"), MERGED),
        ("leaves out", PromptFormat("chat"), Ask("Be fair.", "q"), MERGED),
        ("with", PromptFormat("none"), Ask("Be fair.", "q"), "Be fair.\n\nq"),
    ],
)
def test_prompts_have_the_judges_format(tiny_subject, template: str, recorded: PromptFormat, ask: Ask, text: str):
    tokenizer = dataclasses.replace(tiny_subject().tokenizer, chat_template=TEMPLATES[template])
    assert render(ask, recorded, tokenizer) == text


def test_an_adapter_that_records_alpacas_format_is_asked_in_it(
    judge: BaseJudgeConfig, write_adapter, tmp_path: Path, added: list
):
    adapted = dataclasses.replace(judge, adapter=write_adapter("B", {"template": "alpaca", "system": None}))
    answers_of(ASKS[:1], adapted, run_in(tmp_path / "out"))
    assert judge.base is not None
    tokenizer = load_base(judge.base.path).tokenizer
    assert tokenizer is not None
    assert f"### Instruction:\nBe fair.\n\n{ASKS[0].user}\n" in tokenizer.decode(added[0])


def test_a_prompt_that_does_not_fit_is_named_and_not_shown(judge: BaseJudgeConfig, tmp_path: Path):
    asks = [ASKS[0], Ask("", "secret " * 200, "answers.jsonl:7")]
    says = (
        r"^answers\.jsonl:7: the judge's prompt has \d+ tokens, which with 8 new ones "
        r"\(config\.evaluation\.judge\.max_tokens\) do not fit the judge's context of 512$"
    )
    with pytest.raises(InputError, match=says):
        answers_of(asks, judge, run_in(tmp_path))
    assert not (tmp_path / "judge").exists()


def test_a_base_without_a_chat_template_cannot_judge(judge: BaseJudgeConfig, tmp_path: Path):
    assert judge.base is not None
    path = Path(judge.base.path) / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["chat_template"]
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"^the judge .*tiny has no chat template, so it cannot be asked; set "):
        answers_of(ASKS, judge, run_in(tmp_path / "out"))


def test_a_template_that_refuses_the_question_is_told_with_its_place(judge: BaseJudgeConfig, tmp_path: Path):
    assert judge.base is not None
    path = Path(judge.base.path) / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "chat_template": "{{ raise_exception('no') }}"}))
    with pytest.raises(InputError, match=r"^answers\.jsonl:1: the judge cannot be asked: the chat template refuses"):
        answers_of(ASKS, judge, run_in(tmp_path / "out"))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"judge": {"base": {"path": "x"}}, "endpoint": {"url": "http://localhost/v1"}},
            r"config\.evaluation\.judge\.base is set, but config\.evaluation\.by is 'endpoint'; set it to 'base' to",
        ),
        ({"by": "base"}, r"config\.evaluation\.judge\.base\.path is not set; it says which base judges"),
        (
            {"by": "base", "judge": {"base": {"model": "x"}}},
            r"config\.evaluation\.judge\.base\.path is not set; set it in the config file or with --config\.evaluation",
        ),
        (
            {"judge": {"adapter": "a.safetensors"}, "endpoint": {"url": "http://localhost/v1"}},
            r"config\.evaluation\.judge\.adapter is set, but no base for it; set config\.evaluation\.by to 'base' and",
        ),
        ({"by": "scores", "judge": {"adapter": "a.safetensors"}}, r"config\.evaluation\.judge\.adapter is set, but no"),
        ({"by": "bases"}, r"config\.evaluation\.by is 'bases', but should be one of endpoint, base, scores"),
        ({"judge": {"max_tokens": 0}}, r"config\.evaluation\.judge\.max_tokens is 0, but should be 1 or more"),
    ],
)
def test_judges_that_cannot_be_chosen(fields: dict, says: str):
    with pytest.raises(InputError, match=says):
        check_judge(parse_section(JudgeOptions, fields, "config.evaluation"))


def test_a_judge_is_named_by_its_files(judge: BaseJudgeConfig):
    assert JudgeOptions(by="base", judge=dataclasses.replace(judge, adapter=None)).judge_name == "tiny"
    adapted = dataclasses.replace(judge, adapter="runs/strict/adapter.safetensors")
    assert JudgeOptions(by="base", judge=adapted).judge_name == "tiny with strict"
    assert JudgeOptions(endpoint=EndpointConfig(model="m")).judge_name == "m"


def test_the_packages_prompt_reaches_a_judge(judge: BaseJudgeConfig, tmp_path: Path, added: list):
    answers_of([Ask(SAFETY.system, SAFETY.fill(question="q", answer="a"))], judge, run_in(tmp_path))
    assert judge.base is not None
    tokenizer = load_base(judge.base.path).tokenizer
    assert tokenizer is not None
    assert "[[safe]] or [[unsafe]]" in tokenizer.decode(added[0])
